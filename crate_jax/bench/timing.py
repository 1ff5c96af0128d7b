"""Timing of several ways to do one thing, in turn, and the table that compares them."""

import json
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

WIDTH = 110


class Stepping:
    """A training step, compiled or to be, and the state that it hands on and consumes."""

    def __init__(self, step: Callable, state, *args):
        self._step, self.state, self._args = step, state, args

    def __call__(self):
        self.state, out = self._step(self.state, *self._args)
        return self.state, out


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, over rounds that go through all in turn; one more warms up.

    A way returns arrays, which are waited for, or the seconds that it has measured itself.
    """
    seconds = {name: [] for name in ways}
    for r in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            out = way()
            if not isinstance(out, float):
                jax.block_until_ready(out)
                out = time.perf_counter() - start
            if r:
                seconds[name].append(out)
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul_rate(size: int = 1024) -> float:
    """FLOP/s of a square float32 product on the first device, for predictions."""
    x = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / alternate({"product": lambda: product(x)}, 5)["product"]


def copy_rate(size: int = 2**25) -> float:
    """Bytes a second, read and written, of a pass over 128 MiB, for predictions."""
    x = jnp.ones(size)
    scaled = jax.jit(lambda x: x * 1.5)
    return 2 * x.nbytes / alternate({"pass": lambda: scaled(x)}, 5)["pass"]


def wide_console(width: int = WIDTH) -> Console:
    """A console on which a table is not folded."""
    console = Console()
    console.width = max(console.width, width)
    return console


def show(rows: Mapping[str, Mapping[str, float]], title: str, note: str = "") -> None:
    """Prints rows of ``seconds`` and, where there is one, ``predicted`` seconds.

    Ratios are to the first row.
    """
    table = Table("way", "seconds", "ratio", "predicted ratio", title=title, box=None)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        predicted = ""
        if "predicted" in row and "predicted" in first:
            predicted = f"{row['predicted'] / first['predicted']:.2f}"
        ratio = f"{row['seconds'] / first['seconds']:.2f}"
        table.add_row(name, f"{row['seconds']:.4g}", ratio, predicted)
    console = wide_console()
    console.print(table)
    if note:
        console.print(note)


def write(path: str | None, rows: Mapping) -> None:
    """Writes rows as JSON, where a path is given."""
    if path:
        with open(path, "w") as file:
            json.dump(rows, file, indent=2)
