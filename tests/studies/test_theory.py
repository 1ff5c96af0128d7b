"""The study end to end at a small size, and its verdicts where a claim is wrong."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.ops import sink_dynamics as sinks
from crate_jax.studies import theory
from crate_jax.studies.claims import Claim, verdict_table
from crate_jax.studies.theory.laws import make_ensemble
from crate_jax.studies.theory.softmax import check_drain, check_growth, check_joint

SMALL = theory.Settings(laws=1, starts=1, points=11, vocabulary=4, logits=(1.0,))


@pytest.mark.slow
def test_every_claim_holds_and_everything_is_written(tmp_path):
    simple = theory.SimpleSettings(steps=60, batch=8, length=16, evaluation_batch=32)
    settings = theory.Settings(
        laws=1, starts=2, points=21, optimizer_steps=20_000, train_simple=True, simple=simple
    )
    console = Console(file=io.StringIO(), width=200)
    assert theory.run(settings, tmp_path, console) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["claims"]) == 25
    assert all(claim["holds"] for claim in results["claims"])
    assert [row["optimizer"] for row in results["simple"]] == ["AdamW", "SGD, momentum"]
    assert "1[alpha_v > 0]" in console.file.getvalue()
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png") == 6 and "25 of 25 claims hold" in page
    assert not jax.config.jax_enable_x64


def test_the_sinks_of_a_small_law(x64):
    ensemble = make_ensemble(SMALL)
    growth, curves = check_growth(ensemble, 1e8, 11)
    drain, _ = check_drain(ensemble, (1.0,), 11)
    joint, _ = check_joint(ensemble, 1e8, 11)
    assert all(claim.holds for claim in growth + drain + joint)
    # The constant, from the numbers alone: a row of the law at its last time.
    p, B, pi = ensemble.p[0, 0], ensemble.B[0], ensemble.pi[0, 0]
    variance = p @ (B - p @ B) ** 2
    constant = np.log(2 * pi * variance) / 2
    assert abs(curves.alpha[0, -1] - np.log(curves.t[0, -1]) / 2 - constant) < 1e-2


def test_a_wrong_limit_is_noticed(x64, monkeypatch):
    right = sinks.drained_value
    monkeypatch.setattr(sinks, "drained_value", lambda alpha, *rest: right(1.001 * alpha, *rest))
    drain, _ = check_drain(make_ensemble(SMALL), (1.0,), 11)
    assert [claim.holds for claim in drain] == [False, True, True]


def test_an_ensemble_is_a_function_of_its_seed():
    a, b = make_ensemble(SMALL), make_ensemble(SMALL)
    other = make_ensemble(dataclasses.replace(SMALL, seed=1))
    np.testing.assert_array_equal(a.B, b.B)
    assert (a.B != other.B).all()
    np.testing.assert_allclose(np.einsum("er,erv->ev", a.pi, a.p), a.pi, atol=1e-12)
    np.testing.assert_array_equal(a.moves[0], [True, True, True, False])


def test_a_bigram_law_loses_its_triggers_and_special_tokens():
    ensemble = make_ensemble(theory.Settings(source="synthetic", starts=2))
    assert ensemble.p.shape == (2, 62, 65) and "c3" in ensemble.tokens
    assert not {"c0", "c1", "c2", "<s_0>", "<d>"} & set(ensemble.tokens)
    np.testing.assert_allclose(ensemble.p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(ensemble.pi.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocabulary": 2}, "config.vocabulary must be at least 3; got 2"),
        ({"concentration": 0.0}, "config.concentration must be above 0"),
        ({"horizon": 10.0}, "config.horizon must be from 1e4"),
        ({"logits": ()}, "config.logits must be one or more numbers"),
        ({"simple": theory.SimpleSettings(length=2)}, "config.simple.length must be at least 4"),
        (
            {"simple": theory.SimpleSettings(law="texd:x")},
            "config.simple.law='texd:x' is none; did you mean",
        ),
        ({"simple": theory.SimpleSettings(triggers=70)}, "70 triggers leave no token"),
        ({"source": "dirichlett"}, "did you mean 'dirichlet'"),
        ({"source": "dirichlet:3"}, "write dirichlet alone"),
        ({"source": "npz:"}, "config.source='npz:' names no data"),
        ({"source": "synthetic", "triggers": 64}, "fewer config.triggers"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        theory.check(dataclasses.replace(theory.Settings(), **changes))


def test_a_claim_that_is_nan_does_not_hold():
    claim = Claim("growth", "a", "x -> [y]", float("nan"), 1.0)
    assert not claim.holds and claim.record()["holds"] is False
    console = Console(file=io.StringIO(), width=100)
    console.print(verdict_table([claim], "Theory"))
    assert "x -> [y]" in console.file.getvalue() and "no" in console.file.getvalue()
