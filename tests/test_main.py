"""The command line, in processes of its own: kills, resumes, modes, and mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crate_jax import convert, models
from crate_jax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
QUICK = "configs/quickstart.py"
SHORT = (
    "--config.train.steps=40", "--config.schedule.warmup_steps=5", "--config.train.log_every=1",
    "--config.train.checkpoint_every=4", "--config.train.eval_every=16",
    "--config.classify.mixup_alpha=0.0", "--config.model.remat=full",
    "--config.train.accumulate=2", "--config.train.ema_decay=0.9",
)  # fmt: skip


def _start(*args, prefix=()):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "crate_jax.main", *map(str, args)], cwd=ROOT, env=env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _run(*args, prefix=()) -> tuple[int, str]:
    process = _start(*args, prefix=prefix)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def _short_run(workdir, *args):
    return ("--config", QUICK, "--workdir", workdir, *SHORT, *args)


def _metrics(workdir) -> str:
    return (workdir / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    code, output = _run(*_short_run(workdir))
    assert code == 0, output
    return workdir, output


def _final_state(workdir):
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / "40" / "state")


def _assert_same_run(workdir, whole):
    """The same metrics to the letter, and the same parameters, moments and averages to the bit."""
    assert _metrics(workdir) == _metrics(whole)
    jax.tree.map(np.testing.assert_array_equal, _final_state(workdir), _final_state(whole))


def _kill_at_line(workdir, lines, how, *args):
    """Starts a run and sends it a signal once its metrics have so many lines."""
    process = _start(*_short_run(workdir, *args))
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            process.send_signal(how)
            break
        time.sleep(0.005)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_it_ends_in_a_table_a_chart_and_a_figure(whole):
    workdir, output = whole
    for words in ("accuracy", "parameters", "52,682", "coding rate", "non-zero", "ETA", "images/s"):
        assert words in output
    assert (workdir / "layers.png").stat().st_size > 10_000
    assert "Traceback" not in output


def test_sigterm_saves_and_the_same_command_goes_on(whole, tmp_path):
    code, output = _kill_at_line(tmp_path, 9, signal.SIGTERM)
    assert code == 75 and "saved" in output
    code, output = _run(*_short_run(tmp_path))
    assert code == 0, output
    _assert_same_run(tmp_path, whole[0])


def test_sigkill_loses_nothing_but_time(whole, tmp_path):
    for lines, workers in ((7, 0), (19, 2)):
        code, _ = _kill_at_line(tmp_path, lines, signal.SIGKILL, f"--config.data.workers={workers}")
        assert code == -signal.SIGKILL
    code, output = _run(*_short_run(tmp_path))
    assert code == 0, output
    _assert_same_run(tmp_path, whole[0])


def test_a_disk_that_takes_no_more_gets_a_sentence_and_the_run_goes_on_later(whole, tmp_path):
    limit = ("bash", "-c", 'ulimit -f 30; exec "$@"', "-")  # kB that a checkpoint is larger than
    code, output = _run(*_short_run(tmp_path), prefix=limit)
    assert code == 1 and "a checkpoint could not be written" in output, output
    assert "run the same command again" in output
    code, output = _run(*_short_run(tmp_path))
    assert code == 0, output
    _assert_same_run(tmp_path, whole[0])


def test_eval_mode_reads_the_checkpoint(whole):
    workdir, _ = whole
    code, output = _run(*_short_run(workdir, "--mode=eval", "--step=latest"))
    assert code == 0, output
    last = json.loads(_metrics(workdir).splitlines()[-1])
    assert f"{100 * last['eval/accuracy']:.2f} %" in output and "step 40" in output


def test_show_mode_prints_config_parameters_flops_and_sharding():
    code, output = _run("--config", "configs/crate/imagenet1k.py:variant=T", "--mode=show")
    assert code == 0, output
    for words in ("6,090,856", "blocks/ista/D", "replicated", '"learning_rate": 0.00024', "FLOPs"):
        assert words in output


@pytest.mark.parametrize(
    "args, words",
    [
        (["--config.optimizer.nmae=sgd"], "config.optimizer.nmae is not a setting; did you mean"),
        (["--config.optimizer.name=adamx"], "did you mean 'adam'"),
        (["--config.train.batch_size=33", "--config.train.accumulate=2"], "33 does not divide"),
        (["--config.model.patch=3"], "config.data.image_size=8 does not divide into patches"),
        (["--config.data.source=tfds:mnist", "--config.data.data_dir=/nowhere"], "not prepared"),
    ],
)
def test_a_mistake_gets_a_sentence_and_touches_nothing(args, words, tmp_path):
    workdir = tmp_path / "run"
    code, output = _run("--config", QUICK, "--workdir", workdir, *args)
    assert code == 2 and words in output and "Traceback" not in output
    assert not workdir.exists()


def test_a_study_is_shown_and_carried_out_by_the_same_command(tmp_path):
    study = ("--config", "configs/extreme_tokens/theory.py:smoke")
    code, output = _run(*study, "--mode=show")
    assert code == 0 and '"study": "theory"' in output, output
    code, output = _run(*study, "--workdir", tmp_path / "a", "--mode=eval")
    assert code == 2 and "a study has no --mode=eval" in output and not (tmp_path / "a").exists()
    code, output = _run(*study, "--workdir", tmp_path / "a", "--config.source=text:/nowhere")
    assert code == 2 and "/nowhere" in output, output
    assert not list((tmp_path / "a").iterdir())  # free for the mended command


def test_another_config_in_the_same_workdir_is_refused(whole):
    code, output = _run(*_short_run(whole[0], "--config.optimizer.name=sgd"))
    assert code == 2
    assert "config.optimizer.name: 'adamw' -> 'sgd'" in output


def test_another_optimizer_forgets_what_the_recipe_set_for_its_own(tmp_path):
    args = ("--config", "configs/crate_alpha/imagenet21k.py:smoke", "--config.optimizer.name=sgd")
    code, output = _run(*args, "--workdir", tmp_path)
    assert code == 0, output
    saved = json.loads((tmp_path / "config.json").read_text())["config"]["optimizer"]
    assert (saved["b2"], saved["mu_dtype"], saved["weight_decay"]) == (None, None, 0.1)


def test_official_weights_are_evaluated_and_fine_tuned(tmp_path):
    """Torch names in, then ``--mode=eval`` of the directory and a run that starts from it."""
    model = models.create("crate", width=32, depth=2, heads=4, patch=16, num_classes=1000)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    convert.export(model, variables, tmp_path / "official.npz")
    module, loaded = convert.load(
        tmp_path / "official.npz", family="crate", heads=4, eta=0.1, lmbda=0.1
    )
    official = tmp_path / "official"
    checkpoint.save_params(official, loaded["params"], models.describe("crate", module))

    smoke = ("--config", "configs/crate/imagenet1k.py:smoke")
    code, output = _run(*smoke, "--workdir", official, "--mode=eval")
    assert code == 0 and "accuracy" in output, output
    code, output = _run(*smoke, "--workdir", official, "--mode=eval", "--config.model.lmbda=0.5")
    assert code == 2 and "config.model.lmbda: 0.1 -> 0.5" in output
    code, output = _run(*smoke, "--workdir", official)
    assert code == 2 and "config.train.init_from" in output

    tuned = ("--config", "configs/crate/finetune.py:smoke", "--workdir", tmp_path / "tuned")
    code, output = _run(
        *tuned, f"--config.train.init_from={official}", "--config.optimizer.learning_rate=0.0"
    )
    assert code == 0, output
    params, _ = checkpoint.restore_params(tmp_path / "tuned")
    np.testing.assert_array_equal(
        params["blocks"]["ista"]["D"][1], variables["params"]["blocks_1"]["ista"]["D"]
    )
