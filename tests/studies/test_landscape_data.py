"""The perceptron on real samples: its data, its rates, and that it reaches the optimum."""

import dataclasses
import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.ops import rate_landscape as forms
from crate_jax.studies import landscape_data
from crate_jax.studies.landscape_data import training
from crate_jax.studies.landscape_data.training import Look, crop_flip, load, rate_at

SMALL = landscape_data.Settings(classes=2, per_class=20, hidden=128, d=16, epochs=300, warmup=30)


def test_the_first_classes_are_taken_in_order():
    images = load(landscape_data.Settings(per_class=7))
    assert images.shape == (21, 8, 8, 1) and images.dtype == np.float32
    assert 0 <= images.min() and images.max() == 1
    np.testing.assert_array_equal(images, load(landscape_data.Settings(per_class=7)))
    assert (images != load(landscape_data.Settings(per_class=7, seed=1))).any()
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {tuple(x): y for x, y in zip(digits.data.round(), digits.target, strict=True)}
    labels = [known[tuple(np.round(image.ravel() * 16))] for image in images]
    assert labels == [0] * 7 + [1] * 7 + [2] * 7
    with pytest.raises(ConfigError, match="config.per_class=1000 is more"):
        load(landscape_data.Settings(per_class=1000))


def test_warm_up_and_cosine_run_together():
    settings = landscape_data.Settings()
    for epoch in (0, 99, 199, 200, 804):
        want = 5e-3 * (1 + math.cos(math.pi * epoch / 806)) / 2 * min(1, (epoch + 1) / 200)
        assert float(rate_at(epoch, settings)) == pytest.approx(want, rel=1e-5, abs=1e-10)


def test_a_crop_holds_the_image_or_a_part_of_it():
    image = np.arange(1, 28 * 28 + 1, dtype=np.float32).reshape(1, 28, 28, 1)
    crops = np.asarray(crop_flip(jax.random.key(0), np.repeat(image, 40, axis=0)))
    assert crops.shape == (40, 32, 32, 1)
    mirrored = 0
    for crop in crops[..., 0]:
        values = crop[crop > 0]
        rows, columns = (crop > 0).any(1).sum(), (crop > 0).any(0).sum()
        assert len(values) == rows * columns >= 20 * 20
        falls = (np.diff(crop[crop.any(1)][0][crop.any(0)]) < 0).all()
        mirrored += falls
    assert 8 <= mirrored <= 32


def test_what_the_features_of_a_maximiser_are_found_to_be(x64):
    """Two classes on orthogonal halves of the space, singular values in closed form."""
    settings = dataclasses.replace(SMALL, per_class=8)
    law = {"eps_sq": 0.5, "lmbda": 2e-3}
    sigma = math.sqrt(forms.stationary_squares(8, 16, 16, **law)[0])
    Z = sigma * np.eye(16)
    goal = landscape_data.reference_of(settings)
    measured = landscape_data.measure(settings, Look(5, Z))
    assert goal.sigma == pytest.approx(sigma) and measured.ranks == (8, 8)
    assert measured.value == pytest.approx(goal.value, abs=1e-12)
    assert all(c.holds for c in landscape_data.check_features(settings, goal, measured))
    worse = landscape_data.measure(settings, Look(5, 1.1 * Z))
    holds = [c.holds for c in landscape_data.check_features(settings, goal, worse)]
    assert holds == [False, True, True, False]


def test_the_sphere_has_the_isotropic_optimum_for_reference():
    settings = dataclasses.replace(SMALL, unit_norm=True)
    goal = landscape_data.reference_of(settings)
    value = forms.isotropic_rate_reduction((8, 8), (20, 20), 16, eps_sq=0.5)
    assert goal.value == pytest.approx(value - 40 * 1e-3) and goal.sigma is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"augment": "crop"}, "config.augment='crop'; did you mean 'crop_flip'"),
        ({"lmbda": 1.0}, "config.lmbda must be below lambda_max, which is"),
        ({"classes": 1}, "config.classes must be at least 2"),
        ({"seed": -1}, "config.seed must be at least 0"),
        ({"source": "digit"}, "config.source='digit'; did you mean 'digits'"),
        ({"channels": 2}, "config.channels must be 1 or 3"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        landscape_data.check(dataclasses.replace(SMALL, **changes))


def test_small_images_have_nothing_to_crop():
    settings = dataclasses.replace(SMALL, augment="crop_flip")
    with pytest.raises(ConfigError, match="wants images of 16 pixels or more; these have 8 x 8"):
        training.train(settings, load(settings), lambda *_: None)


@pytest.mark.slow
def test_training_that_diverges_is_a_sentence():
    settings = dataclasses.replace(SMALL, learning_rate=1e30, epochs=2)
    with pytest.raises(ConfigError, match="not finite after epoch 1; lower config.learning_rate"):
        training.train(settings, load(settings), lambda *_: None)


@pytest.mark.slow
def test_training_reaches_the_optimum(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    assert landscape_data.run(SMALL, tmp_path, console) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [c["text"] for c in results["claims"] if not c["holds"]] == []
    assert [row["epoch"] for row in results["course"]][-2:] == ["250", "300"]
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png") == 2 and "4 of 4 claims hold" in page
