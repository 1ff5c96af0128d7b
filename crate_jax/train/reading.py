"""Reads one checkpoint: every leaf with the bits that it was saved with, or what is wrong with it.

The files are read by Orbax's handlers and not through its manager: no process waits here for
another, so that one that cannot read its part can still tell all.
"""

import errno
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.sharding.rules import name_of, named_leaves
from crate_jax.train import fingerprint

STATE, PARAMS, META, FINGERPRINTS = "state", "params", "meta", "fingerprints"
"""The items of a checkpoint, each a folder."""

_LEAVES_NAMED = 3
SEEN_WITHIN = 60.0
"""Seconds that shared storage may take to show a host what another has written."""

_LOOK_SECONDS = 0.5  # between two looks at what others have written
_PAUSE_SECONDS = 2.0  # before what could not be read is tried again
_PATIENCE_SECONDS = 6.0  # with storage that does not answer, where there is one process

_LASTING = (errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_PASSING = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTUNREACH, errno.EREMOTEIO,
    errno.EAGAIN,
)  # fmt: skip
_LASTING_WORDS = (*map(os.strerror, _LASTING), "PERMISSION_DENIED", "Out of memory")
_PASSING_WORDS = (*map(os.strerror, _PASSING), "UNAVAILABLE", "DEADLINE_EXCEEDED")
_ABSENT_WORDS = (os.strerror(errno.ENOENT), "NOT_FOUND", "not found", "does not exist")


class CheckpointError(ConfigError):
    """What is wrong with a checkpoint, and what to do."""


class DamagedError(RuntimeError):
    """What of a checkpoint cannot be read, or is not what was saved."""


class ReadError(RuntimeError):
    """Rights or memory keep a process from reading a checkpoint that may well be whole."""


class UnreachableError(RuntimeError):
    """Storage that does not answer; trying again may mend it."""


ERRORS = (ReadError, UnreachableError, CheckpointError, DamagedError)
"""What reading raises; where processes meet different ones, the first of these is raised on all."""


def comes_to_be(seen: Callable[[], bool]) -> bool:
    """Whether this process sees something: on several, within the time that storage may lag."""
    deadline = time.monotonic() + SEEN_WITHIN * (jax.process_count() > 1)
    while not seen():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def read_state(path: pathlib.Path, like: Any) -> tuple[Any, dict]:
    """The state of a checkpoint, in the structure, dtypes and shardings of ``like``; and its meta.

    Args:
      path: the checkpoint's folder.
      like: pytree of ``ShapeDtypeStruct`` with shardings.

    Raises:
      CheckpointError: listing the leaves that are missing, unexpected or of another shape or dtype.
        Nothing is cast, cut or padded.
      DamagedError: naming the leaves that cannot be read or are not what was saved.
      UnreachableError, ReadError: where storage, or rights or memory, are in the way, at further
        tries too. All are raised on all processes where one meets them.
    """

    def read():
        check_leaves(_saved_leaves(path), like, str(path))
        meta, sums = _meta_and_sums(path)
        return _read_tree(path / STATE, like), sums[STATE], meta

    state, sums, meta = processes.together(
        lambda: _attempt(read, lambda: _unreadable_leaves(path / STATE, like)), ERRORS
    )
    wrong = fingerprint.differing(state, sums)  # takes all processes
    processes.together(lambda: _believe(wrong), ERRORS)
    return state, meta


def read_params(path: pathlib.Path) -> Any:
    """The judged parameters of a checkpoint as numpy arrays: the average where there is one.

    Raises:
      DamagedError: naming the checkpoint and the leaves that are not what was saved.
      CheckpointError: where the run that it belongs to has removed it meanwhile.
      UnreachableError, ReadError: as of :func:`read_state`.
    """

    def read():
        item, name = (PARAMS if (path / PARAMS).is_dir() else STATE), None
        tree = _saved_tree(path / item)
        if item == STATE:
            name = "ema" if tree.get("ema") is not None else "params"
            tree = {name: tree[name]}
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return _read_tree(path / item, tree, arrays), read_json(path, FINGERPRINTS)[item], name

    try:
        tree, sums, name = _attempt(read, lambda: ["the parameters"])
        _believe(fingerprint.differing(tree, sums))
    except DamagedError as error:
        if not path.is_dir():
            raise CheckpointError(
                f"the checkpoint {path} went while it was read: a run that is under way keeps its "
                f"newest and best ones. Try again, or raise its config.train.keep_last."
            ) from error
        raise DamagedError(f"the checkpoint {path} is damaged: {error}") from error
    return tree if name is None else tree[name]


def read_meta(path: pathlib.Path) -> dict:
    """The JSON saved with a checkpoint.

    Raises:
      DamagedError: when it cannot be read, or is not what was saved.
      UnreachableError, ReadError: as of :func:`read_state`.
    """
    return _meta_and_sums(path)[0]


def _meta_and_sums(path: pathlib.Path) -> tuple[dict, dict]:
    meta = _attempt(lambda: read_json(path, META), lambda: [META])
    sums = _attempt(lambda: read_json(path, FINGERPRINTS), lambda: [FINGERPRINTS])
    # The first checkpoints were written without a checksum of their meta.
    if not isinstance(meta, dict) or sums.get(META, total := fingerprint.of_json(meta)) != total:
        raise DamagedError("other bits than were saved: meta")
    return meta, sums


def read_json(path: pathlib.Path, item: str) -> Any:
    """An item that is JSON."""
    return ocp.JsonCheckpointHandler().restore(epath.Path(path / item))


def _attempt(read: Callable[[], Any], unreadable: Callable[[], Sequence[str]]) -> Any:
    """What ``read`` returns, at a further try where storage did not answer the first.

    On several processes what is not there is waited for: shared storage may show a host a folder
    before all that lies in it.

    Args:
      read: reads.
      unreadable: gives the names of what cannot be read; none where that is everything.
    """
    several = jax.process_count() > 1
    deadline = time.monotonic() + (SEEN_WITHIN if several else _PATIENCE_SECONDS)
    while True:
        try:
            return read()
        except ERRORS:
            raise
        except Exception as error:  # whatever Orbax and TensorStore make of what they find
            passing = _tells(error, _PASSING, _PASSING_WORDS)
            absent = several and _tells(error, (errno.ENOENT,), _ABSENT_WORDS)
            if (passing or absent) and time.monotonic() < deadline:
                time.sleep(_PAUSE_SECONDS)
                continue
            why = first_line(error)
            after = "\nNothing was changed. See to it, then run the same command again."
            if isinstance(error, MemoryError) or _tells(error, _LASTING, _LASTING_WORDS):
                raise ReadError(f"a checkpoint cannot be read: {why}{after}") from error
            if passing:
                raise UnreachableError(f"a checkpoint cannot be reached: {why}{after}") from error
            names = ", ".join(unreadable()) or "all of it"
            raise DamagedError(f"{names} cannot be read: {why}") from error


def _tells(error: Exception, numbers: Sequence[int], words: Sequence[str]) -> bool:
    """Whether an error is one of the system's, by its number or by what it says."""
    return getattr(error, "errno", None) in numbers or any(w in str(error) for w in words)


def _believe(wrong: Sequence[str]) -> None:
    """Raises where leaves are not what was saved."""
    if wrong:
        few = ", ".join(wrong[:_LEAVES_NAMED])
        more = len(wrong) - _LEAVES_NAMED
        raise DamagedError(f"other bits than were saved: {few}{f' and {more} more' * (more > 0)}")


def _saved_tree(path: pathlib.Path) -> Any:
    """Shapes and dtypes of an item, as it was saved."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(path)).tree


def _saved_leaves(path: pathlib.Path) -> dict[str, tuple]:
    return leaves(_saved_tree(path / STATE))


def _read_tree(path: pathlib.Path, like: Any, restore_args: Any = None) -> Any:
    """An item or a part of one."""
    if restore_args is None:
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    restore = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(path), args=restore)


def _unreadable_leaves(path: pathlib.Path, like: Any) -> list[str]:
    """The first leaves that cannot be read by themselves; none where nothing can be."""
    flat, _ = jax.tree_util.tree_flatten_with_path(like)
    bad = []
    for keys, leaf in flat:
        try:
            _read_tree(path, _nested(keys, leaf))
        except Exception:
            bad.append(name_of(keys))
        if len(bad) == _LEAVES_NAMED:
            break
    return bad


def _nested(path: tuple, leaf: Any) -> dict:
    """A pytree of one leaf, as Orbax names its places."""
    for key in reversed(path):
        leaf = {name_of((key,)): leaf}
    return leaf


def first_line(error: Exception) -> str:
    """What an error says, without the pages that Orbax and TensorStore add."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def leaves(tree: Any) -> dict[str, tuple]:
    """``{path: (shape, dtype)}`` of a pytree, the path as ``a/b/c``."""
    return {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in named_leaves(tree).items()}


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
