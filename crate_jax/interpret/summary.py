"""A run in the terminal: tables of parameters and facts, the layers as bars."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util
from rich.table import Table


def count(params) -> int:
    """Number of parameters; of linen collections those of ``params``, without statistics."""
    if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
        params = params["params"]
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


def facts(**rows: str) -> Table:
    """Names and values, a row each."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), value)
    return table


def layers_chart(layers: Mapping[str, np.ndarray], width: int = 24) -> Table:
    """Coding rate and non-zero fraction of every layer as bars.

    Args:
      layers: ``coding_rate`` and ``nonzero``, each ``(L,)``.
      width: of the longest bar, in characters.
    """
    table = Table("layer", "coding rate (nats)", "non-zero codes", title="Layers", box=None)
    rate, nonzero = np.asarray(layers["coding_rate"]), np.asarray(layers["nonzero"])
    for l, (r, s) in enumerate(zip(rate, nonzero, strict=True), start=1):
        table.add_row(
            str(l),
            f"{_bar(r / max(rate.max(), 1e-9), width, 'blue')} {r:8.1f}",
            f"{_bar(s, width, 'red')} {100 * s:5.1f} %",
        )
    return table


def _bar(fraction: float, width: int, colour: str) -> str:
    """``fraction`` of ``width`` cells, to an eighth of a cell; none where it is not finite."""
    fraction = float(np.clip(np.nan_to_num(fraction), 0.0, 1.0))
    eighths = round(8 * width * fraction)
    text = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"[{colour}]{text}[/]{' ' * (width - len(text))}"
