"""The landscape at a small size, its verdicts where a closed form is wrong, and Lanczos' method."""

import dataclasses
import io
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from rich.console import Console

from crate_jax import studies
from crate_jax.config import ConfigError
from crate_jax.ops import rate_landscape as forms
from crate_jax.studies import landscape
from crate_jax.studies.landscape import ascent, bounds, critical
from crate_jax.studies.landscape.lanczos import distinct_eigenvalues
from crate_jax.studies.landscape.settings import problem_of

SMALL = landscape.Settings(
    sizes=(2, 3, 3), d=4, points=1, starts=4, scales=3, scale_starts=2, fraction=0.2
)


@pytest.fixture(scope="module")
def problem():
    return problem_of(SMALL)


@pytest.fixture(scope="module")
def checked(problem):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        yield critical.examine(problem, critical.list_points(problem, 2, rng), rng)


def test_all_kinds_of_points_are_critical_and_as_curved_as_the_theory_says(problem, checked):
    kinds = [c.point.kind for c in checked]
    assert kinds[:4] == ["maximiser"] * 4 and "saddle" in kinds and kinds.count("shared") == 2
    assert all(claim.holds for claim in critical.check_points(problem, checked))
    best, zero = checked[0].point, checked[1].point
    assert best.ranks == problem.best_ranks == (2, 2, 0) and not zero.Z.any()
    curvature = jax.jit(lambda Z, V: (V * problem.product(Z, V)).sum())
    for c in checked:
        if c.point.kind == "saddle":  # upwards along the direction that it is left by
            assert curvature(c.point.Z, c.point.away) > 1e-3


def test_a_wrong_closed_form_is_noticed(problem, checked, monkeypatch):
    right = forms.nullity
    monkeypatch.setattr(forms, "nullity", lambda *args: right(*args) + 1)
    wrong = [c for c in critical.check_points(problem, checked) if not c.holds]
    assert [claim.form for claim in wrong] == ["eigenvalues at 0 - nullity"]
    off = [c._replace(value=c.value + 1e-9) for c in checked]
    wrong = [c for c in critical.check_points(problem, off) if not c.holds]
    assert [claim.form for claim in wrong][0] == "F(Z) = sum_k r_k h_k(s)"


def test_gradient_ascent_ends_at_local_maximisers(problem, x64):
    starts = ascent.draw(problem, 4, 1.0, 0)
    run = ascent.gradient_ascent(problem, starts, 1 / problem.alpha, 5000, 1e-11)
    ends = ascent.describe(problem, run)
    assert all(claim.holds for claim in ascent.check_ends(problem, "ascent", ends, 1e-11))
    assert ascent.check_rise(run).holds
    assert (ends.ranks.sum(-1) <= 4).all() and (ends.values > 0).all()
    # The values of a path, step by step in numpy from the gradient that automatic
    # differentiation gives.
    Z, derive = np.asarray(starts[0]), jax.jit(jax.value_and_grad(problem.value))
    for t in range(3):
        value, gradient = derive(Z)
        np.testing.assert_allclose(run.values[t, 0], value, rtol=1e-12)
        Z = Z + np.asarray(gradient) / problem.alpha


def test_the_theorem_is_shown_to_turn():
    turned = bounds._ranks() + bounds._stationary_sizes()
    assert all(claim.holds for claim in turned)
    assert bounds.turn(2) == pytest.approx(0.8671, abs=5e-5)


def test_lanczos_finds_every_distinct_eigenvalue_and_about_how_often():
    rng = np.random.default_rng(0)
    values = np.repeat([2.0, 0.5, 0.0, -1.0], [1, 4000, 5000, 1000])
    spectrum = distinct_eigenvalues(lambda v: values * v, len(values), rng)
    np.testing.assert_allclose(spectrum.values, [2, 0.5, 0, -1], atol=1e-10)
    assert spectrum.counts.sum() == pytest.approx(len(values))
    np.testing.assert_allclose(spectrum.counts[1:], [4000, 5000, 1000], rtol=0.1)
    with pytest.raises(ArithmeticError, match="have not settled after 60 products"):
        distinct_eigenvalues(lambda v: np.arange(200) * v, 200, rng)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sizes": (5,)}, "config.sizes must be two or more"),
        ({"sizes": (5, 0)}, "config.sizes must be two or more"),
        ({"d": 0}, "config.d must be at least 1"),
        ({"fraction": 1.0}, "config.fraction must be above 0 and below 1"),
        ({"lmbda": 10.0}, "config.lmbda must be below lambda_max, which is"),
        ({"seed": -1}, "config.seed must be at least 0"),
        ({"tolerance": 0.0}, "config.tolerance must be from 1e-13"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        landscape.check(dataclasses.replace(SMALL, **changes))


def test_presets_stay_what_they_are_at_the_smoke_size():
    file = pathlib.Path(__file__).parents[2] / "configs/mcr2/landscape.py"
    get_config = runpy.run_path(str(file))["get_config"]
    balanced, large = (
        studies.resolve(get_config(f"preset={preset},smoke")) for preset in ("balanced", "large")
    )
    assert len(set(balanced.sizes)) == 1
    assert sum(large.sizes) * large.d > critical.DENSE


@pytest.mark.slow
@pytest.mark.parametrize("dense", [1500, 1])
def test_every_claim_holds_and_everything_is_written(tmp_path, dense, monkeypatch):
    monkeypatch.setattr(critical, "DENSE", dense)
    settings = dataclasses.replace(SMALL, sizes=(4, 6, 9), d=8, points=2)
    console = Console(file=io.StringIO(), width=200)
    assert landscape.run(settings, tmp_path, console) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [c["text"] for c in results["claims"] if not c["holds"]] == []
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png") == 5 and "39 of 39 claims hold" in page
    assert not jax.config.jax_enable_x64
