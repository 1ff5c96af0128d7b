"""TPU VM pods: what the dry run prints, and whole runs against a stand-in for gcloud."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
PLACE = ("--name", "b16", "--project", "p", "--zone", "z")
POD = (*PLACE, "--accelerator", "v5litepod-16", "--bucket", "gs://bk")
RUN = ("--config", "c.py:a=b c", "--workdir", "/mnt/shared/runs/b16")


def _call(*arguments, env=None):
    return subprocess.run(
        ["bash", str(LAUNCH / "tpu_vm.sh"), *map(str, arguments)],
        env=os.environ | (env or {}),
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def nothing_runs(tmp_path):
    """An environment in which gcloud leaves a trace when it is called."""
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(f"#!/bin/bash\ntouch {tmp_path}/called\n")
    gcloud.chmod(0o755)
    yield {"PATH": f"{gcloud.parent}:{os.environ['PATH']}"}
    assert not (tmp_path / "called").exists()


def _commands(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]


def _remote(command: list[str]) -> str:
    return next(w.partition("=")[2] for w in command if w.startswith("--command="))


def test_dry_run_prints_the_way_from_nothing_to_the_run(nothing_runs):
    result = _call("run", *POD, "--spot", "--dry-run", "--", *RUN, env=nothing_runs)
    assert result.returncode == 0, result.stderr
    archive, create, copy, unpack, install, start, status, delete, stop = _commands(result.stdout)
    assert archive[0] == "git" and "archive" in archive and archive[-1] == "HEAD"
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {
        "--node-id=b16", "--project=p", "--zone=z", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    } <= set(create)  # fmt: skip
    for command in (copy, unpack, install, start, status, stop):
        assert {"--node=all", "--worker=all", "--project=p", "--zone=z"} <= set(command)
    assert "worker.sh install" in _remote(install)
    words = shlex.split(_remote(start))
    assert words[-len(RUN) :] == list(RUN)  # through both shells, blanks and all
    assert {"MOUNT=/mnt/shared", "BUCKET=gs://bk"} <= set(words)
    assert delete[4] == "delete" and "--force" in delete
    assert "75" in result.stdout and "PREEMPTED" in result.stdout


def test_slices_come_as_nodes_and_as_the_hybrid_mesh(nothing_runs):
    run = ("run", *POD, "--slices", "2", "--dry-run", "--", *RUN)
    result = _call(*run, env=nothing_runs)
    create, start = _commands(result.stdout)[1], _commands(result.stdout)[5]
    assert "--node-count=2" in create and "--node-prefix=b16" in create
    assert not any(word.startswith("--node-id") for word in create)
    assert shlex.split(_remote(start))[-1] == "--config.mesh.preset=hybrid"
    result = _call(*run, "--config.mesh.slice=2", env=nothing_runs)
    assert "hybrid" not in result.stdout  # the command line's own mesh stays


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("status", "--project", "p", "--zone", "z"), "NAME is not set; give --name"),
        (("delete", "--name", "b16", "--zone", "z"), "PROJECT is not set; give --project"),
        (("create", *PLACE), "ACCELERATOR is not set"),
        (("create", *PLACE, "--accelerator", "v9-8"), "give it with --runtime"),
        (("run", *PLACE, "--accelerator", "v4-16", "--", *RUN), "share no storage; give --bucket"),
        (("run", *POD), "there is nothing to run"),
        (("run", *POD, "--", "--config", "c", "--workdir=runs/x"), "write --workdir /mnt/shared"),
        (("run", *POD, "--slices", "two", "--", *RUN), "--slices two is no count"),
        (("run", *POD, "--frob"), "do not know what to do with '--frob'"),
        (("run", "--name"), "--name has no value"),
        (("frob", *PLACE), "there is no subcommand 'frob'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_get_a_sentence(nothing_runs, arguments, sentence):
    result = _call(*arguments, env=nothing_runs)
    assert result.returncode == 2
    assert sentence in result.stderr


def test_collect_reads_the_bucket_or_the_first_worker(nothing_runs):
    where = ("--workdir", "/mnt/shared/runs/b16", "--to", "here", "--dry-run")
    made, copied = _commands(_call("collect", *POD, *where, env=nothing_runs).stdout)
    assert made == ["mkdir", "-p", "here"]
    assert copied[1:] == ["storage", "rsync", "--recursive", "gs://bk/runs/b16", "here"]
    copied = _commands(_call("collect", *PLACE, "--nfs", "h:/s", *where, env=nothing_runs).stdout)
    assert "scp" in copied[1] and "b16:/mnt/shared/runs/b16/*" in copied[1]


GCLOUD = r"""
# A queued resource of two workers, which are folders; $CLOUD/state is its state.
echo "$*" >>"$CLOUD/calls"
words="$*"
case $words in
  *"tpu-vm describe"*) cat "$CLOUD/node" 2>/dev/null || echo READY ;;
  *"queued-resources describe"*)
    if [[ -f $CLOUD/state ]]; then cat "$CLOUD/state"; else echo "NOT_FOUND" >&2; exit 1; fi ;;
  *"queued-resources create"*) mkdir -p "$CLOUD"/worker_{0,1}; echo ACTIVE >"$CLOUD/state" ;;
  *"queued-resources delete"*) rm -rf "$CLOUD/state" "$CLOUD/node" "$CLOUD"/worker_? ;;
  *"queued-resources scp"*) for w in "$CLOUD"/worker_?; do cp "$5" "$w/crate-jax.tar.gz"; done ;;
  *"queued-resources ssh"*)
    [[ $(cat "$CLOUD/state") == ACTIVE && ! -f $CLOUD/node ]] || exit 1
    for word; do case $word in --command=*) command=${word#--command=} ;; esac; done
    code=0
    for w in "$CLOUD"/worker_?; do (cd "$w" && HOME=$w bash -c "$command") || code=$?; done
    exit $code ;;
esac
"""

GIT = 'for w; do case $w in --output=*) tar -czf "${w#*=}" -C "$REPOSITORY" launch ;; esac; done\n'

PYTHON3 = 'mkdir -p "$HOME/.local/bin" && cp "$(dirname "$0")/uv" "$HOME/.local/bin/uv"\n'

UV = r"""
if [[ $1 == venv ]]; then
  mkdir -p "${*: -1}/bin"
  cp "$CLOUD/python" "${*: -1}/bin/"
fi
"""

TRAIN = r"""
w=$(basename "$HOME")
echo x >>"$CLOUD/starts_$w"
attempt=$(wc -l <"$CLOUD/starts_$w")
trap 'echo told >>"$CLOUD/told_$w"; exit 75' TERM
hang() { echo x >>"$CLOUD/hangs_$w"; while :; do sleep 0.05; done; }
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs ``tpu_vm.sh run`` over the stand-ins; the body is the training on each worker."""
    bin_folder, cloud = tmp_path / "bin", tmp_path / "cloud"
    bin_folder.mkdir()
    cloud.mkdir()
    programs = {"gcloud": GCLOUD, "git": GIT, "python3": PYTHON3, "uv": UV, "mountpoint": ""}
    for name, text in programs.items():
        (bin_folder / name).write_text("#!/bin/bash\n" + text)
        (bin_folder / name).chmod(0o755)
    started = []

    def start(body) -> tuple[subprocess.Popen, pathlib.Path]:
        (cloud / "python").write_text("#!/bin/bash\n" + TRAIN + body)
        (cloud / "python").chmod(0o755)
        process = subprocess.Popen(
            ["bash", str(LAUNCH / "tpu_vm.sh"), "run", *POD, "--poll", "0.05", "--", *RUN],
            env=os.environ | {
                "PATH": f"{bin_folder}:{os.environ['PATH']}", "CLOUD": str(cloud), "DELAY": "0",
                "REPOSITORY": str(LAUNCH.parent), "MAX_CRASHES": "2", "TMPDIR": str(tmp_path),
            },
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process, cloud

    yield start
    for process in started:
        process.kill()
        process.communicate()
    _kill_workers(cloud)


def _kill_workers(cloud):
    for pid in cloud.glob("worker_?/crate-jax-state/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def _hanging(cloud, times) -> bool:
    return all(_count(cloud / f"hangs_worker_{i}") == times for i in (0, 1))


def _finish(process) -> tuple[int, str]:
    output, _ = process.communicate(timeout=40)
    return process.returncode, output


def _wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _count(path: pathlib.Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_75_and_crashes_are_started_again_on_the_worker(cloud):
    process, state = cloud("""
if ((attempt == 1)); then exit 75; fi
if ((attempt == 2)) && [[ $w == worker_1 ]]; then kill -9 $$; fi
echo "$*" >"$CLOUD/arguments"
""")
    code, output = _finish(process)
    assert code == 0, output
    assert _count(state / "starts_worker_0") == 2 and _count(state / "starts_worker_1") == 3
    assert (state / "arguments").read_text().split("\n")[0] == f"-m crate_jax.main {' '.join(RUN)}"
    calls = (state / "calls").read_text()
    assert calls.count("queued-resources create") == 1 and "delete" not in calls
    assert "costs money until it is deleted" in output


def test_a_preempted_pod_is_made_anew_and_goes_on(cloud):
    process, state = cloud("if ((attempt == 1)); then hang; fi\n")
    _wait_for(lambda: _hanging(state, 1))
    _kill_workers(state)
    (state / "state").write_text("SUSPENDED\n")
    code, output = _finish(process)
    assert code == 0, output
    assert "bringing it back" in output
    calls = (state / "calls").read_text()
    assert calls.count("queued-resources create") == 2
    assert calls.count("queued-resources delete b16") == 1
    assert calls.count("worker.sh install") == 2


def test_a_preempted_node_of_an_active_resource_too(cloud):
    process, state = cloud("if ((attempt == 1)); then hang; fi\n")
    _wait_for(lambda: _hanging(state, 1))
    _kill_workers(state)
    (state / "node").write_text("PREEMPTED\n")
    code, output = _finish(process)
    assert code == 0, output
    assert (state / "calls").read_text().count("queued-resources create") == 2


def test_a_config_mistake_ends_every_worker(cloud):
    process, state = cloud("if [[ $w == worker_1 ]]; then exit 2; fi\nhang\n")
    code, output = _finish(process)
    assert code == 2, output
    _wait_for(lambda: _count(state / "told_worker_0") == 1)
    assert _count(state / "starts_worker_1") == 1


def test_crashes_are_bounded(cloud):
    process, state = cloud("if [[ $w == worker_1 ]]; then exit 139; fi\nhang\n")
    code, output = _finish(process)
    assert code == 139, output
    assert _count(state / "starts_worker_1") == 3  # MAX_CRASHES=2


def test_stop_saves_and_a_reboot_goes_on(cloud, tmp_path):
    process, state = cloud("if ((attempt < 3)); then hang; fi\n")
    _wait_for(lambda: _hanging(state, 1))
    # A machine that goes down sends SIGTERM; its run is not over, and starts again after the boot.
    for path in state.glob("worker_?/crate-jax-state/pid"):
        os.kill(int(path.read_text()), signal.SIGTERM)
    _wait_for(lambda: _hanging(state, 2))
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CLOUD": str(state)}
    assert _call("stop", *PLACE, env=env).returncode == 0
    code, output = _finish(process)
    assert code == 75, output
    assert _count(state / "starts_worker_0") == 2
    assert _count(state / "told_worker_0") == 2
