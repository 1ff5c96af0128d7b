"""A network's parameters as a table."""

from collections.abc import Mapping

import jax
from flax import traverse_util
from rich.table import Table


def count(params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_table(params: Mapping, shardings: Mapping) -> Table:
    """One row a leaf: path, shape, dtype, count, and along which mesh axes it is split.

    Args:
      params: nested dict of arrays or shapes.
      shardings: the same with ``NamedSharding`` leaves.
    """
    table = Table("parameter", "shape", "dtype", "count", "sharding", title="Parameters")
    specs = traverse_util.flatten_dict(shardings)
    for path, leaf in traverse_util.flatten_dict(params).items():
        axes = [str(axis) for axis in specs[path].spec if axis]
        table.add_row(
            "/".join(path), "x".join(map(str, leaf.shape)), str(leaf.dtype), f"{leaf.size:,}",
            ", ".join(axes) or "replicated",
        )  # fmt: skip
    table.add_section()
    table.add_row("total", "", "", f"{count(params):,}", "")
    return table
