"""What a cell leaves on disk: its metrics over the updates, and its result once it is finished.

``cells/NAME/series.npz`` grows with the training; ``cells/NAME/result.npz`` also holds the last
model's portrait and interventions, and its being there says that the cell is done.
``metrics.jsonl`` has the scalars of all cells, one line for each run and point.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crate_jax.studies.ablation.settings import Cell, Run
from crate_jax.studies.metrics_file import MetricsFile
from crate_jax.train import whole

SERIES, RESULT = "series.npz", "result.npz"
STEPS = "steps"
_BY_PARAMETER = "leaf_"  # metrics with an entry for every parameter stay out of metrics.jsonl


class Series:
    """Metrics at rising steps, each ``(R, ...)`` over the runs of a cell.

    Attributes:
      steps: updates that the runs had seen.
    """

    def __init__(self):
        self.steps: list[int] = []
        self._points: list[Mapping[str, np.ndarray]] = []

    def append(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        self.steps.append(step)
        self._points.append({name: np.asarray(value) for name, value in metrics.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """``steps`` ``(P,)`` and every metric ``(P, R, ...)``."""
        out = {STEPS: np.array(self.steps)}
        for name in self._points[0] if self._points else ():
            out[name] = np.stack([point[name] for point in self._points])
        return out

    @property
    def last(self) -> Mapping[str, np.ndarray]:
        """The newest point."""
        return self._points[-1]

    def save(self, path: pathlib.Path) -> None:
        whole.write_npz(path, self.arrays())

    @classmethod
    def load(cls, path: pathlib.Path, until: int) -> "Series":
        """What a file has of the points up to a step; nothing where it is missing or damaged."""
        series, saved = cls(), whole.read_npz(path) or {STEPS: ()}
        for i, step in enumerate(saved.pop(STEPS)):
            if step <= until:
                series.append(int(step), {name: value[i] for name, value in saved.items()})
        return series


def of_series(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a result is a series: ``steps`` and the metrics over time."""
    return {name: x for name, x in arrays.items() if "/" not in name}


def rows(
    cell: Cell, runs: Sequence[Run], step: int, metrics: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """The lines of ``metrics.jsonl`` for one point: one a run, layers and heads as ``name/l/h``."""
    for r, run in enumerate(runs):
        row = {
            "step": step, "cell": cell.name, "seed": run.seed,
            "learning_rate": run.learning_rate, "weight_decay": run.weight_decay,
        }  # fmt: skip
        for name, values in metrics.items():
            if name.startswith(_BY_PARAMETER):
                continue
            for index in np.ndindex(values.shape[1:]):
                value = float(values[(r, *index)])
                key = "/".join([name, *map(str, index)])
                row[key] = value if math.isfinite(value) else None
        yield json.dumps(row)


class RunMetrics(MetricsFile):
    """Lines of every run at every point."""

    def write(self, cell: Cell, runs: Sequence[Run], step: int, metrics: Mapping) -> None:
        self.write_lines(rows(cell, runs, step, metrics))

    def write_series(self, cell: Cell, runs: Sequence[Run], arrays: Mapping) -> None:
        """All points of a series or a result."""
        series = of_series(arrays)
        for i, step in enumerate(series.pop(STEPS)):
            self.write(cell, runs, int(step), {name: x[i] for name, x in series.items()})
