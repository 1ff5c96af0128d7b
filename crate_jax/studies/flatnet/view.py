"""The study while it runs: a table with a row a network, or a line now and then."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
from rich.console import Console

from crate_jax.models.flatnet_build import Iteration
from crate_jax.studies.flatnet.settings import Cell
from crate_jax.train.progress import TableView

COLUMNS = (
    "network", "state", "iteration", "left at most", "layers", "d", "radius", "moved", "outside d",
)  # fmt: skip


class View(TableView):
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
        self._total = total
        self._seconds: list[float] = []
        super().__init__(COLUMNS, (cell.name for cell in cells), console, clock)

    def begin(self, cell: Cell, state: str) -> None:
        """A network is begun, taken up again, or found finished."""
        self._rows[cell.name][1:] = [state]
        self._seconds = []
        self._say(cell.name)

    def point(self, cell: Cell, it: Iteration) -> None:
        """An iteration is done."""
        self._seconds = [*self._seconds[-49:], it.seconds]
        left = np.median(self._seconds) * (self._total - it.index - 1)  # compiling apart
        self._rows[cell.name][1:] = [
            "building", f"{it.index + 1}/{self._total}", str(timedelta(seconds=round(left))),
            f"{it.depth}", f"{it.d}", f"{it.r:.2f}", f"{it.moved:.1e}", f"{it.outside:.1e}",
        ]  # fmt: skip
        self._say_now_and_then(cell.name)

    def end(self, cell: Cell, why: str) -> None:
        """A network is finished."""
        self._rows[cell.name][1] = "done"
        self._say(cell.name)
        if self._live is None:
            self._console.print(f"{cell.name}  ended: {why}", markup=False, highlight=False)
