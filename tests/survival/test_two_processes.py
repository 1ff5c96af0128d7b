"""Two processes of one run: one is stopped or killed, and another number of them goes on."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.survival import runs

pytestmark = pytest.mark.slow
FSDP = "--config.mesh.preset=fsdp"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with eight devices, and the records of its batches."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    runs.run(workdir, FSDP, devices=8)
    return workdir


def _finish(processes):
    return [process.finish() for process in processes]


def test_sigterm_to_one_stops_both_at_one_step_and_one_process_goes_on(alone, tmp_path):
    """Saved by two processes of four devices, gone on with by one of eight, then by one of one."""
    workdir = tmp_path / "run"
    processes = runs.start_several(workdir, FSDP)
    runs.wait_for(lambda: runs.lines(workdir) >= 5, *processes)
    processes[1].send(signal.SIGTERM)
    ends = _finish(processes)
    assert [code for code, _ in ends] == [75, 75], ends
    assert 6 <= runs.whole_checkpoints(workdir)[-1] < runs.STEPS
    runs.run(workdir, FSDP, devices=8)
    np.testing.assert_allclose(runs.losses(workdir), runs.losses(alone), rtol=1e-4)


def test_a_killed_process_is_started_again_by_the_launcher(alone, tmp_path):
    workdir = tmp_path / "run"
    command = [
        sys.executable, "launch/local.py", "--processes", "2", "--devices-per-process", "4",
        "--grace", "5", "--restart-on-failure", "--", *runs.TINY, FSDP, "--workdir", str(workdir),
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            command, cwd=runs.ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + runs.PATIENCE
    while runs.lines(workdir) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    found = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    subprocess.run(["kill", "-KILL", found.stdout.split()[-1]], check=True)
    code, output = launcher.wait(240), (tmp_path / "log").read_text()
    assert code == 0 and "exited with 137" in output and "starting all again (1 " in output, output
    np.testing.assert_allclose(runs.losses(workdir), runs.losses(alone), rtol=1e-4)
    final, want = runs.state(workdir), runs.state(alone)
    np.testing.assert_allclose(
        final["params"]["head"]["kernel"], want["params"]["head"]["kernel"], rtol=1e-3, atol=1e-5
    )
    accuracy = json.loads(runs.metrics(workdir).splitlines()[-1])["eval/accuracy"]
    judged = runs.run(workdir, FSDP, "--mode=eval", devices=2)
    assert f"{100 * accuracy:.2f} %" in judged and f"step {runs.STEPS}" in judged, judged


def test_each_process_reads_its_rows_of_the_same_batches(tmp_path):
    notes = {}
    for name, start in {
        "alone": lambda w, hands: [runs.Process(w, hands=hands)],
        "two": lambda w, hands: runs.start_several(w, hands=hands, devices=1),
    }.items():
        directory = tmp_path / f"{name}_records"
        directory.mkdir()
        ends = _finish(start(tmp_path / name, [f"records:{directory}"]))
        assert all(code == 0 for code, _ in ends), ends
        files = sorted(directory.iterdir())
        notes[name] = [
            [json.loads(line)["records"] for line in f.read_text().splitlines()] for f in files
        ]
    (alone,) = notes["alone"]
    first, second = notes["two"]
    assert len(alone) == runs.STEPS
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


def test_the_survivor_of_a_kill_ends_by_itself(tmp_path):
    """Where no launcher watches: JAX's coordination service notices a process that is gone."""
    workdir = tmp_path / "run"
    processes = runs.start_several(workdir, "--config.train.steps=100000")
    runs.wait_for(lambda: runs.lines(workdir) >= 3, *processes)
    processes[1].send(signal.SIGKILL)
    code, output = processes[0].finish(patience=170)
    assert code in (75, -signal.SIGABRT), output


def test_a_process_that_never_comes_is_named(tmp_path):
    lone = runs.Process(
        tmp_path / "lone", "--start_timeout=3", place=(f"localhost:{runs.free_port()}", 3, 0)
    )
    code, output = lone.finish()
    assert code == 75 and "2 of 3 processes did not come within 3 s: 1, 2" in output, output
    assert not (tmp_path / "lone").exists()


def test_a_setting_that_one_process_has_otherwise_is_named_on_both(tmp_path):
    """One that no digest holds: the second process would wait for evaluations that never come."""
    coordinator = f"localhost:{runs.free_port()}"
    both = [
        runs.Process(
            tmp_path / "run", f"--config.train.eval_every={5 + i}", place=(coordinator, 2, i)
        )
        for i in range(2)
    ]
    for process in both:
        code, output = process.finish()
        assert code == 2 and "config.train.eval_every 6, process 0" in output, output


def test_sigterm_to_a_process_that_waits_for_others_asks_to_be_resumed(tmp_path):
    port = runs.free_port()
    lone = runs.Process(tmp_path / "lone", place=(f"localhost:{port}", 2, 0))

    def listens():
        with socket.socket() as s:
            return s.connect_ex(("localhost", port)) == 0

    runs.wait_for(listens, lone)
    lone.send(signal.SIGTERM)
    code, output = lone.finish(patience=30)
    assert code == 75, output


def test_sigterm_to_one_that_others_wait_for_ends_both_within_seconds(tmp_path):
    """Before the loop: one of them sits in its preparations, the other in what takes both."""
    marker = tmp_path / "preparing"
    processes = runs.start_several(tmp_path / "run", hands=[f"preparing:{marker}"])
    runs.wait_for(marker.exists, *processes)
    time.sleep(1)
    processes[1].send(signal.SIGTERM)
    began = time.monotonic()
    assert processes[1].finish()[0] == 75
    code, output = processes[0].finish()
    assert code in (75, -signal.SIGABRT) and time.monotonic() - began < 60, output


def test_a_donor_that_one_host_does_not_see_is_told_on_both(tmp_path):
    """``init_from`` on a disk of process 0's own."""
    donor = tmp_path / "donor"
    runs.run(donor, "--config.train.steps=3")
    both = runs.start_several(
        tmp_path / "run", f"--config.train.init_from={donor}", hands=[f"blind:{donor}"]
    )
    for process in both:
        code, output = process.finish()
        assert code == 75 and "that process 0 sees is not seen here" in output, output
