"""Metrics are read one step late, logged when due, and watched over."""

import json
import types

import numpy as np
import pytest

from crate_jax.config import TrainConfig
from crate_jax.train.metrics import MetricsWriter
from crate_jax.train.progress import Progress
from crate_jax.train.readout import NONFINITE, NonFiniteError, Readout


@pytest.fixture
def writer(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        yield writer


def _readout(tmp_path, writer, **train):
    progress = Progress(0, 100, batch_size=2)
    return Readout(TrainConfig(**train), tmp_path, writer, progress), progress


def _push(readout, step, bad=0, loss=1.0):
    rows = {"index": np.array([2 * step, 2 * step + 1]), "skipped": np.int32(step == 3)}
    readout.push(step, {"loss": np.float32(loss), "bad_steps": np.int32(bad)}, rows)


def _logged(tmp_path, name="metrics"):
    return [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]


def test_a_step_is_read_when_the_next_one_is_under_way(tmp_path, writer):
    readout, progress = _readout(tmp_path, writer, log_every=1)
    _push(readout, 1)
    assert _logged(tmp_path) == [] and progress.step == 0
    _push(readout, 2, loss=0.5)
    assert [row["step"] for row in _logged(tmp_path)] == [1] and progress.step == 1
    readout.flush()
    readout.flush()
    rows = _logged(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5)]
    assert [row["step"] for row in _logged(tmp_path, "timing")] == [1, 2]


@pytest.mark.parametrize("every, steps", [(2, [2, 3, 4]), (0, [3])])
def test_every_so_many_steps_are_logged_and_every_skipped_image(tmp_path, writer, every, steps):
    readout, progress = _readout(tmp_path, writer, log_every=every)
    for step in range(1, 6):
        _push(readout, step)
    readout.flush()
    rows = _logged(tmp_path)
    assert [row["step"] for row in rows] == steps and progress.step == 5
    assert all((row["train/skipped_images"] == 1.0) == (row["step"] == 3) for row in rows)


def test_too_many_bad_steps_in_a_row_stop_the_run_and_name_their_records(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=3)
    _push(readout, 1)
    for bad, step in enumerate((2, 3, 4), start=1):
        _push(readout, step, bad, loss=np.nan)
    with pytest.raises(NonFiniteError, match="^3 steps in a row, up to step 4,.*learning_rate"):
        readout.flush()
    rows = json.loads((tmp_path / NONFINITE).read_text())
    assert [(row["step"], row["records"]) for row in rows] == [
        (2, [4, 5]), (3, [6, 7]), (4, [8, 9]),
    ]  # fmt: skip
    assert [row["loss"] for row in rows] == ["nan"] * 3


def test_the_step_under_way_when_a_run_stops_is_logged_and_named_too(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=2, log_every=1)
    _push(readout, 1)
    for bad, step in enumerate((2, 3), start=1):
        _push(readout, step, bad, loss=np.nan)
    with pytest.raises(NonFiniteError, match="^2 steps in a row, up to step 3"):
        _push(readout, 4, bad=3, loss=np.nan)
    readout.flush()
    assert [row["step"] for row in _logged(tmp_path)] == [1, 2, 3, 4]
    assert [row["step"] for row in json.loads((tmp_path / NONFINITE).read_text())] == [2, 3, 4]


def test_what_the_devices_are_at_is_known_without_waiting(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer)
    assert not readout.under_way()
    metric = types.SimpleNamespace(is_ready=lambda: ready)
    readout.push(1, {"loss": metric}, {})
    for ready in (False, True):
        assert readout.under_way() != ready


def test_fewer_in_a_row_are_borne(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=3)
    for step, bad in enumerate((1, 2, 0, 1, 2, 0), start=1):
        _push(readout, step, bad, loss=np.nan if bad else 1.0)
    readout.flush()
    assert not (tmp_path / NONFINITE).exists()


def test_zero_bears_any_number(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=0)
    for step in range(1, 9):
        _push(readout, step, step, loss=np.nan)
    readout.flush()


def test_run_again_it_bears_as_many_more(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=3)
    for bad, step in ((4, 10), (5, 11), (6, 12)):
        _push(readout, step, bad, loss=np.nan)
    with pytest.raises(NonFiniteError, match="^6 steps in a row, up to step 12"):
        readout.flush()


def test_bad_steps_before_a_resume_are_counted_in_the_sentence(tmp_path, writer):
    readout, _ = _readout(tmp_path, writer, max_bad_steps=3)
    _push(readout, 9, bad=3, loss=np.nan)
    with pytest.raises(NonFiniteError, match="^3 steps in a row, up to step 9"):
        readout.flush()
    assert len(json.loads((tmp_path / NONFINITE).read_text())) == 1
