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
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from crate_jax.sharding import processes
from crate_jax.train import fingerprint, reading, whole
from crate_jax.train.reading import (
    FINGERPRINTS,
    META,
    PARAMS,
    STATE,
    CheckpointError,
    DamagedError,
    UnreachableError,
    comes_to_be,
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
      report: told what was found damaged.

    Raises:
      CheckpointError: where all checkpoints are empty; they stay where they are.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        report: Callable[[str], None] = logging.error,
    ):
        self._report = report
        self.directory = pathlib.Path(directory).absolute() / SUBDIRECTORY
        self._scores_path = self.directory / _SCORES
        self.scores = _read_scores(self._scores_path)
        self._set_empty_ones_aside()
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={name: handler() for name, handler in _HANDLERS.items()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(max(1, keep_last)), _Best(self.scores, keep_best)]
                ),
                save_decision_policy=policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
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
        if processes.of_first([step in self.steps()]) == [True]:
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
            there = [step for step in self.steps() if (self.directory / str(step)).is_dir()]
            why = first_line(error)
            if "No space left" in why:
                why = "no space is left on the disk."
            raise WriteError(
                f"a checkpoint could not be written under {self.directory}: {why}\n"
                f"Whole checkpoints: {', '.join(map(str, there)) or 'none'}. Free space or mend "
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
            whole.write_text(self._scores_path, json.dumps(self.scores))

    def wait(self) -> None:
        """Returns when everything is on disk; a failure of the writing thread is raised here."""
        with self._surfacing():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises what the writing thread has failed with, without waiting."""
        with self._surfacing():
            self._manager.check_for_errors()

    def restore_newest(self, like: Any) -> tuple[int, Any, dict]:
        """The newest step whose state can be read, that state, and the JSON saved with it.

        Damaged newer ones are set aside.

        Args:
          like: as of :func:`reading.read_state`.

        Raises:
          CheckpointError: when a checkpoint is of another model, or none can be read; then all
            stay where they are.
          UnreachableError, ReadError: where storage, rights or memory are in the way.
        """
        damaged = {}
        for step in reversed(processes.of_first(self.steps())):
            self._await(step, there=True)
            try:
                state, meta = reading.read_state(self.directory / str(step), like)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for bad, why in damaged.items():
                self._set_aside(self.directory / str(bad), why)
            if damaged:
                processes.barrier("damaged checkpoints are set aside")
                for bad in damaged:
                    self._await(bad, there=False)
            return step, state, meta
        raise self._none_can_be_read(damaged)

    def _await(self, step: int, *, there: bool) -> None:
        """Returns when all processes see that a checkpoint is there, or is not, as process 0 does.

        NFS and mounted buckets keep listings for a while.

        Raises:
          UnreachableError: on all processes, where one does not come to see it.
        """

        def seen():
            self._manager.reload()
            return (step in self.steps()) == there

        error = None
        if not comes_to_be(seen):
            what = "has is not seen" if there else "has set aside is still seen"
            error = UnreachableError(
                f"the checkpoint {self.directory / str(step)} that process 0 {what} here. Let all "
                f"hosts share the storage, then run the same command again."
            )
        processes.raise_alike(error, (UnreachableError,))

    def _set_empty_ones_aside(self) -> None:
        """Process 0 does; what a cut-off copy or a full disk leaves is no checkpoint."""
        error = None
        if jax.process_index() == 0:
            steps = _steps_in(self.directory)
            empty = [step for step in steps if not any((self.directory / str(step)).iterdir())]
            if empty and empty == steps:
                error = self._none_can_be_read(dict.fromkeys(empty, "it is empty"))
            else:
                for step in empty:
                    self._set_aside(self.directory / str(step), "it is empty")
        processes.raise_alike(error, (CheckpointError,))

    def _none_can_be_read(self, damaged: Mapping[int, str]) -> CheckpointError:
        lines = "\n  ".join(f"{step}: {why}" for step, why in damaged.items())
        return CheckpointError(
            f"no checkpoint under {self.directory} can be read:\n  {lines}\n"
            f"Put whole ones back, or choose another --workdir to start over."
        )

    def _set_aside(self, path: pathlib.Path, why: str) -> None:
        """Process 0 renames a checkpoint; one of the same step may lie there from before."""
        self._report(f"checkpoint {path} is damaged and set aside: {why}")
        if jax.process_index() == 0:
            names = (f"{path.name}.damaged{f'.{n}' * (n > 0)}" for n in itertools.count())
            path.rename(next(p for p in map(path.with_name, names) if not p.exists()))


def save_params(directory: pathlib.Path, params: Any, model: Mapping) -> None:
    """Writes parameters alone as checkpoint 0 of a new directory, with the model's settings.

    What ``--mode=eval``, ``config.train.init_from`` and ``crate_jax.convert`` read.
    """
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(0, None, {"model": dict(model)}, judged=params)
        checkpoints.wait()


def restore_params(directory: str | pathlib.Path, which: str = "latest") -> tuple[Any, dict]:
    """The judged parameters of a run or of :func:`save_params`, and the model's settings.

    Args:
      directory: a workdir, or what :func:`save_params` wrote.
      which: ``latest``, ``best`` or a step.

    Raises:
      CheckpointError: when there is no such checkpoint.
    """
    path = choose(directory, which)
    return reading.read_params(path), reading.read_meta(path)["model"]


def choose(directory: str | pathlib.Path, which: str = "latest") -> pathlib.Path:
    """The checkpoint that ``latest``, ``best`` or a number names, for all what process 0 sees.

    The run may be under way; nothing is written, and all processes must call this.

    Args:
      directory: a workdir, or what :func:`save_params` wrote.
      which: ``latest``, ``best`` (by score) or a step.

    Raises:
      CheckpointError: when there is none.
      UnreachableError: on all processes, where one does not come to see it.
    """
    where, step, error = pathlib.Path(directory).absolute() / SUBDIRECTORY, -1, None
    if jax.process_index() == 0:
        try:
            step = _find(where, which)
        except CheckpointError as raised:
            error = raised
    processes.raise_alike(error, (CheckpointError,))
    (step,) = processes.of_first([step])
    path = where / str(step)
    if not comes_to_be(path.is_dir):
        error = UnreachableError(f"the checkpoint {path} that process 0 sees is not seen here.")
    processes.raise_alike(error, (UnreachableError,))
    return path


def _find(where: pathlib.Path, which: str) -> int:
    steps = [step for step in _steps_in(where) if any((where / str(step)).iterdir())]
    if not steps:
        raise CheckpointError(
            f"{where.parent} holds no checkpoints; give the workdir of a run, or what "
            f"python -m crate_jax.convert wrote."
        )
    scores = _read_scores(where / _SCORES)
    scored = [step for step in steps if step in scores]
    if which == "latest":
        return steps[-1]
    if which == "best" and scored:
        return max(scored, key=lambda step: (scores[step], step))
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise CheckpointError(
        f"{where} has no checkpoint {which!r}; write latest, best or one of: "
        f"{', '.join(map(str, steps))}."
    )


def exists(directory: pathlib.Path) -> bool:
    """Whether a directory holds a checkpoint, be it a good one or not."""
    return bool(_steps_in(pathlib.Path(directory) / SUBDIRECTORY))


def newest_meta(directory: pathlib.Path) -> dict | None:
    """The JSON saved with the newest checkpoint of which it can be read; None without one."""
    where = pathlib.Path(directory) / SUBDIRECTORY
    for step in reversed(_steps_in(where)):
        with contextlib.suppress(DamagedError):
            return reading.read_meta(where / str(step))
    return None


def _steps_in(where: pathlib.Path) -> list[int]:
    """Steps of the folders that are named like checkpoints, rising."""
    names = [path.name for path in where.iterdir()] if where.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def _read_scores(path: pathlib.Path) -> dict[int, float]:
    with contextlib.suppress(FileNotFoundError, ValueError):  # a power cut may have emptied it
        return {int(step): score for step, score in json.loads(path.read_text()).items()}
    return {}
