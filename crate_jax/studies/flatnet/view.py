"""The study while it runs: a table with a row a network, or a line now and then."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
from rich.console import Console
from rich.table import Table

from crate_jax.models.flatnet_build import Iteration
from crate_jax.studies.flatnet.settings import Cell
from crate_jax.train.progress import OnTerminal

LINE_EVERY = 10.0  # seconds
COLUMNS = (
    "network", "state", "iteration", "left at most", "layers", "d", "radius", "moved", "outside d",
)  # fmt: skip


class View(OnTerminal):
    """Shows where the study stands.

    Args:
      cells: in their order.
      total: iterations of a network at most.
      console: where to.
      clock: seconds, for tests.
    """

    def __init__(
        self, cells: Sequence[Cell], total: int, console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self._rows = {cell.name: [cell.name, "waiting"] for cell in cells}
        self._total, self._console, self._clock, self._printed = total, console, clock, -np.inf
        self._seconds: list[float] = []
        super().__init__(console)

    def begin(self, cell: Cell, state: str) -> None:
        """A network is begun, taken up again, or found finished."""
        self._rows[cell.name][1:] = [state]
        self._seconds = []
        self._print(cell)

    def point(self, cell: Cell, it: Iteration) -> None:
        """An iteration is done."""
        self._seconds = [*self._seconds[-49:], it.seconds]
        left = np.median(self._seconds) * (self._total - it.index - 1)  # compiling apart
        self._rows[cell.name][1:] = [
            "building", f"{it.index + 1}/{self._total}", str(timedelta(seconds=round(left))),
            f"{it.depth}", f"{it.d}", f"{it.r:.2f}", f"{it.moved:.1e}", f"{it.outside:.1e}",
        ]  # fmt: skip
        now = self._clock()
        if now - self._printed >= LINE_EVERY:
            self._printed = now
            self._print(cell)

    def end(self, cell: Cell, why: str) -> None:
        """A network is finished."""
        self._rows[cell.name][1] = "done"
        self._print(cell)
        if self._live is None:
            self._console.print(f"{cell.name}  ended: {why}", markup=False, highlight=False)

    def _print(self, cell: Cell) -> None:
        if self._live is None:
            name, state, *rest = self._rows[cell.name]
            named = (f"{head} {text}" for head, text in zip(COLUMNS[2:], rest, strict=False))
            line = "  ".join([name, state, *named])
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _render(self) -> Table:
        table = Table(*COLUMNS, box=None)
        for row in self._rows.values():
            table.add_row(*row)
        return table
