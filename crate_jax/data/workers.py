"""How loader processes live and die: with the run that started them."""

import os
import signal
import threading
import time

POLL_SECONDS = 1.0


def begin(worker_index: int, worker_count: int) -> None:
    """Called in each worker at its start.

    A run that is killed cannot stop its workers, which would wait for it for ever; so a worker
    watches its parent and goes with it. Ctrl-C is left to the run, which saves first.
    """
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
