"""The study while it runs: on a terminal a table, a row a cell; elsewhere a line now and then.

What is shown of a cell are medians over its runs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import numpy as np
from rich.console import Console

from crate_jax.studies.ablation.settings import Cell
from crate_jax.train.progress import TableView

COLUMNS = (
    "cell", "state", "step", "left", "run-steps/s", "loss", "Attn_<s>", "value ratio",
    "residual ratio",
)  # fmt: skip


class View(TableView):
    """Shows where the study stands.

    Args:
      cells: in their order.
      total: updates of every run.
      console: where to.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        total: int,
        console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total, self._seconds, self._updates, self._runs = total, 0.0, 0, 0
        super().__init__(COLUMNS, (cell.name for cell in cells), console, clock)

    def begin(self, cell: Cell, runs: int) -> None:
        """A cell is being compiled."""
        self._rows[cell.name][1:] = ["compiling"]
        self._seconds, self._updates, self._runs = 0.0, 0, runs

    def trained(self, updates: int, seconds: float) -> None:
        """So many updates of all runs took so long, compilation apart."""
        self._updates += updates
        self._seconds += seconds

    @property
    def run_steps_per_second(self) -> float:
        """Of the cell under way: updates times runs, over the time in updates."""
        return self._runs * self._updates / self._seconds if self._seconds else float("nan")

    def point(self, cell: Cell, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Metrics ``(R, ...)`` were taken."""
        left = "-"
        if self._updates:
            pace = self._seconds / self._updates
            left = str(timedelta(seconds=round(pace * (self._total - step))))
        self._rows[cell.name][1:] = [
            "training", f"{step:,}/{self._total:,}", left, *self._readings(metrics),
        ]  # fmt: skip
        self._say_now_and_then(cell.name)

    def end(self, cell: Cell, metrics: Mapping[str, np.ndarray], how: str = "done") -> None:
        """A cell is finished, or was before."""
        self._rows[cell.name][1:] = [
            how, f"{self._total:,}/{self._total:,}", "-", *self._readings(metrics),
        ]  # fmt: skip
        self._say(cell.name)

    def _readings(self, metrics: Mapping[str, np.ndarray]) -> list[str]:
        R = len(metrics["loss"])
        speed = self.run_steps_per_second
        of_run = (
            metrics["loss"],
            np.nan_to_num(metrics["attention_bos"].reshape(R, -1), nan=-1.0).max(axis=1),
            np.nan_to_num(metrics["value_ratio"].reshape(R, -1), nan=np.inf).min(axis=1),
            metrics["residual_ratio"].max(axis=1),
        )
        return [
            f"{speed:,.0f}" if speed == speed else "-",
            *(f"{np.median(x):.3g}" for x in of_run),
        ]
