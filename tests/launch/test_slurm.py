"""The SLURM script: its options, and its behaviour over stand-ins for SLURM's commands."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm.sh"
RUN = ("--config", "c.py:a=b c", "--workdir", "/shared/runs/b16")

COMMANDS = {
    # The processes' highest exit code, one a line of $DESK/codes for each start; "hang" waits for
    # scancel, which is how SIGTERM reaches them.
    "srun": r"""
echo x >>"$DESK/starts"
echo "$@" >"$DESK/arguments"
echo "${JAX_LOCAL_DEVICE_IDS:-}" >"$DESK/devices"
code=$(sed -n "$(wc -l <"$DESK/starts")p" "$DESK/codes")
[[ $code == hang ]] || exit "$code"
touch "$DESK/hangs"
until [[ -f $DESK/told ]]; do sleep 0.02; done
exit 75
""",
    "scancel": 'echo "$*" >"$DESK/scancel"; touch "$DESK/told"\n',
    "scontrol": r"""
case $1 in
  show) echo "   JobState=${STATE:-RUNNING} Reason=None Dependency=(null)" ;;
  requeue) echo "$2" >>"$DESK/requeued" ;;
esac
""",
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM would, with the exit codes of its processes."""
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text)
        (tmp_path / name).chmod(0o755)
    started = []

    def start(*codes, **env) -> subprocess.Popen:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *RUN],
            env=os.environ | {
                "PATH": f"{tmp_path}:{os.environ['PATH']}", "DESK": str(tmp_path),
                "SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2",
                "SLURM_GPUS_ON_NODE": "8",
            } | env,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _finish(process) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize("code", [0, 1, 2])
def test_final_codes_are_the_jobs(job, tmp_path, code):
    assert _finish(job(code))[0] == code
    assert not (tmp_path / "requeued").exists()
    assert shlex.join(RUN).replace("'", "") in (tmp_path / "arguments").read_text()


def test_75_goes_back_into_the_queue(job, tmp_path):
    code, output = _finish(job(75))
    assert code == 75
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert "back into the queue" in output


def test_requeues_are_bounded(job, tmp_path):
    code, output = _finish(job(75, SLURM_RESTART_COUNT="2", MAX_REQUEUES="2"))
    assert code == 75
    assert not (tmp_path / "requeued").exists()
    assert "MAX_REQUEUES=2" in output


def test_a_cancelled_job_stays_so(job, tmp_path):
    _finish(job(75, STATE="COMPLETING"))
    assert not (tmp_path / "requeued").exists()


def test_a_crash_is_started_again_on_the_same_nodes(job, tmp_path):
    assert _finish(job(137, 0))[0] == 0
    assert (tmp_path / "starts").read_text().count("x") == 2
    assert not (tmp_path / "requeued").exists()


def test_crashes_are_bounded(job, tmp_path):
    code, output = _finish(job(137, 139, 134, MAX_CRASHES="2"))
    assert code == 134
    assert (tmp_path / "starts").read_text().count("x") == 3
    assert "MAX_CRASHES=2" in output


def test_sigterm_reaches_the_processes_which_save(job, tmp_path):
    process = job("hang")
    deadline = time.monotonic() + 10
    while not (tmp_path / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, _ = _finish(process)
    assert code == 75
    assert (tmp_path / "scancel").read_text().split() == ["--quiet", "--signal=TERM", "7"]
    assert (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    "tasks, devices", [("16", ""), ("2", "0,1,2,3,4,5,6,7")], ids=["per_gpu", "per_node"]
)
def test_a_process_alone_on_its_node_gets_all_of_its_gpus(job, tmp_path, tasks, devices):
    _finish(job(0, SLURM_NTASKS=tasks))
    assert (tmp_path / "devices").read_text().strip() == devices


def _call(*arguments):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=env, text=True, capture_output=True, timeout=20
    )


def test_dry_run_prints_options_and_commands():
    result = _call("--dry-run", *RUN)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "#SBATCH --requeue" in lines and "#SBATCH --signal=B:TERM@120" in lines
    (command,) = (shlex.split(line) for line in lines if line.startswith("srun"))
    assert command[-len(RUN) :] == list(RUN)
    assert "--kill-on-bad-exit=0" in command and "--wait=300" in command
    assert 'scontrol requeue "$SLURM_JOB_ID"' in lines


def test_mistakes_get_a_sentence(job, tmp_path):
    result = _call(*RUN)
    assert result.returncode == 2
    assert "submit it: sbatch launch/slurm.sh" in result.stderr
