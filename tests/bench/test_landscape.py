"""All ways of the landscape's bench come to the same ends, and their rates are of its seconds."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from crate_jax.bench import landscape
from crate_jax.bench.__main__ import main
from crate_jax.studies.landscape.problem import Problem

LITTLE = ["--sizes", "2", "3", "--dimension", "3", "--starts", "4", "--steps", "2", "--block", "3"]


def test_all_ways_come_to_the_same_ends(compiled_in_haste, x64):
    problem = Problem((2, 3), 3, 0.25, 0.1)
    ways = landscape._ways(problem, SimpleNamespace(starts=4, steps=2, block=3))
    want = np.asarray(ways["mapped"]())
    for way, climb in ways.items():
        ends = climb()
        ends = [np.asarray(end).reshape(-1, 5, 3) for end in ends]
        np.testing.assert_allclose(np.concatenate(ends), want, atol=1e-12, err_msg=way)


def test_rates_are_of_the_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(landscape, "_ways", lambda *_: {"a": lambda: 2.0, "b": lambda: 0.5})
    path = tmp_path / "rows.json"
    assert main(["landscape", *LITTLE, "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert (rows["a"]["starts_per_s"], rows["b"]["starts_per_s"]) == (2.0, 8.0)
    assert "classes of [2, 3] in 3 dimensions" in capsys.readouterr().out
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--starts", "0"], "--starts, --steps and --block must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--sizes", "3"], "config.sizes must be two or more class sizes"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(words, sentence, capsys):
    assert main(["landscape", *words]) == 2
    assert sentence in capsys.readouterr().err
