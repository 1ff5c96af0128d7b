"""The formulations agree with each other, and are timed and told."""

import json

import numpy as np
import pytest

from crate_jax.bench import coding_rates, timing
from crate_jax.bench.__main__ import main


@pytest.mark.slow
def test_it_prints_and_writes_every_formulation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "matmul_rate", lambda **_: 1e9)
    path = tmp_path / "rows.json"
    words = ["--features", "6", "--samples", "36", "--classes", "18", "--rounds", "1"]
    assert main(["coding_rates", *words, "--svd", "--one-hot", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert list(rows) == ["loop", "ours", "d x d", "slogdet", "svd", "one-hot"]
    printed = capsys.readouterr().out
    assert all(name in printed and rows[name]["seconds"] > 0 for name in rows)


def test_the_loop_has_the_value_and_gradient_of_a_loop_in_numpy(x64):
    rng = np.random.default_rng(0)
    N, d, K = 11, 4, 3
    Z, labels = rng.normal(size=(N, d)), np.array([0, 1, 1, 2, 2, 2, 0, 0, 0, 1, 2])
    value, gradient = coding_rates.make_loop(labels, K)(Z)
    inverse = np.linalg.inv(np.eye(d) + d / (N * 0.5) * Z.T @ Z)
    want, slope = -0.5 * np.linalg.slogdet(inverse)[1], d / (N * 0.5) * Z @ inverse
    for k in range(K):
        Z_k = Z[labels == k]
        n = len(Z_k)
        inverse = np.linalg.inv(np.eye(d) + d / (n * 0.5) * Z_k.T @ Z_k)
        want += n / (2 * N) * np.linalg.slogdet(inverse)[1]
        slope[labels == k] -= d / (N * 0.5) * Z_k @ inverse
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--samples", "5"], "--samples=5 leaves some of --classes=100 empty"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(words, sentence, capsys):
    assert main(["coding_rates", *words]) == 2
    assert sentence in capsys.readouterr().err
