"""The bench of the game runs in little, and its PyTorch peer plays for the same payoffs."""

import json

import jax
import numpy as np
import pytest

from crate_jax.bench.__main__ import main
from crate_jax.bench.games import Experiment
from crate_jax.bench.peers import pytorch_games
from crate_jax.studies.games.settings import Settings


@pytest.mark.slow
def test_it_times_the_whole_experiment(tmp_path, capsys):
    path = tmp_path / "rows.json"
    argv = ["games", "--epochs", "1", "--inner-steps", "2", "--rounds", "1", "--json", str(path)]
    assert main(argv) == 0
    (row,) = json.loads(path.read_text()).values()
    np.testing.assert_allclose(row["follower_steps_per_s"], 30 * 2 / row["seconds"])
    assert row["first_s"] > row["seconds"]
    assert "30 x 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra, says",
    [
        (["--rounds", "0"], "--rounds"),
        (["--peer-steps", "0"], "--peer-steps"),
        (["--inner-steps", "0"], "config.play.inner_steps"),
        (["--torch-python", "/no/python"], "--torch-python=/no/python"),
    ],
    ids=["rounds", "peer_steps", "inner_steps", "python"],
)
def test_bad_options_are_a_sentence(extra, says, capsys):
    assert main(["games", *extra]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["svd", "cholesky"])
def test_the_peer_has_the_same_payoffs(kind):
    torch = pytest.importorskip("torch")
    ours = Experiment(Settings())
    state, (X, y) = ours.start(), ours.samples
    quality, distance = pytorch_games.make_rates(torch, 1.0, kind)
    F, G = (torch.from_numpy(np.array(x)).double() for x in (state.F, state.G))
    Z = torch.from_numpy(X[0]).double() @ F.T
    classes = torch.from_numpy(y[0])
    theirs = quality(Z, classes, 3), -distance(Z, Z @ G.T @ F.T, classes, 3)
    expected = jax.jit(ours.game.payoffs)(state.F, state.G, ours.batches[0])
    np.testing.assert_allclose([float(x) for x in theirs], expected, rtol=1e-4)
