"""Every bench runs in little, and its ratios are of what it measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.bench import attention, ista, peers, timing
from crate_jax.bench.__main__ import main
from crate_jax.models import crate, crate_alpha

LITTLE = {
    "attention": ["--batch", "1", "--tokens", "8", "--heads", "2", "--head-size", "4"],
    "ista": ["--tokens", "8", "--width", "4"],
}
PEERS = ["--variant", "B/4", "--size", "8", "--batch", "2", "--rounds", "1"]


@pytest.fixture(autouse=True)
def little(monkeypatch):
    sizes = {"width": 16, "depth": 2, "heads": 2}
    monkeypatch.setitem(crate.VARIANTS, "B", sizes)
    monkeypatch.setitem(crate_alpha.VARIANTS, "B", sizes)
    monkeypatch.setattr(peers, "OURS", {"ours": {}})
    monkeypatch.setattr(timing, "matmul_rate", lambda: 1e9)
    monkeypatch.setattr(timing, "copy_rate", lambda: 1e9)


@pytest.mark.parametrize("name", LITTLE)
def test_a_bench_prints_and_writes_what_it_measured(name, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert main([name, *LITTLE[name], "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    printed, first = capsys.readouterr().out, next(iter(rows.values()))
    for way, row in rows.items():
        assert row["seconds"] > 0
        line = next(x for x in printed.splitlines() if x.strip().startswith(f"{way}  "))
        assert f"{row['seconds'] / first['seconds']:.2f}" in line


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["speed"], "there is no bench 'speed'; write one of step, attention"),
        (["attention", "--batch", "0"], "must be at least 1"),
        (["ista", "--rounds", "0"], "must be at least 1"),
        (["peers", "--rounds", "0"], "--rounds must be at least 1"),
        (["peers", "--variant", "X/4"], "no variant 'X/4'"),
        (["input", "--photos", "0"], "--photos must be at least 1"),
        (["input", "--source", "tfds:mnist", "--data-dir", "/nowhere"], "not prepared"),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(words, sentence, capsys):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("family", ["crate", "crate_alpha"])
def test_the_plain_port_has_our_loss_for_our_weights(family, tmp_path):
    path = tmp_path / "rows.json"
    assert main(["peers", *PEERS, "--family", family, "--json", str(path)]) == 0
    losses = [row["loss"] for row in json.loads(path.read_text()).values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["crate", "crate_alpha"])
def test_pytorch_has_our_loss_for_our_weights(family, tmp_path):
    pytest.importorskip("torch")
    import sys

    path = tmp_path / "rows.json"
    words = ["--family", family, "--torch-python", sys.executable, "--json", str(path)]
    assert main(["peers", *PEERS, *words]) == 0
    losses = [row["loss"] for row in json.loads(path.read_text()).values()]
    assert len(losses) == len(peers.OURS) + 3
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_the_input_pipeline_beside_what_a_step_consumes(tmp_path, capsys):
    path = tmp_path / "found.json"
    words = ["--photos", "2", "--size", "16", "--seconds", "0", "--workers", "0"]
    assert main(["input", *words, "--model", "crate", "--variant", "B/4", "--json", str(path)]) == 0
    found, printed = json.loads(path.read_text()), capsys.readouterr().out
    rate = found["pipeline"]["0"]["images_per_cpu_s"]
    row = found["appetite"]["crate B/4"]
    v5e = row["v5e"]
    assert v5e["images_per_s"] == pytest.approx(0.5 * 197e12 / row["flops"])
    assert v5e["cores"] == pytest.approx(v5e["images_per_s"] / rate)
    assert "decode" in printed and "16 cores for 4 chips" in printed
    for stage in found["stages"].values():
        assert stage["images_per_s"] * stage["ms"] == pytest.approx(1e3)


def test_formulations_agree():
    y = jax.random.normal(jax.random.key(0), (5, 4))
    D = jax.random.normal(jax.random.key(1), (4, 16)) / 4
    want = ista.published(y, D)
    for function in ista.FORMULATIONS.values():
        np.testing.assert_allclose(function(y, D), want, atol=1e-6)
    assert ista.products("Gram matrix", 10, 4) == 6 * (10 * 64 + 10 * 256 + 4 * 256)


def test_medians_are_of_rounds_in_turn():
    order = []
    ways = {
        "a": lambda: order.append("a") or float(len(order)),
        "b": lambda: order.append("b") or jnp.zeros(()),
    }
    seconds = timing.alternate(ways, 2)
    assert order == ["a", "b"] * 3 and seconds["a"] == 4.0  # of 3 and 5; the first warmed up


def test_what_attention_is_predicted_to_take():
    parser = type("Args", (), {
        "batch": 2, "tokens": 3, "heads": 5, "head_size": 7, "dtype": "float32",
    })  # fmt: skip
    square = 2 * 5 * 9
    forward = attention.predict(parser, "einsum", False, 1e3, 1e3)
    assert forward == pytest.approx((2 * 2 * square * 7 + 4 * square * 4) / 1e3)
