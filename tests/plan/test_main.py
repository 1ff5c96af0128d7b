"""The command line in a process of its own: a real compile for a slice that is not here."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

ROOT = pathlib.Path(__file__).parents[2]


def plan(*args):
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-m", "crate_jax.plan", *args],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


SMALL = (
    "--config=configs/crate_alpha/imagenet21k.py:smoke", "--topology=v5e:2x2",
    "--config.classify.mixup_alpha=0.0", "--config.classify.cutmix_alpha=0.0",
)  # fmt: skip


def test_a_small_step_is_compiled_for_four_chips(tmp_path):
    file = tmp_path / "plan.json"
    done = plan(*SMALL, f"--json={file}", "--config.mesh.fsdp=2", "--config.mesh.data=2")
    assert done.returncode == 0, done.stderr
    assert "Fits (the compiler's word)" in done.stdout and "Collectives" in done.stdout
    assert done.stderr == ""
    told = json.loads(file.read_text())
    assert told["fits"] and told["chips"] == 4
    assert told["setting"]["mesh"] == {"slice": 1, "data": 2, "fsdp": 2, "tensor": 1}
    bytes_ = told["compiler"]["bytes"]
    assert 0 < bytes_["arguments"] < 16e9 and bytes_["total"] >= bytes_["arguments"]
    assert told["compiler"]["cycles"] > 0 and not told["compiler"]["loops_of_unknown_length"]
    assert told["predicted"]["hbm_bytes_from"] == "optimized module"
    kinds = {(c["kind"], c["axis"]) for c in told["predicted"]["collectives"]}
    assert any(axis for _, axis in kinds) and told["known"]["total_steps"] == 2


def test_a_mistake_gets_a_sentence_and_2():
    done = plan(*SMALL, "--topology=v5e:3x5")
    assert done.returncode == 2 and "the TPU compiler knows no such slice" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_has_no_step_to_plan():
    done = plan("--config=configs/extreme_tokens/theory.py:smoke", "--topology=h100:8")
    assert done.returncode == 2 and "a study has no training step to plan" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "2xv5e:2x2"])
def test_other_generations_and_two_slices(topology, tmp_path):
    file = tmp_path / "plan.json"
    done = plan(*SMALL, f"--topology={topology}", f"--json={file}")
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())
    assert told["fits"] and told["chips"] == (8 if topology.startswith("2x") else 4)
