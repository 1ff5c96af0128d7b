"""What a killed and resumed run leaves behind in its files of curves."""

import json
import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crate_jax.train.metrics import MetricsWriter, drop_after


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_that_will_be_written_again_are_dropped(tmp_path):
    """Resumed at 20: update 20 is done, the evaluation at 20 comes again."""
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "train/loss": 1.0}, {"step": 10, "eval/loss": 2.0},
        {"step": 20, "train/loss": 3.0}, {"step": 20, "eval/loss": 4.0},
        {"step": 30, "train/loss": 5.0},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    drop_after(path, 20)
    assert _rows(path) == lines[:3]
    drop_after(path, 0)
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_last_line_cut_short_by_a_kill_goes_and_the_rest_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/lo')
    drop_after(path, 5)
    assert _rows(path) == [{"step": 1, "train/loss": 1.0}]


def test_no_file_is_no_work(tmp_path):
    drop_after(tmp_path / "metrics.jsonl", 5)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_null_in_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": math.nan, "train/norm": math.inf, "train/rate": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert _rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": None, "train/norm": None, "train/rate": 0.5}
    ]


def test_speeds_go_to_a_file_of_their_own(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(3, {"timing/seconds": 2.0}, file="timing")
        assert _rows(tmp_path / "timing.jsonl") == [{"step": 3, "timing/seconds": 2.0}]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def _as_tensorboard_reads(workdir):
    reader = EventAccumulator(str(workdir))
    reader.Reload()
    return {
        tag: [(event.step, round(event.value, 6)) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_reads_the_curves_of_a_run_that_was_killed_and_resumed(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, {"train/loss": float(step)})
    assert _as_tensorboard_reads(tmp_path)["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        for step in (3, 4):
            writer.write(step, {"train/loss": 10.0 * step, "eval/accuracy": 0.5})
    curves = _as_tensorboard_reads(tmp_path)
    assert curves["train/loss"] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert curves["eval/accuracy"] == [(3, 0.5), (4, 0.5)]
    rows = [(row["step"], row["train/loss"]) for row in _rows(tmp_path / "metrics.jsonl")]
    assert rows == [(1, 1), (2, 2), (3, 30), (4, 40)]
