"""A run's curves on disk: ``metrics.jsonl``, ``timing.jsonl`` and TensorBoard event files.

``metrics.jsonl`` holds what the run computed, one object a line, ``{"step": 10, "train/loss":
1.2}``: a run that was killed and resumed leaves the same file as one that was not. How fast it was
computed goes to ``timing.jsonl``. A number that is not finite is written as ``null``.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import jax
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from crate_jax.train import whole

TRAIN = "train/"


class MetricsWriter:
    """Appends to the files of a workdir; every process may call it, process 0 writes.

    Args:
      workdir: the run's directory.
      resume_step: updates that the restored state has seen. Lines of later steps are dropped, and
        evaluations of this very step, which are made again.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._files = {}
        for name in ("metrics", "timing"):
            path = workdir / f"{name}.jsonl"
            drop_after(path, resume_step)
            self._files[name] = path.open("a")
        self._board = EventFile(workdir, resume_step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._active:
            for file in self._files.values():
                file.close()
            self._board.close()

    def write(self, step: int, scalars: Mapping[str, float], *, file: str = "metrics") -> None:
        """One line of ``metrics`` or ``timing``, and the same scalars for TensorBoard."""
        if not self._active:
            return
        row = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._files[file].write(json.dumps({"step": step, **finite}) + "\n")
        self._files[file].flush()
        self._board.write(step, row)


class EventFile:
    """Scalars for TensorBoard, written at once: what cannot be written is raised here.

    Args:
      workdir: where the file goes; its name tells the step, so that a resume never overwrites one.
      resume_step: TensorBoard forgets what earlier files say of later steps.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        name = f"events.out.tfevents.{int(time.time()):010d}.{resume_step:010d}.{os.getpid()}"
        self._file = RecordWriter(str(workdir / name))
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=resume_step + 1, session_log=start)
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of one step."""
        for name, value in scalars.items():
            self._add(step=step, summary=summary.scalar(name, value))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **event) -> None:
        self._file.write(event_pb2.Event(wall_time=time.time(), **event).SerializeToString())


def drop_after(path: pathlib.Path, step: int) -> None:
    """Cuts from a file what a run that resumes at ``step`` is about to write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut short when the run was killed
            break
        of_training = any(name.startswith(TRAIN) for name in row)
        if row["step"] < step or (row["step"] == step and of_training):
            kept.append(line)
    whole.write_text(path, "".join(f"{line}\n" for line in kept))
