"""Checkpoints by Orbax: written in the background, kept by recency and score, read onto any mesh.

``DIRECTORY/checkpoints/STEP/`` holds ``state`` (all that a run carries: parameters, optimizer,
averages, step), ``meta`` (JSON: the model's settings and the run's config), ``fingerprints``
(JSON, see ``train.fingerprint``) and, where the judged parameters are no part of the state,
``params``. Batches and randomness are functions of the seed and the step, so nothing else is needed
to go on bit for bit. A checkpoint appears under its name only when it is whole, and is believed
only when every leaf has the fingerprint that it was saved with.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from crate_jax.sharding import processes
from crate_jax.train import fingerprint, reading
from crate_jax.train.reading import (
    FINGERPRINTS,
    META,
    PARAMS,
    STATE,
    CheckpointError,
    DamagedError,
    ReadError,
    first_line,
)

SUBDIRECTORY = "checkpoints"
_SCORES = "scores.json"
_HANDLERS = {
    STATE: ocp.PyTreeCheckpointHandler,
    PARAMS: ocp.PyTreeCheckpointHandler,
    META: ocp.JsonCheckpointHandler,
    FINGERPRINTS: ocp.JsonCheckpointHandler,
}
SEEN_WITHIN = 60.0
"""Seconds that shared storage may take to show a host what another has written."""


class WriteError(RuntimeError):
    """A checkpoint could not be written, and from where the run can go on."""


class _Best:
    """Keeps the ``n`` checkpoints of highest score, by a table that evaluation fills in later."""

    def __init__(self, scores: dict[int, float], n: int):
        self.scores, self.n = scores, n

    def should_preserve(self, checkpoints, *, context):
        del context
        scored = [c.step for c in checkpoints if c.step in self.scores]
        best = sorted(scored, key=lambda step: (self.scores[step], step))[-self.n :]
        return [self.n > 0 and c.step in best for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: the run's workdir.
      keep_last: newest checkpoints kept.
      keep_best: checkpoints of the highest scores kept besides; see :meth:`score`.
      read_only: write and delete nothing.
      report: told what was found damaged.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
        report: Callable[[str], None] = logging.error,
    ):
        self._report = report
        self.directory = pathlib.Path(directory).absolute() / SUBDIRECTORY
        self._scores_path = self.directory / _SCORES
        self.scores = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # a power cut may have emptied it
            saved = json.loads(self._scores_path.read_text())
            self.scores = {int(step): score for step, score in saved.items()}
        if not read_only:
            self._set_empty_ones_aside()
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={name: handler() for name, handler in _HANDLERS.items()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(max(1, keep_last)), _Best(self.scores, keep_best)]
                ),
                save_decision_policy=policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # Closing waits for all processes, of which one that leaves by an error may be the only one.
        if kind is None or jax.process_count() == 1:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def newest(self) -> int | None:
        """The newest step that has a checkpoint as process 0 sees it, or None."""
        steps = processes.of_first(self.steps())
        return steps[-1] if steps else None

    def find(self, which: str) -> int:
        """The step that ``latest``, ``best`` or a number names.

        Raises:
          CheckpointError: when there is none.
        """
        steps = self.steps()
        scored = [step for step in steps if step in self.scores]
        if which == "latest" and steps:
            return steps[-1]
        if which == "best" and scored:
            return max(scored, key=lambda step: (self.scores[step], step))
        if which.isdigit() and int(which) in steps:
            return int(which)
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"{self.directory} has no checkpoint {which!r}; write latest, best or one of: {there}."
        )

    def save(self, step: int, state: Any, meta: Mapping, judged: Any = None) -> None:
        """Copies the state off the devices and writes it in the background; once for a step.

        Args:
          step: updates that the state has seen.
          state: pytree of arrays; None for parameters alone.
          meta: what goes to JSON beside it.
          judged: the parameters to evaluate and to start others from, where no part of ``state``.

        Raises:
          WriteError: when this or an earlier one could not be written.
        """
        if step in self.steps():
            return
        trees = {STATE: state, PARAMS: judged}
        trees = {name: tree for name, tree in trees.items() if tree is not None}
        sums = {name: fingerprint.fingerprints(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        items[META] = ocp.args.JsonSave(dict(meta))
        items[FINGERPRINTS] = ocp.args.JsonSave(sums | {META: fingerprint.of_json(meta)})
        with self._surfacing():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    @contextlib.contextmanager
    def _surfacing(self):
        """Says of a failed write what failed, and from where the run can go on."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            if processes.has_lost_another(error):
                raise
            whole = [step for step in self.steps() if (self.directory / str(step)).is_dir()]
            why = first_line(error)
            if "No space left" in why:
                why = "no space is left on the disk."
            raise WriteError(
                f"a checkpoint could not be written under {self.directory}: {why}\n"
                f"Whole checkpoints: {', '.join(map(str, whole)) or 'none'}. Free space or mend "
                f"the directory, then run the same command again; it goes on from the newest."
            ) from error

    def score(self, step: int, value: float) -> None:
        """Notes the score, higher is better, of the checkpoint at ``step`` if there is one.

        A score that is not a finite number is no score.
        """
        if step not in self.steps() or not math.isfinite(value):
            return
        self.scores[step] = value
        if jax.process_index() == 0:
            partial = self._scores_path.with_suffix(".partial")
            partial.write_text(json.dumps(self.scores))
            os.replace(partial, self._scores_path)

    def wait(self) -> None:
        """Returns when everything is on disk; a failure of the writing thread is raised here."""
        with self._surfacing():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises what the writing thread has failed with, without waiting."""
        with self._surfacing():
            self._manager.check_for_errors()

    def meta(self, step: int) -> dict:
        """The JSON saved with a checkpoint; see :func:`reading.read_meta`."""
        return reading.read_meta(self.directory / str(step))

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, in the structure, dtypes and shardings of ``like``.

        See :func:`reading.read_state` for what it raises.
        """
        return reading.read_state(self.directory / str(step), like)

    def restore_newest(self, like: Any) -> tuple[int, Any]:
        """The newest step whose state can be read, and that state; damaged newer ones go aside.

        Args:
          like: as in :meth:`restore`.

        Raises:
          CheckpointError: when a checkpoint is of another model, or none can be read; then all
            stay where they are.
        """
        damaged = {}
        for step in reversed(processes.of_first(self.steps())):
            processes.raise_alike(self._await(step), (ReadError,))
            try:
                state = self.restore(step, like)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for bad, why in damaged.items():
                self._report(
                    f"checkpoint {self.directory / str(bad)} is damaged and set aside: {why}"
                )
                self._set_aside(self.directory / str(bad))
            if damaged:
                processes.barrier("damaged checkpoints are set aside")
                self._manager.reload()
            return step, state
        lines = "\n  ".join(f"{step}: {why}" for step, why in damaged.items())
        raise CheckpointError(
            f"no checkpoint under {self.directory} can be read:\n  {lines}\n"
            f"Put whole ones back, or choose another --workdir to start over."
        )

    def _await(self, step: int) -> ReadError | None:
        """Returns when this process sees the checkpoint that process 0 has chosen, or an error.

        NFS and mounted buckets keep listings for a while.
        """
        deadline = time.monotonic() + SEEN_WITHIN * (jax.process_count() > 1)
        while step not in self.steps():
            if time.monotonic() > deadline:
                return ReadError(
                    f"the checkpoint {self.directory / str(step)} that process 0 has is not seen "
                    f"here. Let all hosts share the storage, then run the same command again."
                )
            time.sleep(1)
            self._manager.reload()
        return None

    def _set_empty_ones_aside(self) -> None:
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in list(self.directory.iterdir()):
                if path.name.isdigit() and not any(path.iterdir()):
                    self._set_aside(path)
        processes.barrier("empty checkpoints are set aside")

    def _set_aside(self, path: pathlib.Path) -> None:
        """Process 0 renames a checkpoint; one of the same step may lie there from before."""
        if jax.process_index() == 0:
            names = (f"{path.name}.damaged{f'.{n}' * (n > 0)}" for n in itertools.count())
            path.rename(next(p for p in map(path.with_name, names) if not p.exists()))

    def restore_params(self, step: int) -> Any:
        """The judged parameters of a step; see :func:`reading.read_params`."""
        return reading.read_params(self.directory / str(step))


def save_params(directory: pathlib.Path, params: Any, model: Mapping) -> None:
    """Writes parameters alone as checkpoint 0 of a new directory, with the model's settings.

    What ``--mode=eval``, ``config.train.init_from`` and ``crate_jax.convert`` read.
    """
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(0, None, {"model": dict(model)}, judged=params)
        checkpoints.wait()


def restore_params(directory: pathlib.Path, which: str = "latest") -> tuple[Any, dict]:
    """The judged parameters of a run or of :func:`save_params`, and the model's settings.

    Args:
      directory: a workdir, or what :func:`save_params` wrote.
      which: ``latest``, ``best`` or a step.

    Raises:
      CheckpointError: when there is no such checkpoint.
    """
    with open_existing(directory) as checkpoints:
        step = checkpoints.find(which)
        return checkpoints.restore_params(step), checkpoints.meta(step)["model"]


def exists(directory: pathlib.Path) -> bool:
    """Whether a directory holds a whole checkpoint."""
    parent = pathlib.Path(directory) / SUBDIRECTORY
    return parent.is_dir() and any(path.name.isdigit() for path in parent.iterdir())


def open_existing(directory: pathlib.Path) -> Checkpoints:
    """The checkpoints of a run that may be under way; nothing is written or cleaned up.

    Raises:
      CheckpointError: when the directory holds none.
    """
    if not exists(directory):
        raise CheckpointError(
            f"{directory} holds no checkpoints; give the workdir of a run, or what "
            f"python -m crate_jax.convert wrote."
        )
    return Checkpoints(directory, read_only=True)
