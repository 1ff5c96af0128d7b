"""The mesh of devices: ``data`` x ``fsdp`` x ``tensor``.

``data`` and ``fsdp`` split the batch, ``fsdp`` also parameters and optimizer state, ``tensor``
attention heads and dictionary atoms.
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from crate_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, an axis of -1 taking what the others leave.

    Raises:
      ConfigError: when the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    given = dict(zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ConfigError(
            f"config.mesh={given} does not lay out "
            f"{len(devices)} devices; the sizes must multiply to that, one of them may be -1."
        )
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises a sentence where a batch does not divide over the mesh; ``field`` names it."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        below = batch_size // shards * shards
        hint = f"{below} or {below + shards}" if below else f"{shards}"
        raise ConfigError(
            f"{field} gives batches of {batch_size}, which do not divide over "
            f"data x fsdp = {shards} devices; {hint} would."
        )
