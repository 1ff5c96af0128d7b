"""Reads the metrics of a step once the next one is under way: logs, shows, and watches over them.

A step that was not finite has changed nothing (``optim.guard``); after too many in a row the run
stops here.
"""

import collections
import json
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array

from crate_jax.config import TrainConfig
from crate_jax.train.metrics import TRAIN, MetricsWriter
from crate_jax.train.progress import Progress

NONFINITE = "nonfinite.json"


class NonFiniteError(RuntimeError):
    """Too many steps in a row whose loss or gradient was not finite."""


class Readout:
    """The metrics of the last step dispatched.

    A line is written every ``log_every`` steps, and whenever a batch had images to skip.

    Args:
      train: how often to log, and how many bad steps in a row to bear.
      workdir: where the records of bad batches are noted.
      writer, progress: where the metrics go.
    """

    def __init__(
        self, train: TrainConfig, workdir: pathlib.Path, writer: MetricsWriter, progress: Progress
    ):
        self._train, self._workdir = train, workdir
        self._writer, self._progress = writer, progress
        self._pending: tuple | None = None
        self._recent = collections.deque(maxlen=train.max_bad_steps + 1)  # and one under way

    def push(self, step: int, metrics: Mapping[str, Array], rows: Mapping[str, np.ndarray]) -> None:
        """Keeps the metrics of update ``step``, from ``rows``, and reads those kept before."""
        before, self._pending = self._pending, (step, metrics, rows)
        self._read(before)

    def flush(self) -> None:
        """Reads the metrics kept, waiting for their step.

        Raises:
          NonFiniteError: with the steps and the records of their batches.
        """
        before, self._pending = self._pending, None
        self._read(before)

    def under_way(self) -> bool:
        """Whether the devices are still at the step whose metrics are kept."""
        if self._pending is None:
            return False
        _, metrics, _ = self._pending
        return not all(value.is_ready() for value in metrics.values())

    def _read(self, kept: tuple | None) -> None:
        if kept is None:
            return
        step, bad = self._note(*kept)
        bearable = self._train.max_bad_steps
        if bad and bearable and bad % bearable == 0:
            under_way, self._pending = self._pending, None
            if under_way is not None:  # what is saved has seen this step, too
                self._note(*under_way)
            self._abort(step, bad)

    def _note(
        self, step: int, metrics: Mapping[str, Array], rows: Mapping[str, np.ndarray]
    ) -> tuple[int, int]:
        """Logs and shows the metrics of a step; returns it, and the bad ones in a row up to it."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        logged = self._train.log_every > 0 and step % self._train.log_every == 0
        if logged or rows["skipped"]:
            scalars = values | {"skipped_images": float(rows["skipped"])}
            self._writer.write(step, {f"{TRAIN}{name}": v for name, v in scalars.items()})
        if logged:
            self._writer.write(step, self._progress.timing(step), file="timing")
        shown = {name: values[name] for name in ("loss", "accuracy") if name in values}
        self._progress.update(step, shown, line=logged)
        self._recent.append({"step": step, "records": rows["index"], **values})
        return step, int(values["bad_steps"])

    def _abort(self, step: int, bad: int) -> None:
        process = jax.process_index()  # each has its own rows of the batches
        path = self._workdir / (f"{process}_{NONFINITE}" if process else NONFINITE)
        bad_rows = [row for row in self._recent if row["bad_steps"]]
        rows = [{k: _json(v) for k, v in row.items()} for row in bad_rows]
        path.write_text(json.dumps(rows, indent=1) + "\n")
        raise NonFiniteError(
            f"{bad} steps in a row, up to step {step}, had a loss or gradient that is not finite; "
            f"the parameters are those of the last good step, and saved. The records of the "
            f"batches are in {path}. The same command goes on behind them; to change "
            f"config.optimizer.learning_rate or .clip_norm, take a new --workdir and "
            f"config.train.init_from={str(self._workdir)!r}."
        )


def _json(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
