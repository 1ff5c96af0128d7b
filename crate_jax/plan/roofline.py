"""From operations and bytes to seconds, by a chip's published figures.

    compute = FLOPs / peak          HBM = bytes / bandwidth
    step    = max(compute, HBM) + exposed communication

Exposed is what nothing hides: all synchronous collectives, and the part of the asynchronous ones
that outlasts the computation. A collective over n devices moves (n-1)/n of its bytes out of each
(an all-reduce twice), through as many links as its group has: two for every dimension of the torus
that it spans as a closed ring, one for a line. Where a group spans slices or nodes its part between
them goes over the data-centre network. Latencies are left out, and so is any loss of efficiency:
these are bounds, not measurements.
"""

import dataclasses
from collections.abc import Sequence

from crate_jax.plan.chips import Chip
from crate_jax.plan.collectives import Collective

Place = tuple[int, tuple[int, ...]]
"""Slice (or node) of a device, and its coordinates on the torus."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step.

    Attributes:
      flops: of products, recomputed ones included.
      hbm_bytes: to and from memory.
      collectives: as often as they run.
    """

    flops: float
    hbm_bytes: float
    collectives: Sequence[Collective]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step.

    Attributes:
      compute, hbm: each alone.
      interconnect, network: all collectives, within a slice or node and between them.
      exposed: the part of these two that computation does not hide.
      step: the sum described above.
      bound: the largest of the first four.
    """

    compute: float
    hbm: float
    interconnect: float
    network: float
    exposed: float
    step: float
    bound: str


def roofline(work: Work, chip: Chip, shape: Sequence[int], places: Sequence[Place]) -> Roofline:
    """The bounds of a step.

    Args:
      work: of one chip.
      chip: its figures.
      shape: of a slice's torus.
      places: of every device, in the mesh's order.
    """
    compute = work.flops / chip.flops.value
    hbm = work.hbm_bytes / chip.bandwidth.value
    times = [(c, seconds(c, chip, shape, places)) for c in work.collectives]
    interconnect = sum(within for _, (within, _) in times)
    network = sum(across for _, (_, across) in times)
    busy = max(compute, hbm)
    exposed = exposed_seconds(times, busy)
    bounds = {"compute": compute, "HBM": hbm, "interconnect": interconnect, "network": network}
    return Roofline(
        compute, hbm, interconnect, network, exposed, busy + exposed, max(bounds, key=bounds.get)
    )


def exposed_seconds(times, busy: float) -> float:
    """What ``busy`` seconds of computation do not hide of ``(collective, its seconds)``."""
    waiting = sum(sum(t) for c, t in times if not c.asynchronous)
    hidden = sum(sum(t) for c, t in times if c.asynchronous)
    return waiting + max(0.0, hidden - busy)


def seconds(
    collective: Collective, chip: Chip, shape: Sequence[int], places: Sequence[Place]
) -> tuple[float, float]:
    """Seconds of a collective in a step: within slices or nodes, and between them."""
    group = [places[device] for device in collective.devices]
    outer = len({where for where, _ in group})
    inner = len(group) // outer
    passes = (2 if collective.kind == "all-reduce" else 1) * collective.count * collective.bytes
    within = across = 0.0
    if inner > 1:
        rate = chip.link.value * links(group, chip, shape)
        within = passes * (inner - 1) / inner / rate
    if outer > 1:
        across = passes / inner * (outer - 1) / outer / chip.network.value
    return within, across


def links(group: Sequence[Place], chip: Chip, shape: Sequence[int]) -> int:
    """Links of a device over which its group's ring or line runs; 1 at a switch."""
    if not chip.wraps:
        return 1
    total = 0
    for axis, size in enumerate(shape):
        taken = len({coordinates[axis] for _, coordinates in group})
        if taken > 1:
            total += 2 if taken == size and size % chip.wraps == 0 else 1
    return max(total, 1)
