"""The input pipeline's bench on a few small photographs, and its arithmetic by hand."""

import json

import cv2
import numpy as np
import pytest

from crate_jax import models
from crate_jax.bench import appetite
from crate_jax.bench import input as bench

SMALL = ["--photos", "8", "--size", "16", "--seconds", "0", "--workers", "0"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "PHOTO_SIDES", (30, 40))
    monkeypatch.setattr(bench, "PHOTO_NAMES", 2)
    monkeypatch.setattr(bench, "BATCH", 8)
    monkeypatch.setattr(bench, "STEPS", (("crate", "B/16"),))
    monkeypatch.setitem(models.MODELS["crate"][1], "B", {"width": 16, "depth": 2, "heads": 2})


def test_every_stage_of_a_run_without_data(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert bench.main([*SMALL, "--randaugment", "torchvision", "--json", str(path)]) == 0
    found, told = json.loads(path.read_text()), capsys.readouterr().out
    assert found["photographs"]["count"] == 8 and found["photographs"]["pixels"] == 30 * 40
    stages = found["stages"]
    assert len(stages) == 13 + 2 + 15 + 14
    for name, stage in stages.items():
        assert stage["images_per_s"] == pytest.approx(1e3 / stage["ms"]), name
        assert (stage["expected_ms"] is None) == (stage["reason"] == ""), name
    parts = ("crop", "resize bilinear", "RandAugment torchvision")
    want = sum(stages[part]["ms"] for part in parts) + stages["flip"]["ms"] / 2
    assert stages["train transform"]["expected_ms"] == pytest.approx(want)
    rate = found["pipeline"]["0"]["images_per_cpu_s"]
    row = found["appetite"]["crate B/16"]
    assert row["v5e"]["images_per_s"] == pytest.approx(197e12 * 0.5 / row["flops"])
    assert row["v5e"]["cores"] == pytest.approx(row["v5e"]["images_per_s"] / rate)
    assert "decode to half size" in told and "16 cores for 4 chips" in told


def test_the_photographs_written_have_the_spectrum_of_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PHOTO_SIDES", (96, 128))
    bench.write_photographs(tmp_path, 4)
    files = sorted((tmp_path / "train" / "photo").iterdir())
    grey = np.stack([cv2.imread(str(f), cv2.IMREAD_GRAYSCALE) for f in files]).astype(float)
    assert grey.shape == (8, 96, 128) and 35 < grey.std() < 75
    np.testing.assert_array_equal(grey[:4], grey[4:])  # a link to each
    assert len(np.unique(grey[:4], axis=0)) == 4
    power = (np.abs(np.fft.rfft(grey - grey.mean(), axis=2)) ** 2).mean((0, 1))
    # Amplitude 1 / f in the plane: power falls as 1 / f along a line, fourfold over two octaves.
    assert 0.6 < power[3:6].mean() / power[12:24].mean() / 4.35 < 1.7
    bench.write_photographs(tmp_path / "again", 4)
    for file in files:
        assert file.read_bytes() == (tmp_path / "again/train/photo" / file.name).read_bytes()


def test_resizing_costs_its_taps_over_all_rows_then_all_columns():
    """Enlarging 8 x 8 to 16: 8 rows of 16, then 16 of 16, a tap each; shrinking 32 doubles taps."""
    patch = np.zeros((8, 8, 3), np.uint8)
    assert bench._resize_work([patch], 16, 1) == 16 * 8 + 16 * 16
    assert bench._resize_work([patch], 16, 4) == 4 * (16 * 8 + 16 * 16)
    assert bench._resize_work([np.zeros((32, 8, 3), np.uint8)], 16, 1) == 16 * 32 + 16 * 16 * 2


def test_the_appetite_by_hand():
    """A peak of 200 TFLOP/s, half of it reached, 0.1 TFLOP an image: 1,000 images a second."""
    found = appetite.appetite(0.1e12, 200e12, 0.5, images_per_core_s=400.0)
    assert found == {"images_per_s": 1000.0, "cores": 2.5}


def test_the_flops_of_an_image_by_hand():
    """CRATE-alpha-B/16: 18 d^2 + 2 N d multiply-adds a token and layer, and as many twice back."""
    d, N, layers = 768, 197, 12
    body = layers * N * (18 * d * d + 2 * N * d)
    patches, head = 196 * 16 * 16 * 3 * d, 1000 * d
    # Nobody asks for the gradient of the images.
    want = 2 * (3 * (body + head) + 2 * patches)
    assert appetite.flops_an_image("crate_alpha", "B/16", 224) == pytest.approx(want, rel=0.005)


@pytest.mark.parametrize(
    "rate, sentence",
    [
        (1e6, "a: 16 cores for 4 chips feed every chip."),
        (150.0, "feed all but v6e (24), h100 (26), h200 (26)."),
        (1.0, "are too few for every chip: v4 (1100)"),
    ],
)
def test_the_verdict(rate, sentence):
    """0.5 TFLOP an image at half the peak: 918 TFLOP/s take 918 images/s, four chips 3,672."""
    first, *_, hosts = appetite.verdicts(appetite.appetites({"a": 0.5e12}, 0.5, rate))
    assert sentence in first
    assert "v5e 112 for 4, v6e 180 for 4, h100 208 for 8" in hosts


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--photos", "0"], "--photos must be at least 1; got 0"),
        (["--size", "0"], "--size must be at least 1; got 0"),
        (["--seconds", "-1"], "--seconds must be at least 0; got -1"),
        (["--workers", "-1"], "--workers must be at least 0; got -1"),
        (["--mfu", "50"], "--mfu is a share of the peak, above 0 and up to 1; got 50"),
        (["--data-dir", "D"], "--data-dir wants --source=tfds:NAME"),
        (["--variant", "L/14"], "--model and --variant name one step together"),
        (["--model", "crate", "--variant", "X/4"], "no variant 'X/4'"),
        (["--source", "digits"], "nothing to decode; give tfds:NAME or folder:PATH"),
        (["--source", "folder:nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(words, sentence, capsys):
    assert bench.main([*SMALL, *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and "Traceback" not in told
