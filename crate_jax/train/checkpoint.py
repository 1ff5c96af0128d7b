"""Checkpoints by Orbax: written in the background, kept by recency and score, read onto any mesh.

``DIRECTORY/checkpoints/STEP/`` holds ``state`` (all that a run carries: parameters, optimizer,
averages, step), ``meta`` (JSON: the model's settings and the run's config), ``fingerprints``
(JSON, see ``train.fingerprint``) and, where the judged parameters are no part of the state,
``params``. Batches and randomness are functions of the seed and the step, so nothing else is needed
to go on bit for bit. A checkpoint appears under its name only when it is whole, and is believed
only when every leaf has the fingerprint that it was saved with.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.train import fingerprint

SUBDIRECTORY = "checkpoints"
_SCORES = "scores.json"
_HANDLERS = {
    "state": ocp.PyTreeCheckpointHandler,
    "params": ocp.PyTreeCheckpointHandler,
    "meta": ocp.JsonCheckpointHandler,
    "fingerprints": ocp.JsonCheckpointHandler,
}
_LEAVES_NAMED = 3
_SEEN_WITHIN = 60.0  # seconds that shared storage may take to show a host what another has written


class CheckpointError(ConfigError):
    """What is wrong with a checkpoint, and what to do."""


class DamagedError(RuntimeError):
    """What of a checkpoint cannot be read, or is not what was saved."""


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
        if self._scores_path.exists():
            saved = json.loads(self._scores_path.read_text())
            self.scores = {int(step): score for step, score in saved.items()}
        if not read_only:
            self._set_empty_ones_aside()
        self._arrays = ocp.PyTreeCheckpointHandler()
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

    def __exit__(self, *_):
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
        trees = {"state": state, "params": judged}
        trees = {name: tree for name, tree in trees.items() if tree is not None}
        sums = {name: fingerprint.fingerprints(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(dict(meta))
        items["fingerprints"] = ocp.args.JsonSave(sums)
        with self._surfacing():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    @contextlib.contextmanager
    def _surfacing(self):
        """Says of a failed write what failed, and from where the run can go on."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
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
        """The JSON saved with a checkpoint."""
        return self._json(step, "meta")

    def _json(self, step: int, item: str) -> dict:
        args = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[item]

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, in the structure, dtypes and shardings of ``like``.

        Args:
          step: one of :meth:`steps`.
          like: pytree of ``ShapeDtypeStruct`` with shardings.

        Raises:
          CheckpointError: listing the leaves that are missing, unexpected or of another shape or
            dtype. Nothing is cast, cut or padded.
          DamagedError: naming the leaves that cannot be read or are not what was saved; on all
            processes, where one cannot read its part.
        """
        state, sums, trouble = None, {}, ""
        try:
            check_leaves(self._saved_leaves(step), like, f"{self.directory / str(step)}")
            sums = self._json(step, "fingerprints")["state"]
            state = self._read(step, like)
        except CheckpointError:
            raise
        except Exception as error:  # whatever Orbax and TensorStore make of damaged files
            unreadable = self._unreadable_leaves(step, like)
            trouble = f"{', '.join(unreadable) or 'all of it'} cannot be read: {first_line(error)}"
        self._believe(processes.agree(trouble), state, sums)
        return state

    def _believe(self, trouble: str, tree: Any, sums: Mapping[str, int]) -> None:
        """Raises where something could not be read, or is not what was saved."""
        wrong = [] if trouble else fingerprint.differing(tree, sums)
        if wrong:
            few = ", ".join(wrong[:_LEAVES_NAMED])
            more = len(wrong) - _LEAVES_NAMED
            trouble = f"other bits than were saved: {few}{f' and {more} more' * (more > 0)}"
        if trouble:
            raise DamagedError(trouble)

    def _saved_leaves(self, step: int) -> dict[str, tuple]:
        return leaves(self._manager.item_metadata(step)["state"].tree)

    def _read(self, step: int, like: Any) -> Any:
        """A state or a part of one, by the handler itself: no process waits here for another."""
        restore = ocp.args.PyTreeRestore(
            like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        return self._arrays.restore(epath.Path(self.directory / str(step) / "state"), args=restore)

    def _unreadable_leaves(self, step: int, like: Any) -> list[str]:
        """The first leaves that cannot be read by themselves; none where nothing can be."""
        flat, _ = jax.tree_util.tree_flatten_with_path(like)
        bad = []
        for path, leaf in flat:
            try:
                self._read(step, _nested(path, leaf))
            except Exception:
                bad.append(jax.tree_util.keystr(path, simple=True, separator="/"))
            if len(bad) == _LEAVES_NAMED:
                break
        return bad

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
            self._await(step)
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

    def _await(self, step: int) -> None:
        """Returns when this process sees the checkpoint that process 0 has chosen, or never will.

        NFS and mounted buckets keep listings for a while.
        """
        deadline = time.monotonic() + _SEEN_WITHIN * (jax.process_count() > 1)
        while step not in self.steps() and time.monotonic() < deadline:
            time.sleep(1)
            self._manager.reload()

    def _set_empty_ones_aside(self) -> None:
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.isdigit() and not any(path.iterdir()):
                    self._set_aside(path)
        processes.barrier("empty checkpoints are set aside")

    def _set_aside(self, path: pathlib.Path) -> None:
        if jax.process_index() == 0:
            path.rename(path.with_name(f"{path.name}.damaged"))

    def restore_params(self, step: int) -> Any:
        """The judged parameters of a step as numpy arrays: the average where there is one.

        Raises:
          DamagedError: naming leaves that are not what was saved.
        """
        saved = self._manager.item_metadata(step)
        if saved.get("params") is not None:
            item, tree = "params", saved["params"].tree
        else:
            state = saved["state"].tree
            name = "ema" if state.get("ema") is not None else "params"
            item, tree = "state", {name: state[name]}
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restore = ocp.args.PyTreeRestore(tree, restore_args=arrays, partial_restore=True)
        params = self._manager.restore(step, args=ocp.args.Composite(**{item: restore}))[item]
        self._believe("", params, self._json(step, "fingerprints")[item])
        return params if item == "params" else params[name]


def first_line(error: Exception) -> str:
    """What an error says, without the pages that Orbax and TensorStore add."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def leaves(tree: Any) -> dict[str, tuple]:
    """``{path: (shape, dtype)}`` of a pytree, the path as ``a/b/c``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), np.dtype(x.dtype))
        for path, x in flat
    }


def _nested(path: tuple, leaf: Any) -> dict:
    """A pytree of one leaf, as Orbax names its places."""
    for key in reversed(path):
        leaf = {jax.tree_util.keystr((key,), simple=True): leaf}
    return leaf


def check_leaves(saved: Mapping[str, tuple], like: Any, where: str) -> None:
    """Raises with the leaves at which a checkpoint differs from what is wanted."""
    wanted = leaves(like)

    def tell(leaf):
        return "none" if leaf is None else f"{leaf[1]}{list(leaf[0])}"

    differing = [
        f"{path}: {tell(saved.get(path))} in the checkpoint, {tell(wanted.get(path))} wanted"
        for path in sorted({*saved, *wanted})
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        shown = "\n  ".join(differing[:20])
        more = f"\n  and {len(differing) - 20} more" if len(differing) > 20 else ""
        raise CheckpointError(
            f"the checkpoint {where} is of another model or optimizer:\n  {shown}{more}\n"
            f"Use the config it was made with, or start from its parameters by "
            f"config.train.init_from."
        )


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
