"""An official code's parameters as a table, read in both directions.

A row of the table is a :class:`Leaf`: the official name, what becomes of the axes, and our path.
``load`` reads the rows from left to right and ``export`` from right to left, so that the two cannot
disagree. The sizes of a model are what most arrays of a file say, so that one damaged array is
found out by the others.
"""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from crate_jax import models
from crate_jax.config import ConfigError

CONSTANT = "constant in the code, stored in no checkpoint"


class Leaf(NamedTuple):
    """One parameter, or one of every layer.

    Attributes:
      official: its name in the file; ``{i}`` is the layer.
      axes: ``'theirs -> ours'``, or one side where the two are equal. An axis is a named size, or
        several in parentheses that are flattened into one; a prime marks a second axis of the
        same size. ``'(heads head_dim) width -> width heads head_dim'`` is a torch weight.
      path: ours, with ``blocks_{i}`` for a layer.
      when: whether a model of these settings has it; None is always.
    """

    official: str
    axes: str
    path: str
    when: Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def sides(self) -> list[list[list[str]]]:
        """Theirs and ours: a list of axes, each the list of sizes that are flattened into it."""
        texts = self.axes.split("->")
        sides = [
            [axis.strip("()").split() for axis in re.findall(r"\(.*?\)|\S+", t)] for t in texts
        ]
        return [sides[0], sides[-1]]

    def to_ours(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        theirs, ours = self.sides
        return _rearrange(array, theirs, ours, sizes)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        theirs, ours = self.sides
        names = (name.strip("'") for [name] in ours)
        return _rearrange(array, ours, theirs, dict(zip(names, array.shape, strict=True)))


def _rearrange(array, source, target, sizes):
    if source == target:
        return array
    names = [name for axis in source for name in axis]
    order = [names.index(name) for axis in target for name in axis]
    split = array.reshape([sizes[name.strip("'")] for name in names]).transpose(order)
    return split.reshape([math.prod(sizes[name.strip("'")] for name in axis) for axis in target])


def _shape(axes, sizes) -> str:
    """A wanted shape in words: ``(24, 8)``, with the names of sizes that no array tells."""
    known = {"1": 1} | sizes
    names = [[name.strip("'") for name in axis] for axis in axes]
    parts = [
        str(math.prod(known[n] for n in axis)) if all(map(known.get, axis)) else "*".join(axis)
        for axis in names
    ]
    return f"({', '.join(parts)}{',' * (len(parts) == 1)})"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one official code names, shapes and limits the parameters of a family.

    Attributes:
      family: a key of ``models.MODELS``.
      code: ``torch`` or ``jax``.
      leaves: the table.
      particulars: ``(sizes, has, given) -> (settings, why)``: the fields that this family reads off
        the sizes beyond the common ones, and for each argument that it lacks the reason.
        ``has(path)`` says whether the file holds a leaf of ours; ``sizes`` are put right in place.
      defaults: fields that this code sets otherwise than our module does.
      shapes: fields on which the table depends, at the only value it has rows for.
      arithmetic: fields that change no shape, at the value that is hard-wired in the code.
      limits: ``(broken, sentence)`` for what no single field says.
    """

    family: str
    code: str
    leaves: tuple[Leaf, ...]
    particulars: Callable[..., tuple[dict, dict]]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arithmetic: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: tuple[tuple[Callable[[Mapping], bool], str], ...] = ()

    def __str__(self) -> str:
        return f"{self.family} ({self.code})"

    @functools.cached_property
    def names(self) -> re.Pattern:
        """Matches every official name; the one group that takes part holds the layer."""
        return re.compile(
            "|".join(re.escape(leaf.official).replace(r"\{i\}", r"(\d+)") for leaf in self.leaves)
        )

    def rows(self, settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Leaf]]:
        """``(official name, our path, leaf)`` of every array of a model."""
        for leaf in self.leaves:
            if leaf.when is None or leaf.when(settings):
                for i in range(settings["depth"] if "{i}" in leaf.official else 1):
                    yield leaf.official.format(i=i), leaf.path.format(i=i), leaf

    def read(self, arrays: Mapping[str, np.ndarray], given: Mapping, source: str):
        """Settings and parameters of a file.

        Args:
          arrays: by official name.
          given: fields that the caller sets, and ``channels``.
          source: what to call the file in a sentence.

        Returns:
          ``(fields of the module, {our path: array})``.

        Raises:
          ConfigError: on arguments that are missing or contradict, and on arrays that do.
        """
        settings, sizes = self._settings(arrays, given, source)
        self.refuse(settings, self.shapes)
        wrong = []
        found = dict(arrays)
        params = {}
        for name, path, leaf in self.rows(settings):
            wanted = _shape(leaf.sides[0], sizes)
            array = found.pop(name, None)
            if array is None:
                wrong.append(f"{name}: missing, {wanted} wanted")
            elif str(array.shape) != wanted:
                wrong.append(f"{name}: {array.shape} in the file, {wanted} wanted")
            elif not jnp.issubdtype(array.dtype, jnp.floating):
                wrong.append(f"{name}: {array.dtype} in the file, floating point wanted")
            elif not wrong:
                params[path] = leaf.to_ours(array, sizes)
        wrong += [f"{name}: unexpected, {array.shape} in the file" for name, array in found.items()]
        if wrong:
            raise ConfigError(
                f"{source} is no checkpoint of {self}:\n  " + "\n  ".join(wrong) + "\n"
                "The sizes wanted are those that most arrays of the file agree on."
            )
        return {key: settings[key] for key in settings if key in models.fields(self.family)}, params

    def write(self, params: Mapping[str, np.ndarray], settings: Mapping) -> dict[str, np.ndarray]:
        """Arrays by official name.

        Args:
          params: by our path, layers unstacked.
          settings: every field of the module.

        Raises:
          ConfigError: on a field that the code cannot express, and on parameters that are not the
            module's.
        """
        self.refuse(settings, {**self.shapes, **self.arithmetic})
        rows = {path: (name, leaf) for name, path, leaf in self.rows(settings)}
        wrong = [f"{path}: missing" for path in rows.keys() - params.keys()]
        wrong += [f"{path}: unexpected" for path in params.keys() - rows.keys()]
        wrong += [
            f"{path}: {params[path].shape}, {_shape(leaf.sides[1], {})} wanted"
            for path, (_, leaf) in rows.items()
            if path in params and params[path].ndim != len(leaf.sides[1])
        ]
        if wrong:
            raise ConfigError(
                "the parameters are not of this module:\n  " + "\n  ".join(sorted(wrong))
            )
        arrays = {name: leaf.to_theirs(params[path]) for path, (name, leaf) in rows.items()}
        self.read(arrays, settings, "the tree of parameters")  # its sizes fit the module's
        return arrays

    def refuse(self, settings: Mapping, only: Mapping) -> None:
        """Raises with every field that has another value than the only one the code has."""
        wrong = [
            f"{key}={settings[key]!r} (only {value!r})"
            for key, value in only.items()
            if settings[key] != value
        ]
        wrong += [text.format(**settings) for broken, text in self.limits if broken(settings)]
        if wrong:
            raise ConfigError(f"the layout {self} cannot express {'; '.join(wrong)}.")

    def _settings(self, arrays, given, source):
        sizes = self._measure(arrays)
        held = {
            leaf.path
            for leaf in self.leaves
            if any(leaf.official.format(i=i) in arrays for i in range(sizes["depth"] or 1))
        }
        told = {key: sizes.get(key, 0) for key in ("width", "depth", "num_classes")}
        lacking = {}

        rows = sizes.get("heads head_dim", 0)
        heads = sizes.get("heads") or given.get("heads")
        if heads is None:
            lacking["heads"] = "the projection is stored as one matrix for all of them"
        else:
            if not isinstance(heads, int) or heads < 1 or rows % heads:
                raise ConfigError(f"heads={heads!r} does not divide the projection's {rows} rows.")
            sizes["heads"], head_dim = heads, sizes.get("head_dim") or rows // heads
            plain = given.get("head_dim") is None and head_dim * heads == told["width"]
            sizes["head_dim"] = head_dim
            told |= {"heads": heads, "head_dim": None if plain else head_dim}
        lacking |= {key: CONSTANT for key in ("eta", "lmbda") if given.get(key) is None}
        particular, why = self.particulars(sizes, held.__contains__, given)
        told |= particular
        lacking |= why
        if lacking:
            reasons = defaultdict(list)
            for key, reason in lacking.items():
                reasons[reason].append(f"{key}=")
            raise ConfigError(
                f"{source} does not tell "
                + "; ".join(f"{' and '.join(keys)} ({why})" for why, keys in reasons.items())
                + ". Say what the model was trained with."
            )
        for key, value in told.items():
            if given.get(key, value) != value:
                raise ConfigError(
                    f"{key}={given[key]!r} contradicts {source}, whose arrays say {value!r}."
                )
        fields = {key: field.default for key, field in models.fields(self.family).items()}
        return {**fields, **self.defaults, **given, **told}, sizes

    def _measure(self, arrays) -> dict[str, int]:
        """Sizes by name, and the depth: what most arrays say."""
        found = (self.names.fullmatch(name) for name in arrays)
        depth = 1 + max((int(m[m.lastindex]) for m in found if m and m.lastindex), default=-1)
        votes = defaultdict(Counter)
        for leaf in self.leaves:
            axes = leaf.sides[0]
            for i in range(depth if "{i}" in leaf.official else 1):
                array = arrays.get(leaf.official.format(i=i))
                if array is not None and array.ndim == len(axes):
                    for axis, size in zip(axes, array.shape, strict=True):
                        votes[" ".join(axis).strip("'")][size] += 1
        sizes = {name: count.most_common(1)[0][0] for name, count in votes.items() if name != "1"}
        return {**sizes, "depth": depth}
