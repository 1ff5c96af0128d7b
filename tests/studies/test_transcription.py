"""The inspection end to end at a small size, and what it refuses."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.studies import transcription
from crate_jax.studies.transcription import noise
from crate_jax.studies.transcription.settings import check


@pytest.mark.slow
def test_a_loop_on_digits_is_trained_and_looked_at(tmp_path):
    settings = transcription.Settings(
        digits_steps=20, train_images=200, test_images=100, batch_size=100, levels=2, lambdas=3,
        noises="gaussian,impulse", noisy_images=40, spectrum=8, transfer="digits",
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    assert transcription.run(settings, tmp_path, console) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    test = results["numbers"]["test"]
    assert test["images"] == 100 and 0 <= test["nearest_subspace"] <= 1
    assert results["numbers"]["unseen"]["digits"]["psnr"] == pytest.approx(test["psnr"], rel=1e-4)
    assert len(results["numbers"]["nonzero"]) == 2
    rows = results["noise"]["gaussian"]
    assert [row["level"] for row in rows] == [0.02, 0.2] and len(rows[0]["accuracy"]) == 3
    # A larger lambda leaves more of the image unexplained.
    assert rows[0]["error"][0] < rows[0]["error"][-1]
    assert (tmp_path / "index.html").read_text().count("data:image/png") == 8


def test_levels_are_taken_evenly():
    assert noise.levels("gaussian", 0) == pytest.approx(np.arange(1, 11) / 50)
    assert noise.levels("shot", 3) == [60, 36, 6]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"noises": "gausian"}, "config.noises: 'gausian'; did you mean 'gaussian'"),
        ({"run": ""}, "config.run is not set"),
        ({"lambda_low": 2.0}, "config.lambda_low is above config.lambda_high"),
        ({"components": 0}, "config.components must be at least 1"),
    ],
    ids=str,
)
def test_wrong_settings_are_said(change, sentence):
    with pytest.raises(ConfigError) as error:
        check(transcription.Settings(**change))
    assert sentence in str(error.value)


def test_a_directory_that_holds_no_run_is_said(tmp_path):
    settings = transcription.Settings(run=str(tmp_path))
    with pytest.raises(ConfigError, match="is no run's workdir"):
        transcription.run(settings, tmp_path / "out", Console(file=io.StringIO()))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"system": "classify"}}))
    with pytest.raises(ConfigError, match="a run of system 'classify'"):
        transcription.run(settings, tmp_path / "out", Console(file=io.StringIO()))
