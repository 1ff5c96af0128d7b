"""The local launcher over stand-ins for the run: exit codes, signals, restarts, logs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"

STAND_IN = """
import os, pathlib, signal, sys, time
index = int(os.environ["JAX_PROCESS_ID"])
workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
starts = workdir / f"starts_{index}"
attempt = starts.read_text().count("x") if starts.exists() else 0
with starts.open("a") as f:
    f.write("x")
print(f"process {index}, attempt {attempt}", flush=True)
def end(code):
    sys.stdout.flush()
    os._exit(code)
def on_signal(code):
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda number, _: end(code if number == signal.SIGTERM else 130))
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher over a stand-in whose body is given; ``index``, ``attempt`` are its."""
    started = []

    def start(body, *options, processes=2):
        (tmp_path / "standin.py").write_text(STAND_IN + body)
        process = subprocess.Popen(
            [
                sys.executable, str(LAUNCHER), "--processes", str(processes),
                "--devices-per-process", "4", "--module", "standin", *options,
                "--", "--config", "c.py", "--workdir", str(tmp_path / "run"),
            ],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": "--xla_a=1"},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    (tmp_path / "run").mkdir()
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _finish(process) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


def _wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _starts(tmp_path, index) -> int:
    path = tmp_path / "run" / f"starts_{index}"
    return len(path.read_text()) if path.exists() else 0


def test_every_process_gets_its_place_and_devices(launch, tmp_path):
    names = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")
    code, output, _ = _finish(
        launch(f"import json; print(json.dumps([os.environ[n] for n in {names}]), sys.argv[1:3])")
    )
    assert code == 0
    assert "process 0, attempt 0" in output and "process 1" not in output
    log = (tmp_path / "run" / "logs" / "process_1.log").read_text()
    assert "process 1, attempt 0" in log
    settings = []
    for text in (output, log):
        line = next(line for line in text.splitlines() if line.startswith('["'))
        assert line.endswith("['--config', 'c.py']")
        settings.append(json.loads(line[: line.index("]") + 1]))
    assert settings[0] == settings[1]
    platform, flags, address, count = settings[0]
    assert (platform, count) == ("cpu", "2")
    assert flags == "--xla_a=1 --xla_force_host_platform_device_count=4"
    host, port = address.split(":")
    assert host == "localhost" and 1024 < int(port) < 65536


def test_75_starts_all_again(launch, tmp_path):
    code, _, errors = _finish(launch("end(75 if attempt < 2 else 0)"))
    assert code == 0
    assert _starts(tmp_path, 0) == _starts(tmp_path, 1) == 3
    assert "starting all again (2 of at most 10)" in errors
    log = (tmp_path / "run" / "logs" / "process_1.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("[launch]")] == [
        "[launch] attempt 1", "[launch] attempt 2", "[launch] attempt 3",
    ]  # fmt: skip


def test_restarts_are_bounded(launch, tmp_path):
    code, _, errors = _finish(launch("end(75)", "--max-restarts", "1"))
    assert code == 75
    assert _starts(tmp_path, 0) == 2
    assert "--max-restarts=1 is used up" in errors


@pytest.mark.parametrize("final", [1, 2])
def test_what_gave_up_is_not_started_again(launch, tmp_path, final):
    code, _, _ = _finish(launch(f"end({final})", "--restart-on-failure"))
    assert code == final
    assert _starts(tmp_path, 0) == 1


def test_survivors_of_a_killed_process_end_within_the_grace(launch, tmp_path):
    body = """
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in a collective
time.sleep(60)
"""
    start = time.monotonic()
    code, _, errors = _finish(launch(body, "--grace", "0.3"))
    assert time.monotonic() - start < 10
    assert code == 128 + signal.SIGKILL
    assert "process 1 exited with 137" in errors and "process_1.log" in errors
    assert "killing them" in errors and "--restart-on-failure" in errors
    assert _starts(tmp_path, 0) == 1


def test_survivors_are_asked_to_end_first(launch, tmp_path):
    body = """
on_signal(75)
(workdir / f"ready_{index}").touch()
while not (workdir / "ready_0").exists():
    time.sleep(0.01)
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    code, _, errors = _finish(launch(body, "--grace", "15"))
    assert code == 137  # the first to end says what happened, not the one that was asked
    assert "killing them" not in errors


def test_a_crash_is_started_again_on_demand(launch, tmp_path):
    body = """
if attempt == 0 and index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60 if attempt == 0 else 0)
"""
    code, _, _ = _finish(launch(body, "--restart-on-failure", "--grace", "0.3"))
    assert code == 0
    assert _starts(tmp_path, 0) == _starts(tmp_path, 1) == 2


def test_saving_processes_are_not_hurried(launch):
    body = """
on_signal(99)
if index == 0:
    time.sleep(0.6)  # still writing the checkpoint
    end(0 if attempt else 75)
end(0 if attempt else 75)
"""
    code, _, errors = _finish(launch(body, processes=3))
    assert code == 0
    assert "exited with 75" in errors and "99" not in errors


@pytest.mark.parametrize("number, exit_code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_every_process_and_nothing_starts_again(launch, tmp_path, number, exit_code):
    body = """
on_signal(75)
(workdir / f"ready_{index}").touch()
time.sleep(60)
"""
    process = launch(body)
    _wait_for(lambda: all((tmp_path / "run" / f"ready_{i}").exists() for i in (0, 1)))
    process.send_signal(number)
    code, _, _ = _finish(process)
    assert code == exit_code
    assert _starts(tmp_path, 0) == _starts(tmp_path, 1) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_processes_end_with_a_launcher_that_is_killed(launch, tmp_path):
    body = """
signal.signal(signal.SIGTERM, lambda *_: ((workdir / f"told_{index}").touch(), end(75)))
(workdir / f"ready_{index}").touch()
time.sleep(60)
"""
    process = launch(body)
    _wait_for(lambda: all((tmp_path / "run" / f"ready_{i}").exists() for i in (0, 1)))
    process.kill()
    _wait_for(lambda: all((tmp_path / "run" / f"told_{i}").exists() for i in (0, 1)))


def _call(*arguments):
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments], text=True, capture_output=True, timeout=20
    )


def test_mistakes_get_a_sentence():
    result = _call("--processes", "2", "--", "--config", "c.py")
    assert result.returncode == 2
    assert "no --workdir" in result.stderr
    result = _call("--processes", "0", "--", "--workdir", "w")
    assert result.returncode == 2
    assert "write 1 or more" in result.stderr


def test_dry_run_prints_the_commands_and_touches_nothing(tmp_path):
    workdir = tmp_path / "a run"
    result = _call("--dry-run", "--", "--config", "c.py:smoke", f"--workdir={workdir}")
    assert result.returncode == 0
    first, second = result.stdout.splitlines()
    assert "JAX_PROCESS_ID=0" in first and "JAX_PROCESS_ID=1" in second
    assert "-m crate_jax.main --config c.py:smoke" in first
    assert second.endswith(f"'{workdir}/logs/process_1.log' 2>&1")
    assert not workdir.exists()
