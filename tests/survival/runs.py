"""A run so small that it can be killed many times, in processes of its own."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 16
TINY = (
    "--config", "configs/quickstart.py", f"--config.train.steps={STEPS}",
    "--config.model.width=16", "--config.model.depth=2", "--config.schedule.warmup_steps=2",
    "--config.classify.mixup_alpha=0.0", "--config.train.batch_size=16",
    "--config.train.eval_batch_size=96", "--config.train.measure_batch=0",
    "--config.train.ema_decay=0.9", "--config.train.log_every=1",
    "--config.train.checkpoint_every=2", "--config.train.eval_every=8",
)  # fmt: skip
PATIENCE = 180.0


class Process:
    """One process of a run.

    Args:
      workdir: of the run.
      *arguments: of ``crate_jax.main`` beyond those of the tiny run.
      hands: see ``tests.survival.injected``; none runs ``crate_jax.main`` itself.
      devices: simulated.
      place: coordinator, number of processes, and which this is.
      prefix: a command that runs the command.
    """

    def __init__(
        self, workdir: pathlib.Path, *arguments: str, hands: Sequence[str] = (), devices: int = 1,
        place: tuple[str, int, int] | None = None, prefix: Sequence[str] = (),
    ):  # fmt: skip
        module = ["tests.survival.injected", *hands, "--"] if hands else ["crate_jax.main"]
        command = [sys.executable, "-m", *module, *TINY, "--workdir", str(workdir), *arguments]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        if place is not None:
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            env |= dict(zip(names, map(str, place), strict=True))
        workdir.parent.mkdir(parents=True, exist_ok=True)
        index = place[2] if place else 0
        self._log = workdir.with_name(f"{workdir.name}_{index}_{time.monotonic_ns()}.log")
        with self._log.open("w") as log:  # a file: a pipe that nobody reads would stop the run
            self._process = subprocess.Popen(
                [*prefix, *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.pid = self._process.pid

    def send(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        self._process.send_signal(number)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def finish(self, patience: float = PATIENCE) -> tuple[int, str]:
        """Exit code and output; a process that takes longer is killed and the test fails."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still running after {patience:g} s:\n{self.output()}") from None
        return self._process.returncode, self.output()


def run(workdir: pathlib.Path, *arguments: str, **kwargs) -> str:
    """Runs to the end, which must be a good one; returns the output."""
    code, output = Process(workdir, *arguments, **kwargs).finish()
    assert code == 0, output
    return output


def wait_for(condition: Callable[[], bool], *processes: Process) -> None:
    """Returns once the condition holds; fails when a process ends first."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert not process.ended(), process.output()
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def hit(workdir: pathlib.Path, phase: str, *signals: int, pause: float = 0.2) -> tuple[int, str]:
    """Runs until it is in a phase of ``tests.survival.injected``, and sends signals then."""
    marker = workdir.with_name(f"{workdir.name}.{phase}")
    process = Process(workdir, hands=[f"{phase}:{marker}"])
    wait_for(marker.exists, process)
    for number in signals:
        process.send(number)
        time.sleep(pause)
    return process.finish()


def start_several(
    workdir: pathlib.Path, *arguments: str, count: int = 2, devices: int = 4,
    hands: Sequence[str] = (),
) -> list[Process]:  # fmt: skip
    """Processes of one run that find each other on this machine."""
    coordinator = f"localhost:{free_port()}"
    return [
        Process(
            workdir, *arguments, hands=hands, devices=devices, place=(coordinator, count, index)
        )
        for index in range(count)
    ]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def metrics(workdir: pathlib.Path) -> str:
    return (workdir / "metrics.jsonl").read_text()


def lines(workdir: pathlib.Path) -> int:
    """Lines of metrics written so far."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def last_step(workdir: pathlib.Path) -> int:
    """The step of the last whole line of metrics, 0 without one."""
    whole = metrics(workdir).rpartition("\n")[0] if (workdir / "metrics.jsonl").exists() else ""
    return json.loads(whole.splitlines()[-1])["step"] if whole else 0


def losses(workdir: pathlib.Path) -> list[float]:
    """The training loss of every step."""
    rows = [json.loads(line) for line in metrics(workdir).splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def whole_checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps that have a checkpoint under its name, rising."""
    directory = workdir / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def state(workdir: pathlib.Path, step: int = STEPS) -> dict:
    """All arrays of a checkpoint, whatever the mesh that they were saved from."""
    path = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=arrays))


def assert_same_run(workdir: pathlib.Path, whole: pathlib.Path, step: int = STEPS) -> None:
    """The same metrics to the letter and the same final state to the bit."""
    assert metrics(workdir) == metrics(whole)
    jax.tree.map(np.testing.assert_array_equal, state(workdir, step), state(whole, step))
