"""Host arrays onto the mesh, and which rows of a batch a host reads."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax.sharding.mesh import BATCH_AXES, batch_shards


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicated_keys(mesh: Mesh, seed: int, count: int) -> tuple[jax.Array, ...]:
    """Random keys of a seed, the same on every device."""

    def split():
        return tuple(jax.random.split(jax.random.key(seed), count))

    return jax.jit(split, out_shardings=replicated(mesh))()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: examples over ``slice`` x ``data`` x ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def pin_batch(x: jax.Array) -> jax.Array:
    """An activation ``(B, ...)`` that stays on the devices of its images.

    Inside ``jax.set_mesh`` only. A partitioner that is left alone may move activations to where the
    parts of a parameter are, which are far smaller: to be called on what goes from layer to layer.
    A batch that the mesh does not divide is left to it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or x.shape[0] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


@functools.lru_cache(maxsize=64)
def process_rows(mesh: Mesh, batch_size: int, process: int) -> np.ndarray:
    """The rows of a global batch that a process's devices hold, rising.

    Where the devices of a tensor axis lie on several hosts, all of these read the same rows; where
    the mesh follows the torus of a pod, a host's rows need not be neighbours.
    """
    places = batch_sharding(mesh).devices_indices_map((batch_size,))
    held = [
        np.arange(batch_size)[rows]
        for device, (rows,) in places.items()
        if device.process_index == process
    ]
    return np.unique(np.concatenate(held))


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, of which this process gives its :func:`process_rows`."""
    return {name: _place(mesh, rows) for name, rows in batch.items()}


def _place(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    size = global_batch_size(mesh, len(rows))
    own = process_rows(mesh, size, jax.process_index())

    def part(index):
        first, last, _ = index[0].indices(size)
        start = np.searchsorted(own, first)
        return rows[start : start + last - first]

    return jax.make_array_from_callback((size, *rows.shape[1:]), batch_sharding(mesh), part)


def global_batch_size(mesh: Mesh, rows: int) -> int:
    """The size of a batch of which this process reads so many rows."""
    shards = batch_shards(mesh)
    return rows * shards // len(process_rows(mesh, shards, jax.process_index()))
