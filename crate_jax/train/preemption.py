"""SIGTERM and SIGINT as a request to stop at the next step."""

import signal
import threading

EXIT_RESUME = 75
"""What a run exits with when it was stopped and wants to be started again (EX_TEMPFAIL)."""

EXIT_INTERRUPTED = 130
"""What it exits with when a person pressed Ctrl-C."""


class Preemption:
    """While active, the first signal is noted and the loop saves and stops at its next step.

    A second Ctrl-C interrupts at once; a second SIGTERM changes nothing, since the run is already
    saving. What a killed save leaves behind is never taken for a checkpoint.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self):
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._previous = {s: signal.signal(s, self._note) for s in self._SIGNALS}
        return self

    def __exit__(self, *_):
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _note(self, number, _):
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return EXIT_INTERRUPTED if self.received == signal.SIGINT else EXIT_RESUME
