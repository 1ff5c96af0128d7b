"""Timing of several ways to do one thing, in turn, and the table that compares them.

A row is what is known of a way: ``predicted`` seconds, stated before anything is timed, and the
measured ``seconds`` with their ``fastest`` and ``slowest`` round.
"""

import json
import random
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from crate_jax.config import ConfigError

WIDTH = 110

Row = dict[str, float]


class Stepping:
    """A training step, compiled or to be, and the state that it hands on and consumes."""

    def __init__(self, step: Callable, state, *args):
        self._step, self.state, self._args = step, state, args

    def __call__(self):
        self.state, out = self._step(self.state, *self._args)
        return self.state, out


def check_rounds(rounds: int) -> None:
    """Raises a sentence where nothing would be measured."""
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1; got {rounds}.")


def check_interpreter(python: str | None) -> None:
    """Raises a ConfigError where ``--torch-python`` is given and is no program."""
    if python and shutil.which(python) is None:
        raise ConfigError(f"--torch-python={python} is no program.")


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Row]:
    """Times every way over rounds that go through all in turn; one more warms up.

    Every round has an order of its own: what a way leaves behind, memory that the kernel takes back
    or threads that still spin, does not always fall on the same other. A way returns arrays, which
    are waited for, or the seconds that it has measured itself.

    Returns:
      by way, the median as ``seconds``, and the ``fastest`` and ``slowest`` round.
    """
    seconds, order, shuffle = {name: [] for name in ways}, list(ways), random.Random(0).shuffle
    for r in range(rounds + 1):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            out = ways[name]()
            if not isinstance(out, float):
                jax.block_until_ready(out)
                out = time.perf_counter() - start
            if r:
                seconds[name].append(out)
    return {name: spread(times) for name, times in seconds.items()}


def spread(times: Sequence[float]) -> Row:
    """Median, least and most of the rounds of a way."""
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def matmul_rate(size: int = 1024, dtype: str = "float32") -> float:
    """FLOP/s of a square product on the first device at its fastest, for predictions."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / alternate({"product": lambda: product(x)}, 9)["product"]["fastest"]


def copy_rate(size: int = 2**25) -> float:
    """Bytes a second, read and written, of a pass over 128 MiB in place, for predictions."""
    x = jnp.ones(size)
    moved = 2 * x.nbytes
    scaled = Stepping(jax.jit(lambda x: (x * 0.5, ()), donate_argnums=0), x)
    return moved / alternate({"pass": scaled}, 9)["pass"]["fastest"]


def wide_console(width: int = WIDTH) -> Console:
    """A console on which a table is not folded."""
    console = Console()
    console.width = max(console.width, width)
    return console


def ratios(rows: Mapping[str, Row], name: str) -> tuple[str, str]:
    """Predicted and measured seconds of a row over the first row's, as text; "" if unknown."""
    row, first = rows[name], next(iter(rows.values()))
    return tuple(
        f"{row[what] / first[what]:.2f}" if what in row and what in first else ""
        for what in ("predicted", "seconds")
    )


def foretell(rows: Mapping[str, Row]) -> None:
    """Prints what is predicted of the rows, relative to the first; called before they are timed."""
    told = {name: ratios(rows, name)[0] for name in rows}
    told = ", ".join(f"{name} {ratio}" for name, ratio in told.items() if ratio)
    wide_console().print(f"Predicted ratios: {told}.")


def race(rows: dict[str, Row], runs: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Prints what is predicted of the rows, times their ways, and adds to each what was measured.

    Args:
      rows: by way, with ``predicted`` where it is; a way without one gets a row.
      runs: see :func:`alternate`.
      rounds: as there.
    """
    foretell(rows)
    for name, measured in alternate(runs, rounds).items():
        rows[name] = rows.get(name, {}) | measured


def show(rows: Mapping[str, Row], title: str, note: str = "", columns: Sequence[str] = ()) -> None:
    """Prints the rows with their ratios to the first; ``columns`` are keys to print besides."""
    spreads = ("seconds", "fastest", "slowest")
    table = Table("way", *spreads, "predicted ratio", "ratio", *columns, title=title, box=None)
    table.columns[0].no_wrap = True
    for name, row in rows.items():
        cells = [f"{row[c]:.4g}" if c in row else "" for c in spreads]
        besides = (f"{row[c]:.3g}" if c in row else "" for c in columns)
        table.add_row(name, *cells, *ratios(rows, name), *besides)
    console = wide_console()
    console.print(table)
    if note:
        console.print(note)


def write(path: str | None, rows: Mapping) -> None:
    """Writes rows as JSON, where a path is given."""
    if path:
        with open(path, "w") as file:
            json.dump(rows, file, indent=2)
