"""GKE: the commands and the JobSet that the script prints."""

import pathlib
import shlex
import subprocess

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
CLUSTER = ("--cluster", "c", "--project", "p", "--zone", "z")
WORKLOAD = ("--name", "b16", "--image", "r/i:1", "--bucket", "gs://bk")
RUN = ("--config", 'c.py:a="b c"', "--workdir", "/mnt/shared/runs/b16")


def _call(*arguments):
    return subprocess.run(
        ["bash", str(LAUNCH / "gke.sh"), *arguments], text=True, capture_output=True, timeout=60
    )


def _jobset(*options, run=RUN) -> dict:
    options = (*WORKLOAD, "--via", "kubectl", "--dry-run", *options)
    result = _call("run", *options, "--", *run)
    assert result.returncode == 0, result.stderr
    first, *manifest, last = result.stdout.splitlines()
    assert first == "kubectl apply -f - <<'END'" and last == "END"
    return yaml.safe_load("\n".join(manifest))


def test_xpk_restarts_on_75_and_gets_the_run_unbroken():
    result = _call(
        "run", *CLUSTER, *WORKLOAD, "--tpu-type", "v5litepod-64", "--dry-run", "--", *RUN
    )
    assert result.returncode == 0, result.stderr
    command, rest = result.stdout.split("\n", 1)
    words = shlex.split(command)
    assert words[:3] == ["xpk", "workload", "create"]
    assert {
        "--cluster=c", "--project=p", "--zone=z", "--workload=b16", "--tpu-type=v5litepod-64",
        "--num-slices=1", "--docker-image=r/i:1", "--restart-on-exit-codes=70,75",
        "--max-restarts=50",
    } <= set(words)  # fmt: skip
    inside = shlex.split(words[-1].removeprefix("--command="))
    assert inside == ["exec", "python", "-m", "crate_jax.main", *RUN]
    assert "kubectl apply" in rest and "kind: JobSet" in rest


def test_jobset_restarts_on_everything_but_1_and_2():
    jobset = _jobset("--tpu-type", "v5litepod-64")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    (container,) = spec["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [1, 2],
    }  # fmt: skip
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert container["command"] == ["python", "-m", "crate_jax.main", *RUN]
    (volume,) = spec["template"]["spec"]["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bk"
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/shared"}]


@pytest.mark.parametrize(
    "tpu_type, options, accelerator, topology, hosts, chips",
    [
        ("v5litepod-4", (), "tpu-v5-lite-podslice", "2x2", 1, 4),
        ("v5litepod-256", (), "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v6e-32", (), "tpu-v6e-slice", "4x8", 8, 4),
        ("v4-128", ("--topology", "4x4x4"), "tpu-v4-podslice", "4x4x4", 16, 4),
        ("v5p-128", ("--topology", "4x4x4"), "tpu-v5p-slice", "4x4x4", 16, 4),
    ],
)
def test_slices_of_every_generation(tpu_type, options, accelerator, topology, hosts, chips):
    jobset = _jobset("--tpu-type", tpu_type, *options)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (hosts, hosts)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_slices_spot_and_queue():
    options = ("--tpu-type", "v6e-16", "--slices", "2", "--spot", "--queue", "q")
    jobset = _jobset(*options)
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["command"][-1] == "--config.mesh.preset=hybrid"
    jobset = _jobset(*options, run=(*RUN, "--config.mesh.fsdp=4"))
    (job,) = jobset["spec"]["replicatedJobs"]
    command = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-1] == "--config.mesh.fsdp=4"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("run",), "NAME is not set; give --name"),
        (("run", *WORKLOAD), "TPU_TYPE is not set; give --tpu-type"),
        (("run", *WORKLOAD, "--tpu-type", "v6e-16", "--", *RUN), "CLUSTER is not set"),
        (("run", *WORKLOAD, "--tpu-type", "v6e-16"), "there is nothing to run"),
        (("run", *WORKLOAD, "--via", "kubectl", "--tpu-type", "v9-1", "--", *RUN), "do not know"),
        (
            ("run", *WORKLOAD, "--via", "kubectl", "--tpu-type", "v5p-128", "--", *RUN),
            "give --topology",
        ),
        (("run", *WORKLOAD, "--via", "ship"), "write xpk or kubectl"),
        (("collect", *WORKLOAD, "--workdir", "runs/x"), "is not in /mnt/shared"),
        (("frob",), "there is no subcommand 'frob'"),
    ],
    ids=range(9),
)
def test_mistakes_get_a_sentence(arguments, sentence):
    result = _call(arguments[0], "--dry-run", *arguments[1:])
    assert result.returncode == 2, result.stdout
    assert sentence in result.stderr
    assert result.stdout == ""


def test_the_other_commands():
    def dry(*arguments):
        result = _call(*arguments, "--dry-run")
        assert result.returncode == 0, result.stderr
        return [shlex.split(line) for line in result.stdout.splitlines()]

    build, push = dry("image", "--image", "r/i:1")
    assert build[:2] == ["docker", "build"] and str(LAUNCH / "Dockerfile") in build
    assert push == ["docker", "push", "r/i:1"]
    (attach,) = dry("storage", *CLUSTER, "--bucket", "gs://bk")
    assert attach[:4] == ["xpk", "storage", "attach", "crate-jax"]
    assert {"--type=gcsfuse", "--bucket=bk", "--mount-point=/mnt/shared"} <= set(attach)
    assert dry("delete", "--name", "b16") == [["kubectl", "delete", "jobset", "b16"]]
    (logs,) = dry("logs", "--name", "b16")
    assert "jobset.sigs.k8s.io/jobset-name=b16" in logs[4]
    _, copied = dry("collect", *WORKLOAD, "--workdir", "/mnt/shared/runs/b16")
    assert copied[-2:] == ["gs://bk/runs/b16", "runs/b16"]


def test_the_image_holds_what_the_run_needs():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {"pyproject.toml", "constraints.txt", "crate_jax", "configs"} <= copied
    assert all((LAUNCH.parent / name).exists() for name in copied)
