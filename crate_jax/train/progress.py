"""The live view of a run: on a terminal a bar that moves, elsewhere a line now and then."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta

import jax
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SHOWN_WAIT = 0.05
"""Share of the time spent waiting for data from which on the line says so."""


def peak_memory_gib() -> float:
    """Peak memory of the first device where it tells, else of this process; GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class OnTerminal:
    """What is drawn again and again while it is active, where the console is a terminal.

    Args:
      console: where to; None is nowhere.
    """

    def __init__(self, console: Console | None):
        self._live = None
        if console is not None and console.is_terminal:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()

    def _render(self):
        """What to draw now."""
        raise NotImplementedError


class TableView(OnTerminal):
    """Work that has named parts: on a terminal a row each, elsewhere a line now and then.

    Args:
      columns: heads; the first is of the name, the second of the state.
      names: of the parts, in their order.
      console: where to.
      clock: seconds, for tests.
    """

    LINE_EVERY = 10.0  # seconds

    def __init__(
        self, columns: Sequence[str], names: Iterable[str], console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self._rows = {name: [name, "waiting"] for name in names}
        self._columns, self._console, self._clock = columns, console, clock
        self._printed = -math.inf
        super().__init__(console)

    def _say(self, name: str) -> None:
        """Prints the line of a part."""
        if self._live is None:
            name, state, *rest = self._rows[name]
            heads = self._columns[2 : None if rest else 2]
            named = (f"{head} {text}" for head, text in zip(heads, rest, strict=True))
            line = "  ".join([name, state, *named])
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _say_now_and_then(self, name: str) -> None:
        now = self._clock()
        if now - self._printed >= self.LINE_EVERY:
            self._printed = now
            self._say(name)

    def _render(self) -> Table:
        table = Table(*self._columns, box=None)
        for row in self._rows.values():
            table.add_row(*row)
        return table


class Progress(OnTerminal):
    """Counts steps and the time they took, without compilation, evaluation and saving.

    Args:
      start, total: steps done before this process, and steps of the run.
      batch_size: images a step, over all devices.
      console: where to show; None shows nothing.
      step_flops: model FLOPs of a step, over all devices, for MFU.
      peak_flops: FLOP/s that all devices have together; None where that is not known.
      clock: seconds, for tests.

    Attributes:
      compile_seconds: spent on compiling the step; set by the loop.
    """

    def __init__(
        self,
        start: int,
        total: int,
        batch_size: int,
        console: Console | None = None,
        *,
        step_flops: float = 0.0,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.start, self.total, self.batch_size = start, total, batch_size
        self.step, self.doing = start, "compiling"
        self.console, self._clock = console, clock
        self.compile_seconds = 0.0
        self._metrics, self._paused, self._waited = {}, 0.0, 0.0
        self._step_flops, self._peak_flops = step_flops, peak_flops
        self._began = self._clock()
        self._window = (start, 0.0, 0.0)  # step, seconds and waiting at the last timing
        self._recent: dict[str, float] = {}
        super().__init__(console)

    @contextlib.contextmanager
    def paused(self, doing: str):
        """Time inside does not count as time of steps; ``doing`` is shown meanwhile."""
        before, was = self._clock(), self.doing
        self.doing = doing
        try:
            yield
        finally:
            self._paused += self._clock() - before
            self.doing = was

    @contextlib.contextmanager
    def waiting(self, busy: Callable[[], bool] = lambda: False):
        """Time inside is the host's for the next batch.

        Args:
          busy: asked at its end. Where the devices are still at the step before, nothing has waited
            for the batch, and none of the time counts.
        """
        before = self._clock()
        try:
            yield
        finally:
            if not busy():
                self._waited += self._clock() - before

    @property
    def seconds(self) -> float:
        """Spent in steps so far."""
        return self._clock() - self._began - self._paused

    @property
    def images_per_second(self) -> float:
        """Mean over the steps of this process."""
        return (self.step - self.start) * self.batch_size / max(self.seconds, 1e-9)

    @property
    def eta_seconds(self) -> float:
        """Time that the remaining steps take at the present mean."""
        done = self.step - self.start
        return self.seconds / done * (self.total - self.step) if done else float("nan")

    def update(self, step: int, metrics: Mapping[str, float], *, line: bool = True) -> None:
        """Notes that ``step`` updates are done; off a terminal, ``line`` prints one."""
        self.step, self.doing = step, "training"
        self._metrics |= metrics
        if line and self.console is not None and self._live is None:
            line = "  ".join([*self._position(), *self._readings()])
            self.console.print(line, highlight=False, soft_wrap=True)

    def timing(self, step: int) -> dict[str, float]:
        """Notes that ``step`` updates are done, and gives the scalars of ``timing.jsonl``.

        Seconds a step, the share of them spent waiting for data and MFU (model FLOPs over the peak
        of all devices) are of the steps since the last call, images a second of all.
        """
        self.step = step
        before, seconds, waited = self._window
        steps, passed = step - before, self.seconds - seconds
        if steps > 0 and passed > 0:
            self._recent = {
                "timing/step_seconds": passed / steps,
                "timing/data_wait_share": (self._waited - waited) / passed,
            }
            if self._peak_flops:
                mfu = steps * self._step_flops / passed / self._peak_flops
                self._recent["timing/mfu"] = mfu
        self._window = (step, self.seconds, self._waited)
        return self._recent | {
            "timing/images_per_second": self.images_per_second,
            "timing/seconds": self.seconds,
            "timing/compile_seconds": self.compile_seconds,
            "timing/peak_memory_gib": peak_memory_gib(),
        }

    def _position(self) -> list[str]:
        eta = self.eta_seconds
        left = "-" if eta != eta else str(timedelta(seconds=round(eta)))
        percent = 100 * self.step / max(self.total, 1)
        return [f"step {self.step:,}/{self.total:,}", f"{percent:.0f} %", f"ETA {left}"]

    def _readings(self) -> list[str]:
        metrics = (f"{name} {value:.4g}" for name, value in self._metrics.items())
        recent = [f"{self.images_per_second:,.0f} images/s"]
        if "timing/mfu" in self._recent:
            recent.append(f"MFU {100 * self._recent['timing/mfu']:.1f} %")
        if self._recent.get("timing/data_wait_share", 0) > SHOWN_WAIT:
            recent.append(f"waiting for data {100 * self._recent['timing/data_wait_share']:.0f} %")
        return [*recent, *metrics, f"memory {peak_memory_gib():.2f} GiB"]

    def _render(self):
        top = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self.total, 1), completed=self.step, width=40)
        top.add_row(Text(self.doing, style="dim"), bar, *self._position())
        return Group(top, Text("   ".join(self._readings())))
