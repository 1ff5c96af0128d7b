"""What an optimized HLO module does in one run: loops, collectives, HBM traffic, cycles.

XLA's own cost analysis takes the body of a loop once, and a step with scanned layers is nearly all
loop. Here the text of the module is read, and everything in a loop counts as often as it runs.

*Trip counts.* The CPU compiler writes ``known_trip_count`` beside a loop. The TPU compiler does
not; there the bound is read from the loop's condition ``i < n``, the start from the tuple that
enters it and the step from its body. A loop whose count cannot be read so counts once and is
listed.

*HBM traffic.* Every instruction outside of fusions reads its operands and writes its result once. A
fusion that slices an operand reads the slice; one that updates a slice in place writes the slice;
what the layout puts on the chip (``S(1)`` and up) costs nothing. Sizes are those of the tiled
layout, padding included.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from crate_jax.plan.collectives import COLLECTIVES, Collective, first_group

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "copy-done", "async-done", "async-update", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota", "slice-done", "custom-call-done",
    *(f"{kind}-done" for kind in COLLECTIVES),
}  # fmt: skip
_NO_KERNELS = {
    "AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding",
    "SPMDFullToShardShape", "SPMDShardToFullShape", "AssumeGatherIndicesInBound", "ResizeDynamic",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """Computations that are named under ``calls=``, ``body=`` and the like."""
        names = []
        for key in keys:
            found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
            names += re.findall(r"[\w.-]+", found[1]) if found else []
        return names


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call, which the compiler's cycle estimate may not cover."""

    target: str
    bytes: int
    count: int


class Module:
    """An optimized HLO module, from its text.

    Args:
      text: of ``compiled.as_text()``.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and line.startswith("  ") and " = " in line:
                instruction = _parse(line)
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("the text is no HLO module: it has no ENTRY computation.")
        self.unknown_loops: list[str] = []
        self.times = self._times()

    def root(self, computation: str) -> Instruction:
        """The instruction whose value is the computation's."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def _times(self) -> dict[str, int]:
        """How often each computation outside of fusions runs; all branches of a choice count."""
        times: dict[str, int] = {}

        def visit(name: str, factor: int):
            times[name] = times.get(name, 0) + factor
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    trips = self.trip_count(name, instruction)
                    if trips is None:
                        self.unknown_loops.append(instruction.name)
                    visit(instruction.called("body")[0], factor * (1 if trips is None else trips))
                elif instruction.opcode in ("call", "conditional", "async-start"):
                    keys = ("to_apply", "calls", "branch_computations", "true_computation",
                            "false_computation")  # fmt: skip
                    for inner in instruction.called(*keys):
                        visit(inner, factor)

        visit(self.entry, 1)
        return times

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of ``loop`` runs, or None where that cannot be read."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        inside = self.computations[loop.called("condition")[0]]
        compare = next(i for i in inside.values() if i.is_root)
        if compare.opcode != "compare":
            return None
        condition = loop.called("condition")[0]
        less, greater = (self._through_copies(condition, name) for name in compare.operands)
        if "direction=GT" in compare.attributes:
            less, greater = greater, less
        elif "direction=LT" not in compare.attributes:
            return None
        if less.opcode != "get-tuple-element":
            return None
        index = _index(less)

        def entering(i: int) -> int | None:
            start = self.computations[computation][loop.operands[0]]
            return (
                self._constant(computation, start.operands[i]) if start.opcode == "tuple" else None
            )

        def value(where: str, instruction: Instruction) -> int | None:
            if instruction.opcode == "get-tuple-element":
                return entering(_index(instruction))
            return self._constant(where, instruction.name)

        limit, start = value(condition, greater), entering(index)
        body = loop.called("body")[0]
        new = self.root(body)
        if limit is None or start is None or new.opcode != "tuple":
            return None
        advance = self._through_copies(body, new.operands[index])
        if advance.opcode != "add":
            return None
        steps = [
            value(body, i)
            for i in (self._through_copies(body, name) for name in advance.operands)
            if not (i.opcode == "get-tuple-element" and _index(i) == index)
        ]
        if len(steps) != 1 or not steps[0]:
            return None
        return max(0, -(-(limit - start) // steps[0]))

    def _through_copies(self, computation: str, name: str) -> Instruction:
        instruction = self.computations[computation][name]
        while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            instruction = self.computations[computation][instruction.operands[0]]
        return instruction

    def _constant(self, computation: str, name: str) -> int | None:
        instruction = self._through_copies(computation, name)
        if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.arguments):
            return None
        return int(instruction.arguments)

    def __iter__(self) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction outside of fusions: its computation, itself, how often it runs."""
        for name, times in self.times.items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """Every collective among more than one device."""
        found, seen = [], set()
        for where, instruction, times in self:
            for computation, inner in self._with_fused(where, instruction):
                kind = inner.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", inner.attributes)
                if computation != where and channel:  # a fused one, cut into start, middle and end
                    if (where, channel[1]) in seen:
                        continue
                    seen.add((where, channel[1]))
                devices = first_group(inner.attributes)
                if len(devices) < 2:
                    continue
                size = sum(self.bytes(computation, name) for name in inner.operands)
                if kind == "all-gather":
                    size *= len(devices)
                if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"  # the TPU compiler's, a fusion that keeps one slice
                asynchronous = inner.opcode.endswith("-start") or any(
                    "AsyncCollectiveStart" in i.attributes
                    for i in self.computations[computation].values()
                )
                found.append(Collective(kind, devices, size, times, asynchronous))
        return found

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """Custom calls that compute something."""
        found = []
        for where, instruction, times in self:
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            if instruction.opcode == "custom-call" and target and target[1] not in _NO_KERNELS:
                found.append(Kernel(target[1], self.traffic(where, instruction), times))
        return found

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate for everything but collectives and custom calls; None without."""
        estimates = [
            int(found[1]) * times
            for _, instruction, times in self
            if (found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes))
        ]
        return sum(estimates) if estimates else None

    @functools.cached_property
    def hbm_bytes(self) -> int:
        """Bytes that a step reads from and writes to memory, by the rule above."""
        return sum(self.traffic(where, i) * times for where, i, times in self)

    def traffic(self, computation: str, instruction: Instruction) -> int:
        """Bytes that one run of an instruction moves."""
        opcode = instruction.opcode
        if opcode in _FREE or "AllocateBuffer" in instruction.attributes:
            return 0
        if opcode in ("copy-start", "slice-start"):
            return 2 * min(map(_moved, _shapes(instruction.shape)[:2]))
        shapes = self.computations[computation]
        if opcode == "fusion":
            called = instruction.called("calls")[0]
            whole = [_moved_all(shapes[name].shape) for name in instruction.operands]
            read = (min(w, self._read(called, i, w)) for i, w in enumerate(whole))
            return sum(read) + self._written(called, self.root(called).name, instruction.shape)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _moved_all(instruction.shape)
        if opcode == "dynamic-update-slice":
            return 2 * _moved_all(shapes[instruction.operands[1]].shape)
        read = sum(_moved_all(shapes[name].shape) for name in instruction.operands)
        return read + (0 if opcode.endswith("-start") else _moved_all(instruction.shape))

    def _read(self, computation: str, parameter: int, whole: int) -> int:
        """Bytes of parameter ``parameter``, of ``whole`` bytes, that a fused computation reads."""
        inside = self.computations[computation]
        name = next(
            i.name for i in inside.values()
            if i.opcode == "parameter" and i.arguments == str(parameter)
        )  # fmt: skip
        return min(whole, self._used(computation, name, whole)) if whole else 0

    def _used(self, computation: str, name: str, whole: int) -> int:
        total = 0
        for user in self.computations[computation].values():
            for place, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                    total += _size(user.shape)
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    total += 0  # in place
                elif user.opcode == "bitcast":
                    total += self._used(computation, user.name, whole)
                elif user.opcode == "fusion":
                    total += self._read(user.called("calls")[0], place, whole)
                else:
                    total += whole
        return total

    def _written(self, computation: str, name: str, outside: str) -> int:
        """Bytes that a fused computation writes for the value ``name``, of shape ``outside``."""
        inside = self.computations[computation]
        instruction = inside[name]
        if instruction.opcode == "tuple":
            shapes = _top_level(outside)
            return sum(
                self._written(computation, n, s)
                for n, s in zip(instruction.operands, shapes, strict=True)
            )
        if instruction.opcode == "parameter" or not _moved_all(outside):
            return 0
        if instruction.opcode == "dynamic-update-slice":
            return _size(inside[instruction.operands[1]].shape)
        if instruction.opcode == "bitcast":
            return self._written(computation, instruction.operands[0], outside)
        if instruction.opcode == "fusion" and not outside.startswith("("):
            called = instruction.called("calls")[0]
            return self._written(called, self.root(called).name, outside)
        return _moved_all(outside)

    def bytes(self, computation: str, name: str) -> int:
        """Size of a value, without padding."""
        return sum(
            math.prod(d) * b // 8 for d, b, _ in _shapes(self.computations[computation][name].shape)
        )

    def _with_fused(self, where: str, instruction: Instruction):
        yield where, instruction
        if instruction.opcode == "fusion":
            called = instruction.called("calls")[0]
            for inner in self.computations[called].values():
                yield from self._with_fused(called, inner)


def _parse(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    is_root = left.startswith("ROOT ")
    end = _balanced(right) if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    start = len(opcode)
    end = start + _balanced(rest[start:])
    arguments = rest[start + 1 : end - 1]
    return Instruction(
        left.removeprefix("ROOT ").lstrip("%"), shape, opcode,
        tuple(re.findall(r"%([\w.-]+)", arguments)), arguments, rest[end:], is_root,
    )  # fmt: skip


def _balanced(text: str) -> int:
    """Where the bracket that opens ``text`` is closed, plus one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _top_level(shape: str) -> list[str]:
    """The elements of a tuple's shape."""
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(shape[1:-1], start=1):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(shape[start:i].strip())
            start = i + 1
    parts.append(shape[start:-1].strip())
    return [re.sub(r"/\*.*?\*/", "", part).strip() for part in parts]


def _shapes(shape: str) -> list[tuple[tuple[int, ...], int, str]]:
    """Dimensions, bits an element and layout of every array in a shape."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(shape):
        width = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(width[0]) if width else 8)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        found.append((sizes, bits, layout))
    return found


def _padded(dims: tuple[int, ...], bits: int, layout: str) -> int:
    """Bytes in memory: the minor dimensions rounded up to the layout's tiles."""
    order, tile = re.match(r"[\d,]*", layout), re.search(r"T\(([\d,]+)\)", layout)
    if tile and order[0]:
        tiles = [int(t) for t in tile[1].split(",")]
        physical = [dims[int(i)] for i in reversed(order[0].split(","))]
        if len(physical) >= len(tiles):
            for k in range(1, len(tiles) + 1):
                physical[-k] = -(-physical[-k] // tiles[-k]) * tiles[-k]
        dims = tuple(physical)
    return math.prod(dims) * bits // 8


def _moved(array) -> int:
    """Bytes of an array in HBM, 0 for one that lies on the chip."""
    dims, bits, layout = array
    space = re.search(r"S\((\d+)\)", layout)
    return 0 if space and space[1] != "0" else _padded(dims, bits, layout)


def _moved_all(shape: str) -> int:
    return sum(map(_moved, _shapes(shape)))


def _size(shape: str) -> int:
    """Bytes of a value inside a fusion, wherever it is."""
    return sum(_padded(*array) for array in _shapes(shape))


def _index(element: Instruction) -> int:
    return int(re.search(r"index=(\d+)", element.attributes)[1])
