"""The peers are the same model: one loss for common weights; and who is missing is named."""

import json
import os
import sys

import numpy as np
import pytest

from crate_jax.bench import peers, timing
from crate_jax.bench.__main__ import main
from crate_jax.models import crate, crate_alpha

PEERS = ["peers", "--variant", "B/4", "--size", "8", "--batch", "2", "--rounds", "1"]
TORCH_PYTHON = "CRATE_JAX_TORCH_PYTHON"
"""Of the environment: an interpreter that has torch and numpy."""


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def little(monkeypatch):
    sizes = {"width": 16, "depth": 1, "heads": 2}
    monkeypatch.setitem(crate.VARIANTS, "B", sizes)
    monkeypatch.setitem(crate_alpha.VARIANTS, "B", sizes)
    monkeypatch.setattr(timing, "matmul_rate", lambda **_: 1e9)
    monkeypatch.setattr(timing, "copy_rate", lambda: 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["crate", "crate_alpha"])
def test_the_plain_port_has_our_loss_for_our_weights(family, tmp_path):
    path = tmp_path / "rows.json"
    words = ["--family", family, "--ways", "ours", peers.PORT, "--json", str(path)]
    assert main([*PEERS, *words]) == 0
    ours, port = json.loads(path.read_text()).values()
    np.testing.assert_allclose(port["loss"], ours["loss"], rtol=1e-5)
    # Five tokens of 16: 4 and 5 products of d x d in CRATE's layer, equal numbers in CRATE-alpha's.
    assert (port["predicted"] > ours["predicted"]) == (family == "crate")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["crate", "crate_alpha"])
def test_pytorch_has_our_loss_for_our_weights(family, tmp_path):
    if TORCH_PYTHON not in os.environ:
        pytest.skip(f"{TORCH_PYTHON} names no interpreter that has torch")
    path = tmp_path / "rows.json"
    words = ["--family", family, "--torch-python", os.environ[TORCH_PYTHON], "--json", str(path)]
    assert main([*PEERS, *words]) == 0
    rows = json.loads(path.read_text())
    assert set(rows) == set(peers.WAYS) - {"PyTorch compiled"}
    losses = [row["loss"] for row in rows.values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--rounds", "0"], "--rounds must be at least 1; got 0"),
        (["--variant", "X/4"], "no variant 'X/4'"),
        (["--ways", "PyTorch eager"], "needs --torch-python"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(words, sentence, capsys):
    assert main([*PEERS, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(peers.ConfigError, match="--torch-python=nowhere cannot be run: No such"):
        peers.Torch("nowhere", tmp_path, {})


def test_an_interpreter_that_ends_is_told_and_closed(tmp_path, monkeypatch):
    peer = peers.Torch(sys.executable, tmp_path / "no.npz", {})  # no torch, or no weights: it ends
    peer._process.wait()
    with pytest.raises(peers.ConfigError, match="PyTorch did not answer; does --torch-python"):
        peer.ask("loss")
    peer.close()
