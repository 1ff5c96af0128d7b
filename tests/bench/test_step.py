"""The benchmark: its sentences, its predictions, and what its GFLOP/s are of."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from crate_jax import run
from crate_jax.bench import step as bench
from crate_jax.bench import timing
from crate_jax.models import vit

SIZES = ["--model", "vit", "--variant", "B/4", "--size", "8", "--batch", "2", "--rounds", "1"]


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(vit.VARIANTS, "B", {"width": 16, "depth": 1, "heads": 2})
    monkeypatch.setattr(timing, "matmul_rate", lambda dtype: {"float32": 1e9}[dtype])
    monkeypatch.setattr(timing, "copy_rate", lambda: 1e9)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--variant", "X/4"], "no variant 'X/4'"),
        (["--size", "9"], "image_size=9 does not divide into patches of 4x4"),
        (["--size", "0"], "config.data.image_size must be at least 1; got 0"),
        (["--batch", "0"], "config.train.batch_size must be at least 1; got 0"),
        (["--rounds", "0"], "--rounds must be at least 1; got 0"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(words, sentence, capsys):
    assert bench.main([*SIZES, *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and "Traceback" not in told


@pytest.mark.slow
def test_every_way_is_credited_with_the_flops_of_a_step_without_remat(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "peak_flops", lambda kind, dtype: 1e12)
    path = tmp_path / "rows.json"
    ways = ["unrolled", "scan, remat full"]
    assert bench.main([*SIZES, "--json", str(path), "--ways", *ways]) == 0
    rows = json.loads(path.read_text())
    flops = run.step_flops(bench.make_config("vit", "B/4", 8, 2, {}))
    for way in ways:
        assert rows[way]["gflops_per_s"] * rows[way]["seconds"] * 1e9 == pytest.approx(flops)
        assert rows[way]["mfu"] == pytest.approx(rows[way]["gflops_per_s"] / 1e3)
    # The layers' forward products, a third of the step's, once more.
    assert 1 < rows[ways[1]]["predicted"] / rows[ways[0]]["predicted"] < 4 / 3


def test_a_step_is_predicted_by_its_products_and_its_state():
    """A product of 4 x 8 x 2 of 2 FLOPs; 8 x 2 parameters and as many moments of 4 bytes."""

    @struct.dataclass
    class State:
        params: jax.Array
        moments: jax.Array

    state, x = State(jnp.ones((8, 2)), jnp.ones((8, 2))), jnp.ones((4, 8))
    seconds = bench.predict(lambda s, x: x @ s.params, state, x, rates=bench.Rates(1e3, 1e2))
    assert seconds == pytest.approx(2 * 4 * 8 * 2 / 1e3 + 2 * (2 * 64 + 64) / 1e2)
