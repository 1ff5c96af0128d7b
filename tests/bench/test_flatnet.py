"""The bench in little, and our fit beside the peer's."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.bench import flatnet
from crate_jax.bench.__main__ import main
from crate_jax.bench.peers import pytorch_flatnet
from crate_jax.models import flatnet_descent, flatnet_fit

LITTLE = ["--points", "60", "--ambient", "4", "--dim", "1", "--iterations", "1", "--d-max", "2"]


@pytest.mark.slow
def test_it_times_a_construction(tmp_path):
    path = tmp_path / "rows.json"
    assert main(["flatnet", *LITTLE, "--rounds", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text()).values()
    assert row["steps"] > 100
    np.testing.assert_allclose(row["ms_step"], 1e3 * row["seconds"] / row["steps"])


@pytest.mark.parametrize(
    "extra, says",
    [
        (["--points", "0"], "--points"), (["--rounds", "0"], "--rounds"),
        (["--torch-python", "/no/python"], "--torch-python=/no/python"),
    ],
    ids=["points", "rounds", "torch"],
)  # fmt: skip
def test_bad_options_are_a_sentence(extra, says, capsys):
    assert main(["flatnet", *LITTLE, *extra]) == 2
    assert says in capsys.readouterr().err


def test_predicted_multiplications_of_one_step():
    ours, theirs = flatnet.multiplications(100, 3, 1)
    assert ours == 2 * 100 * (3 + 3 + 1) + 1 / 3
    assert theirs > ours


@pytest.fixture(scope="module")
def theirs():
    """What ``golden/make_flatnet.py`` had from the peer in float64."""
    with np.load(pathlib.Path(__file__).with_name("golden") / "flatnet_fit.npz") as file:
        return dict(file)


def test_the_fit_is_the_peers_step_for_step(x64, theirs):
    X = theirs["X"]
    points = flatnet_fit.Points(jnp.asarray(X.T)[None], jnp.ones((1, len(X))))
    descent = flatnet_descent.riemannian_adam()
    fit = jax.jit(lambda *args, steps: flatnet_fit.fit_patch(*args, descent, max_steps=steps))
    for name, steps in (("first", 3), ("last", 1000)):
        start, r = jnp.asarray(theirs["start"]), jnp.asarray(theirs["r"])
        ours = fit(points, jnp.asarray(X[0]), start, r, steps=steps)
        assert ours.steps == theirs[f"{name}_steps"]
        for field in ("U", "V", "loss", "error", "spread", "mu"):
            expected = theirs[f"{name}_{field}"]
            np.testing.assert_allclose(getattr(ours, field), expected, rtol=1e-8, atol=1e-10)


def test_the_peer_fits_as_when_the_file_was_made(theirs):
    torch = pytest.importorskip("torch")
    X, start, r = (theirs[name] for name in ("X", "start", "r"))
    U, V, loss, *_ = pytorch_flatnet.fit(
        *map(torch.from_numpy, (X, X[0], start)), float(r), max_steps=3
    )
    np.testing.assert_allclose(U, theirs["first_U"], rtol=1e-8)
    np.testing.assert_allclose(V, theirs["first_V"], rtol=1e-8)
    np.testing.assert_allclose(loss, theirs["first_loss"], rtol=1e-8)
