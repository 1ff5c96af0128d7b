"""A trace of a few steps, for XProf and Perfetto."""

import pathlib

import jax

SUBDIRECTORY = "profile"
SKIPPED, TRACED = 5, 5
"""Steps let pass after the start, and steps traced."""


class Profile:
    """Traces steps ``first + SKIPPED`` to ``first + SKIPPED + TRACED`` where asked to.

    A run that has fewer left skips fewer of them.

    All processes trace, each into a file of its own: one that did not would leave the others
    waiting at the next collective. Look at it with ``xprof --logdir WORKDIR/profile``.

    Args:
      workdir: of the run; the trace goes to ``profile`` under it.
      first, total: the step that this process starts from, and steps of the run.
      wanted: whether to trace at all.
    """

    def __init__(self, workdir: pathlib.Path, first: int, total: int, wanted: bool):
        self._directory = workdir / SUBDIRECTORY
        skipped = min(SKIPPED, max(0, total - first - TRACED))
        self._begin = first + skipped if wanted else None
        self._tracing = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Called before each step is dispatched."""
        if step == self._begin:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        elif self._tracing and step >= self._begin + TRACED:
            jax.profiler.stop_trace()
            self._tracing = False
