"""SIGTERM and SIGINT as a request to stop at the next step, on which all processes agree."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax.sharding import place

EXIT_RESUME = 75
"""What a run exits with when it was stopped and wants to be started again (EX_TEMPFAIL)."""

EXIT_INTERRUPTED = 130
"""What it exits with when a person pressed Ctrl-C."""


class Preemption:
    """While active, the first signal is noted, and the loop saves and stops at its next step.

    A signal reaches a process at any moment, and not all at the same step; but all must save the
    same one. So every :meth:`poll` sends what this process has noted round the mesh and gives what
    the poll *before* has gathered: the same answer everywhere, for which no device is waited for.

    A second Ctrl-C interrupts at once; a second SIGTERM changes nothing, since the run is already
    saving. What a killed save leaves behind is never taken for a checkpoint.

    Args:
      mesh: whose processes have to agree.

    Attributes:
      received: the first signal of this process, or None.
      agreed: the signal that all stop for, or None.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, mesh: Mesh):
        self.received: signal.Signals | None = None
        self.agreed: signal.Signals | None = None
        self._several = jax.process_count() > 1
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._gather = jax.jit(jnp.max, out_shardings=place.replicated(mesh))
        self._devices, self._pending = mesh.size, None

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

    def poll(self) -> bool:
        """Whether to stop; all processes must ask at the same points of the run."""
        if not self._several:
            self.agreed = self.received
        elif self.agreed is None:
            before, self._pending = self._pending, self._send()
            if before is not None and int(before):
                self.agreed = signal.Signals(int(before))
        return self.requested

    def _send(self):
        noted = np.full(1, self.received or 0, np.int32)
        flags = jax.make_array_from_callback((self._devices,), self._sharding, lambda _: noted)
        return self._gather(flags)

    @property
    def requested(self) -> bool:
        """What the last :meth:`poll` said."""
        return self.agreed is not None

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return EXIT_INTERRUPTED if self.agreed == signal.SIGINT else EXIT_RESUME
