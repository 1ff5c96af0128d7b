"""The bench of the sweep runs in little, and its PyTorch peer is the same model."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from crate_jax.bench.__main__ import main
from crate_jax.bench.peers import pytorch_backcopy
from crate_jax.models.backcopy import BackcopyTransformer

LITTLE = ["--layers", "1", "--width", "4", "--length", "4", "--batch", "2", "--steps", "2"]


@pytest.mark.slow
def test_it_times_the_same_updates_of_every_way(tmp_path, capsys):
    path = tmp_path / "rows.json"
    argv = ["sweep", *LITTLE, "--seeds", "2", "--rounds", "1", "--json", str(path)]
    assert main(argv) == 0
    rows = json.loads(path.read_text())
    assert list(rows) == [
        "mapped, 2 devices", "mapped, 1 device", "one by one", "one by one, a call an update",
    ]  # fmt: skip
    for row in rows.values():
        np.testing.assert_allclose(row["run_steps_per_s"], 2 * 2 / row["seconds"])
    assert "one by one" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra, says",
    [
        (["--rounds", "0"], "--rounds"),
        (["--steps", "0"], "--steps"),
        (["--seeds", "0"], "seeds"),
        (["--json", "/none/rows.json"], "--json=/none/rows.json"),
    ],
    ids=["rounds", "steps", "seeds", "json"],
)
def test_bad_options_are_a_sentence(extra, says, capsys):
    assert main(["sweep", *LITTLE, *extra]) == 2
    assert says in capsys.readouterr().err


def test_an_interpreter_that_is_none_is_named(capsys):
    assert main(["sweep", *LITTLE, "--rounds", "1", "--torch-python", "/no/python"]) == 2
    assert "--torch-python=/no/python" in capsys.readouterr().err


def test_the_peer_is_the_same_model():
    torch = pytest.importorskip("torch")
    model = BackcopyTransformer(vocab=5, width=8, depth=2, length=6)
    tokens = np.random.default_rng(0).integers(0, 5, (3, 6)).astype(np.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    weights = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    with torch.no_grad():
        theirs = pytorch_backcopy.make_model(weights, 2)(torch.from_numpy(tokens).long()).numpy()
    np.testing.assert_allclose(model.apply({"params": params}, tokens), theirs, atol=2e-5)
