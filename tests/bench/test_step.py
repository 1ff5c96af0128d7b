"""The benchmark: its sentences, and what its GFLOP/s are of."""

import json

import pytest

from crate_jax import run
from crate_jax.bench import step as bench
from crate_jax.models import vit

SIZES = ["--model", "vit", "--variant", "B/4", "--size", "8", "--batch", "2", "--rounds", "1"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(vit.VARIANTS, "B", {"width": 16, "depth": 2, "heads": 2})


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


def test_every_way_is_credited_with_the_flops_of_a_step_without_remat(tmp_path):
    path = tmp_path / "rows.json"
    ways = ["unrolled", "scan, remat full"]
    assert bench.main([*SIZES, "--json", str(path), "--ways", *ways]) == 0
    rows = json.loads(path.read_text())
    flops = run.step_flops(bench.make_config("vit", "B/4", 8, 2, {}))
    for way in ways:
        assert rows[way]["gflops_per_s"] * rows[way]["step_s"] * 1e9 == pytest.approx(flops)
