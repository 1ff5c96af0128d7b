"""The state of a game under way, from which a stopped one goes on bit for bit."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.studies.games.play import Record, State
from crate_jax.train import whole


def write(path: pathlib.Path, state: State, records: list[Record]) -> None:
    """Writes state and course; an earlier file stays whole until the new one is."""
    leaves = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    whole.write_npz(path, leaves | course(records))


def read(path: pathlib.Path, like: State) -> tuple[State, list[Record]] | None:
    """What :func:`write` wrote; None where there is nothing, or it is damaged.

    Args:
      path: of the file.
      like: a state of the same game.
    """
    leaves, structure = jax.tree.flatten(like)
    arrays = whole.read_npz(path) or {}
    names = [f"leaf_{i}" for i in range(len(leaves))]
    if not arrays.keys() >= {*names, *Record._fields}:
        return None
    found, columns = [arrays[name] for name in names], [arrays[name] for name in Record._fields]
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, leaves, strict=True)):
        return None
    state = jax.tree.unflatten(structure, [jnp.asarray(x) for x in found])
    return state, [Record(*row) for row in zip(*columns, strict=True)]


def course(records: list[Record]) -> dict[str, np.ndarray]:
    """The records of all turns, ``(T,)`` by name."""
    return {
        name: np.array([float(getattr(record, name)) for record in records])
        for name in Record._fields
    }
