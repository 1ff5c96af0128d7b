"""Collectives of a step: what is exchanged, among which partitions, along which mesh axes."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, as often as it runs.

    Attributes:
      kind: one of :data:`COLLECTIVES`.
      devices: the partitions of one of its groups.
      bytes: of the whole array that the group sums, gathers or exchanges, as one device sees it:
        the gathered array of an all-gather, the array before a reduce-scatter.
      count: times in a step.
      asynchronous: whether the compiler lets other work run meanwhile.
    """

    kind: str
    devices: tuple[int, ...]
    bytes: int
    count: int
    asynchronous: bool


def first_group(text: str) -> tuple[int, ...]:
    """The partitions of the first group that talk to each other; all groups are alike.

    Args:
      text: the attributes of a collective's instruction, in any notation of groups.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    if pairs:
        numbers = [tuple(map(int, p.split(","))) for p in re.findall(r"\d+,\d+", pairs[1])]
        moved = [pair for pair in numbers if pair[0] != pair[1]]
        return moved[0] if moved else ()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", text)
    if named:
        return _of_named_axes(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, dims, order = (tuple(map(int, g.split(","))) if g else None for g in iota.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids if order is None else ids.transpose(order)
        return tuple(map(int, ids.reshape(shape)[0]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return tuple(map(int, listed[1].split(","))) if listed else ()


def _of_named_axes(axes: str, order: str, used: str) -> tuple[int, ...]:
    """``mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}``: the ids along axis x.

    ``'x':(2)4`` is the part of an axis that has 2 before it, 4 wide.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    shuffled = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", order)
    if shuffled:
        dims = tuple(map(int, shuffled[1].split(",")))
        ids = ids.reshape(dims)
        if shuffled[2]:
            ids = ids.transpose(tuple(map(int, shuffled[2].split(","))))
    dims, kept = [], []
    parts = {n: (int(a or 1), int(b or 0)) for n, a, b in
             re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used)}  # fmt: skip
    for name, size in sizes.items():
        if name not in parts:
            dims.append(size)
            continue
        before, width = parts[name]
        width = width or size
        kept.append(len(dims) + 1)
        dims += [before, width, size // (before * width)]
    ids = ids.reshape(dims)
    first = ids[tuple(slice(None) if i in kept else 0 for i in range(ids.ndim))]
    return tuple(map(int, np.ravel(first)))


def mesh_axes(devices: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a group of partitions differs; ids count the mesh row by row."""
    places = np.unravel_index(np.asarray(devices), tuple(mesh.values()))
    return tuple(a for a, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)
