"""Starts a run as several processes of this machine: a pod on a desk.

    python launch/local.py --processes 2 --devices-per-process 4 -- \
        --config configs/quickstart.py --workdir runs/pod

What follows ``--`` goes to ``python -m crate_jax.main``, once for each process. They find each
other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and each simulates its
devices on the CPU. Process 0 writes to the terminal, process I to ``WORKDIR/logs/process_I.log``.

When a process ends with anything but 0, the others, which would wait for it for ever, have
``--grace`` seconds to end too. Its exit code decides what follows:

    0    done
    75   stopped and saved: all start again, at most --max-restarts times
    1, 2 gave up, or a mistake in the config: never started again
    else a crash (70: an exception, 137: killed by signal 9): again only with --restart-on-failure

SIGTERM and SIGINT go on to every process, and nothing is started again. The launcher exits with the
code of the process that ended first.
"""

import argparse
import ctypes
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

EXIT_RESUME = 75  # crate_jax.train.preemption's; the launcher needs the standard library alone
EXIT_FINAL = (0, 1, 2)
POLL_SECONDS = 0.05
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def say(sentence: str) -> None:
    """A line to the terminal that is not the run's."""
    print(f"[launch] {sentence}", file=sys.stderr, flush=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The launcher's options, and in ``arguments`` the run's."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        usage="%(prog)s [options] -- --config FILE --workdir DIR ...",
        epilog="The top of this file says what is done on which exit code.",
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="how many (2)")
    parser.add_argument(
        "--devices-per-process", type=int, default=1, metavar="M", help="simulated devices (1)"
    )
    parser.add_argument("--platform", default="cpu", help="JAX_PLATFORMS of the processes (cpu)")
    parser.add_argument(
        "--max-restarts", type=int, default=10, metavar="K", help="how often all start again (10)"
    )
    parser.add_argument(
        "--restart-on-failure", action="store_true", help="start again after a crash, too"
    )
    parser.add_argument(
        "--grace", type=float, default=60.0, metavar="SECONDS",
        help="what the others get to end once one has (60); then SIGKILL",
    )  # fmt: skip
    parser.add_argument("--module", default="crate_jax.main", help="what python -m runs")
    parser.add_argument("--logs", type=pathlib.Path, metavar="DIR", help="WORKDIR/logs")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and start nothing"
    )
    parser.add_argument("arguments", nargs="*", metavar="-- ...", help="the run's arguments")
    options = parser.parse_args(argv)
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error("--processes and --devices-per-process are counts; write 1 or more.")
    if options.logs is None:
        workdir = value_of("--workdir", options.arguments)
        if workdir is None:
            parser.error(
                "there is no --workdir among the run's arguments, so the processes' logs have no "
                "place; write -- --config FILE --workdir runs/NAME, or give --logs DIR."
            )
        options.logs = pathlib.Path(workdir) / "logs"
    return options


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag written ``--flag value`` or ``--flag=value``; the last one counts."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def environment(options: argparse.Namespace, index: int, port: int) -> dict[str, str]:
    """What process ``index`` has in its environment beyond the launcher's own."""
    others = re.sub(
        r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", "")
    )
    devices = f"--xla_force_host_platform_device_count={options.devices_per_process}"
    return {
        "JAX_PLATFORMS": options.platform,
        "XLA_FLAGS": " ".join([*others.split(), devices]),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(index),
    }


def command(options: argparse.Namespace) -> list[str]:
    """What every process runs."""
    return [sys.executable, "-m", options.module, *options.arguments]


def log_of(options: argparse.Namespace, index: int) -> pathlib.Path:
    """Where process ``index`` (not 0) writes."""
    return options.logs / f"process_{index}.log"


def _end_with_launcher() -> None:
    """In the child: a launcher that is killed takes its processes along (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


class Launcher:
    """Runs attempts until one of them says that it was the last.

    Args:
      options: see :func:`parse`.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._children: list[subprocess.Popen] = []
        self._told_to_stop = False

    def run(self) -> int:
        """The exit code of the first process of the last attempt to end with other than 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        restarts = 0
        while True:
            code = self._attempt(restarts)
            if self._told_to_stop or code in EXIT_FINAL:
                return code
            if code != EXIT_RESUME and not self._options.restart_on_failure:
                say("that was a crash; --restart-on-failure goes on from the last checkpoint.")
                return code
            if restarts == self._options.max_restarts:
                say(f"--max-restarts={restarts} is used up; the same command goes on.")
                return code
            restarts += 1
            say(f"starting all again ({restarts} of at most {self._options.max_restarts}).")

    def _attempt(self, number: int) -> int:
        """Starts every process and waits for all of them; returns the deciding exit code."""
        port = free_port()  # a new one each time: the old one may not be free again yet
        self._children = []
        try:
            for index in range(self._options.processes):
                self._children.append(self._start(index, port, number))
                if self._told_to_stop:  # a signal that came before this one was there to hear it
                    self._children[-1].send_signal(signal.SIGTERM)
            return self._watch()
        finally:
            for child in self._children:
                self._kill(child)

    def _start(self, index: int, port: int, attempt: int) -> subprocess.Popen:
        output = None
        if index:
            path = log_of(self._options, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            output = path.open("a")
            print(f"[launch] attempt {attempt + 1}", file=output, flush=True)
        try:
            return subprocess.Popen(
                command(self._options),
                env=os.environ | environment(self._options, index, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if index else None,
                start_new_session=True,  # so that Ctrl-C comes to the launcher alone
                preexec_fn=_end_with_launcher,
            )
        finally:
            if output:
                output.close()

    def _watch(self) -> int:
        """Waits until all have ended, no longer than the grace once one has failed."""
        code, deadline = 0, None
        while running := [c for c in self._children if c.poll() is None]:
            if deadline is None and (failed := self._failed()) is not None:
                code, deadline = failed, time.monotonic() + self._options.grace
                if code != EXIT_RESUME:  # who was told to save is saving already
                    for child in running:
                        child.terminate()
            if deadline is not None and time.monotonic() > deadline:
                say(f"{len(running)} still run after {self._options.grace:g} s; killing them.")
                for child in running:
                    self._kill(child)
                break
            time.sleep(POLL_SECONDS)
        return code or self._failed() or 0

    def _failed(self) -> int | None:
        """The exit code of a process that ended with other than 0, as a shell gives it."""
        for index, child in enumerate(self._children):
            if child.poll():
                code = child.returncode if child.returncode > 0 else 128 - child.returncode
                where = f"; see {log_of(self._options, index)}" if index else ""
                say(f"process {index} exited with {code}{where}")
                return code
        return None

    def _kill(self, child: subprocess.Popen) -> None:
        """Ends a process and what it started (loader processes)."""
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _forward(self, number, _) -> None:
        self._told_to_stop = True
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)


def dry_run(options: argparse.Namespace) -> None:
    """Prints what each process would be."""
    for index in range(options.processes):
        settings = environment(options, index, 12345)
        words = [f"{name}={value}" for name, value in settings.items()] + command(options)
        into = f" >>{shlex.quote(str(log_of(options, index)))} 2>&1" if index else ""
        print(f"env {shlex.join(words)}{into}")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    options = parse(argv)
    if options.dry_run:
        dry_run(options)
        return 0
    return Launcher(options).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
