"""The mesh of devices: ``slice`` x ``data`` x ``fsdp`` x ``tensor``.

``slice``, ``data`` and ``fsdp`` split the batch, ``fsdp`` also parameters and optimizer state,
``tensor`` attention heads and dictionary atoms. Between slices runs the data-centre network, within
one the fast interconnect: parameters are never split over ``slice``, so that what crosses it is one
sum of gradients a step.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from crate_jax.config import ConfigError, MeshConfig, nearest

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")

PRESETS = {
    "dp": {"data": -1, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": -1, "tensor": 1},
    "fsdp_tp": {"data": 1, "fsdp": -1, "tensor": 2},
    "hybrid": {"data": 1, "fsdp": -1, "tensor": 1},
}
"""Devices along each axis within a slice; -1 takes what the others leave.

``hybrid`` is fsdp within a slice and data parallelism between slices, where on machines without
slices a host counts as one.
"""


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices; see :func:`axis_sizes`."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices), count_slices(devices, config.preset == "hybrid"))
    kinds = (AxisType.Auto,) * len(AXES)
    if sizes["slice"] > 1 and count_slices(devices) == sizes["slice"]:
        within = (1, *(sizes[axis] for axis in AXES[1:]))
        across = (sizes["slice"], 1, 1, 1)
        laid_out = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    else:  # an axis of the mesh may be a part of one of the torus
        laid_out = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    return Mesh(laid_out, AXES, kinds)


def count_slices(devices: Sequence[jax.Device], hosts: bool = False) -> int:
    """How many slices devices belong to; where they know of none, 1, or with ``hosts`` the hosts'.

    Devices of a CPU or GPU name their process as their slice, which is no slice.
    """
    if devices[0].platform == "tpu":
        return len({getattr(device, "slice_index", 0) for device in devices})
    return len({device.process_index for device in devices}) if hosts else 1


def axis_sizes(config: MeshConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """Devices along each axis, by the preset and by what the config gives besides.

    A size that is given replaces the preset's. Where then no axis is left to take the rest,
    ``data`` does, so that ``preset=fsdp, fsdp=8`` is eight-way fsdp within data parallelism.

    Args:
      config: preset and sizes.
      devices: to lay out.
      slices: that the devices come in.

    Raises:
      ConfigError: on an unknown preset, or when the axes do not multiply to the devices.
    """
    if config.preset not in PRESETS:
        raise ConfigError(f"config.mesh.preset={config.preset!r}{nearest(config.preset, PRESETS)}")
    given = {axis: getattr(config, axis) for axis in AXES if getattr(config, axis) is not None}
    sizes = {"slice": slices} | PRESETS[config.preset] | given
    if -1 not in sizes.values() and "data" not in given:
        sizes["data"] = -1
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: devices // fixed if n == -1 and fixed > 0 else n for axis, n in sizes.items()}
    counts = list(filled.values())
    if list(sizes.values()).count(-1) > 1 or min(counts) < 1 or math.prod(counts) != devices:
        raise ConfigError(
            f"config.mesh.preset={config.preset!r} with {_listed(given)} does not lay out "
            f"{devices} devices: {_listed(sizes)} must multiply to that, one of them may be -1."
        )
    return {axis: filled[axis] for axis in AXES}


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={n}" for axis, n in sizes.items()) or "nothing else"


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, field: str) -> None:
    """Raises a sentence where a batch does not divide over the mesh; ``field`` names it."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        below = batch_size // shards * shards
        hint = f"{below} or {below + shards}" if below else f"{shards}"
        raise ConfigError(
            f"{field} gives batches of {batch_size}, which do not divide over "
            f"{' x '.join(BATCH_AXES)} = {shards} devices; {hint} would."
        )
