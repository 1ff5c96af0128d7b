"""The study: trains one cell after the other, then writes table, figures and page."""

import os
import pathlib
import time

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram
from crate_jax.studies.ablation import report
from crate_jax.studies.ablation.records import (
    RESULT,
    SERIES,
    RunMetrics,
    Series,
    of_series,
)
from crate_jax.studies.ablation.settings import (
    Cell,
    Settings,
    check_with_law,
    list_cells,
    list_runs,
    log_steps,
    task_of,
)
from crate_jax.studies.ablation.training import Trainer, make_mesh
from crate_jax.studies.ablation.view import View
from crate_jax.train.checkpoint import Checkpoints
from crate_jax.train.preemption import Preemption
from crate_jax.train.whole import read_npz, write_npz

CALL_SECONDS = 2.0
"""About how long a call to the device may take: so long a signal may have to wait."""


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Carries the study out, or the rest of it; the exit code.

    Finished cells are not trained again, one under way goes on from its last checkpoint, bit for
    bit.

    Raises:
      ConfigError: about settings that do not fit the law of the transitions or the devices.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            "the ablation lays its runs out on the devices of one process; start it with "
            "--distributed=off, and give other hosts other cells."
        )
    cells = list_cells(settings)
    law = bigram.load(
        settings.data.law, data_dir=settings.data.data_dir, seed=settings.seed,
        settings=("config.data.law", "config.data.data_dir"),
    )  # fmt: skip
    check_with_law(settings, law)
    for cell in cells:
        make_mesh(
            settings.sweep, len(list_runs(settings, cell)), settings.data.batch, jax.local_devices()
        )
    _tell_of_idle_cores(len(list_runs(settings, cells[0])), console)
    results = {}
    whole = Mesh(np.asarray(jax.local_devices()), ("sweep",))
    with (
        RunMetrics(workdir / "metrics.jsonl") as metrics,
        View(cells, settings.train.steps, console) as view,
        Preemption(whole) as preemption,
    ):
        for cell in cells:
            directory = workdir / "cells" / cell.name
            result = read_npz(directory / RESULT)
            if result is not None:
                metrics.write_series(cell, list_runs(settings, cell), result)
                view.end(cell, {name: x[-1] for name, x in of_series(result).items()}, "was done")
            else:
                training = Training(settings, cell, law, directory, console)
                if not training.run(metrics, view, preemption):
                    return preemption.exit_code
                result = training.finish()
                view.end(cell, training.series.last)
            results[cell] = result
    report.write(settings, law, results, workdir, console)
    return 0


class Training:
    """One cell from where it stands to its result.

    Args:
      settings: of the study.
      cell: of the grid.
      law: of the transitions.
      directory: the cell's own.
      console: told of damaged checkpoints.

    Attributes:
      series: metrics so far.
      trainer: of the cell.
    """

    def __init__(
        self, settings: Settings, cell: Cell, law: bigram.Law, directory: pathlib.Path,
        console: Console,
    ):  # fmt: skip
        self._settings, self._cell, self._law = settings, cell, law
        self._directory, self._console = directory, console
        self.trainer, self.series = Trainer(settings, cell, law), Series()
        self._state = None

    def run(self, metrics: RunMetrics, view: View, preemption: Preemption) -> bool:
        """Trains to the last update, or until a signal; whether it came to the end."""
        self._directory.mkdir(parents=True, exist_ok=True)
        view.begin(self._cell, len(self.trainer.runs))
        with Checkpoints(
            self._directory, keep_last=2, keep_best=0, report=self._console.print
        ) as checkpoints:
            step = self._start(checkpoints)
            metrics.write_series(self._cell, self.trainer.runs, self.series.arrays())
            return self._train(step, checkpoints, metrics, view, preemption)

    def finish(self) -> dict[str, np.ndarray]:
        """Writes the cell's result: series, the last model's portrait, and interventions."""
        trainer = self.trainer
        task = task_of(self._settings, self._cell)
        tokens = trainer.first_sequence
        names = backcopy.adapt(self._law, task).tokens
        trigger = backcopy.trigger_mask(self._law, task, tokens)
        portrait = jax.device_get(trainer.portrait(self._state))
        intervened = jax.device_get(trainer.intervene(self._state))
        result = {
            **self.series.arrays(),
            **{f"portrait/{name}": x for name, x in portrait.items()},
            **{f"intervened/{name}": x for name, x in intervened.items()},
            "about/leaf_names": np.array(trainer.leaf_names),
            "about/interventions": np.array(list(trainer.interventions())),
            "about/tokens": np.array([_show(names[i]) for i in tokens]),
            "about/trigger": np.asarray(trigger),
        }
        write_npz(self._directory / RESULT, result)
        return result

    def _start(self, checkpoints: Checkpoints) -> int:
        """The state to go on from, and its step."""
        if checkpoints.newest() is None:
            self._state = self.trainer.init()
            return 0
        step, self._state, _ = checkpoints.restore_newest(self.trainer.abstract_state)
        path = self._directory / SERIES
        self.series = Series.load(path, step)
        if self.series.steps != [p for p in log_steps(self._settings.train) if p <= step]:
            raise ConfigError(
                f"{path}, the metrics of the cell up to its checkpoint at update {step:,}, is "
                f"missing, damaged or of another time. Put it back, or remove {self._directory} to "
                f"train the cell from its start."
            )
        return step

    def _train(self, step, checkpoints, metrics, view, preemption) -> bool:
        train, trainer = self._settings.train, self.trainer
        saved_at, pace, last = time.monotonic(), _Pace(), None
        for point in log_steps(train):
            if point in self.series.steps:
                continue
            while step < point:
                count = min(point - step, pace.updates)
                began = time.perf_counter()
                self._state, last = trainer.advance(self._state, count)
                jax.block_until_ready(last)
                seconds = time.perf_counter() - began
                if pace.note(count, seconds):
                    view.trained(count, seconds)
                step += count
                if step < point and preemption.poll():
                    self._save(step, checkpoints)
                    return False
            values = jax.device_get(trainer.metrics(self._state, last))
            self.series.append(step, values)
            metrics.write(self._cell, trainer.runs, step, values)
            view.point(self._cell, step, values)
            stop = preemption.poll()
            late = time.monotonic() - saved_at > train.checkpoint_seconds
            if stop or late or step == train.steps:
                self._save(step, checkpoints)
                saved_at = time.monotonic()
            if stop:
                return False
        return True

    def _save(self, step: int, checkpoints: Checkpoints) -> None:
        """Metrics first: a checkpoint finds all of its own on disk."""
        self.series.save(self._directory / SERIES)
        checkpoints.save(step, self._state, {"cell": self._cell.name})
        checkpoints.wait()


class _Pace:
    """How many updates one call should make, from how long the last one took."""

    def __init__(self):
        self.updates = 1
        self._compiled = False

    def note(self, updates: int, seconds: float) -> bool:
        """A call has ended; whether it tells the speed: the first one compiles."""
        if not self._compiled:
            self._compiled = True
            return False
        self.updates = max(1, int(CALL_SECONDS * updates / max(seconds, 1e-6)))
        return True


def _tell_of_idle_cores(runs: int, console: Console) -> None:
    """On a CPU one device uses several cores badly where its operations are small."""
    cores = os.cpu_count() or 1
    along = max(n for n in range(1, cores + 1) if runs % n == 0)
    if jax.default_backend() == "cpu" and len(jax.local_devices()) < along:
        console.print(
            f"JAX_NUM_CPU_DEVICES={along} in the environment would lay the {runs} runs of a cell "
            f"out on {along} cores; here they share {len(jax.local_devices())} device(s).",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _show(token: str) -> str:
    """A token on an axis: blanks are made visible."""
    return {" ": "␣", "\n": "⏎"}.get(token, token)
