"""Every bench runs in little, and its ratios are of what it predicted and measured."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from crate_jax.bench import attention, cache, donation, ista, ladder, stalls, timing
from crate_jax.bench.__main__ import main
from crate_jax.models import crate

STEP = ["--model", "crate", "--variant", "B/4", "--size", "8", "--batch", "2"]
LITTLE = {
    "attention": ["--batch", "1", "--tokens", "8", "--heads", "2", "--head-size", "4"],
    "ista": ["--tokens", "8", "--width", "4"],
}


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setitem(crate.VARIANTS, "B", {"width": 16, "depth": 1, "heads": 2})
    monkeypatch.setattr(timing, "matmul_rate", lambda **_: 1e9)
    monkeypatch.setattr(timing, "copy_rate", lambda: 1e9)


@pytest.mark.parametrize("name", LITTLE)
def test_a_bench_prints_and_writes_what_it_predicted_and_measured(name, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert main([name, *LITTLE[name], "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    printed, first = capsys.readouterr().out, next(iter(rows.values()))
    assert printed.startswith("Predicted ratios: ")  # before anything is timed
    for way, row in rows.items():
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        line = next(x for x in printed.splitlines() if x.strip().startswith(f"{way}  "))
        assert f"{row['seconds'] / first['seconds']:.2f}" in line
        assert f"{row['predicted'] / first['predicted']:.2f}" in line


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["speed"], "there is no bench 'speed'; write one of step, attention"),
        (["attention", "--batch", "0"], "must be at least 1"),
        (["ista", "--rounds", "0"], "must be at least 1"),
        (["donation", "--rounds", "0"], "--rounds must be at least 1"),
        (["stalls", "--steps", "0"], "--steps must be at least 1"),
        (["cache", "--variant", "X/4"], "no variant 'X/4'"),
        (["input", "--source", "tfds:mnist", "--data-dir", "/nowhere"], "not prepared"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(words, sentence, capsys):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_state_that_is_kept_is_there_twice(monkeypatch, tmp_path):
    @struct.dataclass
    class State:
        params: jax.Array

    def make_step(config, donate):
        def step(state, data, key):
            return State(state.params * 2), data.sum()

        state, data = State(jnp.ones(1000)), jnp.ones(10)
        jitted = jax.jit(step, donate_argnums=(0,) if donate else ())
        compiled = jitted.lower(state, data, jax.random.key(0)).compile()
        return SimpleNamespace(step=step), compiled, state, data, 0.0

    monkeypatch.setattr(donation, "make_step", make_step)
    path = tmp_path / "rows.json"
    assert main(["donation", *STEP, "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    kept, donated = rows["kept"], rows["donated"]
    assert kept["predicted_gib"] - donated["predicted_gib"] == pytest.approx(4000 / 2**30)
    assert kept["peak_gib"] - donated["peak_gib"] == pytest.approx(4000 / 2**30)
    assert kept["predicted"] == donated["predicted"]


def test_a_loop_reads_the_metrics_of_this_step_or_of_the_one_before(monkeypatch):
    read = []
    monkeypatch.setattr(stalls.jax, "device_get", read.append)
    data = {"image": np.zeros((1, 2, 2, 3), np.float32), "label": np.zeros(1, np.int32)}
    for behind, want in ((True, [None, 1, 2]), (False, [1, 2, 3])):
        read.clear()
        stalls.Loop(lambda state, *_: (state + 1, state + 1), 0, data, 3, behind)()
        assert read == want


def test_what_a_stall_is_predicted_to_cost():
    """3 s of step and 1 s of batch: 3 s overlapped, 4 s in turn; a CPU has nothing to overlap."""
    assert stalls.predict(3.0, 1.0, on_cpu=False) == {stalls.BEHIND: 3.0, stalls.ONCE: 4.0}
    assert stalls.predict(3.0, 1.0, on_cpu=True) == {stalls.BEHIND: 4.0, stalls.ONCE: 4.0}


def test_a_filled_cache_is_predicted_to_leave_tracing_and_lowering(monkeypatch, capsys):
    seen = []

    def compile_once(args, directory):
        filled = directory in seen
        seen.append(directory)
        return {"lower_s": 1.0, "seconds": 1.5 if filled else 4.0}

    monkeypatch.setattr(cache, "in_a_fresh_process", compile_once)
    assert main(["cache", *STEP, "--rounds", "2"]) == 0
    assert len(set(seen)) == 3  # one to predict from, two rounds of two
    told = capsys.readouterr().out
    assert "Predicted ratios: empty 1.00, filled 0.25." in told
    assert "0.38" in told


def test_the_ladder_is_one_table_of_all(monkeypatch, tmp_path, capsys):
    path = tmp_path / "found.json"
    little = {name: [*LITTLE[name], "--rounds", "1"] for name in LITTLE}
    monkeypatch.setattr(ladder, "LADDER", little)
    assert main(["ladder", "--json", str(path), "--benches", *LITTLE]) == 0
    found, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert list(found) == list(little)
    for rows in found.values():
        first = next(iter(rows.values()))
        for way, row in rows.items():
            line = next(x for x in printed.splitlines() if f"  {way}  " in x)
            assert f"{row['predicted'] / first['predicted']:.2f}" in line
            assert f"{row['seconds'] / first['seconds']:.2f}" in line


def test_the_ladder_takes_the_stages_that_something_was_expected_of():
    stages = {
        "read": {"ms": 1.0, "expected_ms": None},
        "decode": {"ms": 2.0, "expected_ms": None},
        "decode to half size": {"ms": 1.5, "expected_ms": 1.0},
    }
    rows = ladder.rows_of({"stages": stages})
    assert list(rows) == ["decode", "decode to half size"]
    assert timing.ratios(rows, "decode to half size") == ("0.50", "0.75")


def test_formulations_agree():
    y = jax.random.normal(jax.random.key(0), (5, 4))
    D = jax.random.normal(jax.random.key(1), (4, 16)) / 4
    want = ista.published(y, D)
    for function in ista.FORMULATIONS.values():
        np.testing.assert_allclose(function(y, D), want, atol=1e-6)
    assert ista.products("Gram matrix", 10, 4) == 6 * (10 * 64 + 10 * 256 + 4 * 256)


def test_the_median_the_least_and_the_most_are_of_rounds_in_turn():
    order, ticks = [], iter([9.0, 3.0, 5.0, 4.5])  # the first warms up
    ways = {
        "a": lambda: order.append("a") or next(ticks),
        "b": lambda: order.append("b") or jnp.zeros(()),
    }
    rows = timing.alternate(ways, 3)
    assert [sorted(order[i : i + 2]) for i in range(0, 8, 2)] == [["a", "b"]] * 4
    assert rows["a"] == {"seconds": 4.5, "fastest": 3.0, "slowest": 5.0}


def test_no_way_always_follows_the_same_other():
    order = []
    timing.alternate({name: lambda name=name: order.append(name) or 1.0 for name in "abc"}, 5)
    assert len({tuple(order[i : i + 3]) for i in range(0, 18, 3)}) > 2


def test_what_attention_is_predicted_to_take():
    parser = type("Args", (), {
        "batch": 2, "tokens": 3, "heads": 5, "head_size": 7, "dtype": "float32",
    })  # fmt: skip
    square = 2 * 5 * 9
    forward = attention.predict(parser, "einsum", False, 1e3, 1e3)
    assert forward == pytest.approx((2 * 2 * square * 7 + 4 * square * 4) / 1e3)
