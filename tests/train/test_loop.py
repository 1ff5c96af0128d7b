"""The loop's invariants, on handwritten digits and a tiny CRATE."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from crate_jax import config as configs
from crate_jax import models, run
from crate_jax.train import checkpoint, loop, workdir
from crate_jax.train.readout import NonFiniteError

STEPS, STOP = 12, 5


def _config(**overrides) -> configs.Config:
    """Scan, remat, accumulation, averages and dropout of paths all on."""
    raw = configs.default()
    raw.model = models.settings(
        "crate", width=16, depth=2, heads=2, patch=4, patching="conv", scan_layers=True,
        remat="full", drop_path=0.2,
    )  # fmt: skip
    raw.data.update(source="digits", image_size=8, channels=1, num_classes=10, flip=True)
    raw.classify.update(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    raw.train.update(
        batch_size=32, steps=STEPS, accumulate=2, ema_decay=0.9, eval_every=4, checkpoint_every=3,
        log_every=1, eval_batch_size=128, measure_batch=8,
    )  # fmt: skip
    for name, value in overrides.items():
        section, key = name.split("__")
        raw[section][key] = value
    return configs.resolve(raw)


def _train(config, directory, *, stop_at=None, seen=None):
    """A run whose batches are noted in ``seen``; SIGTERM comes while batch ``stop_at`` is read."""
    made = run.prepare(config)
    workdir.claim(directory, config)
    data = run.batches(config, made.mesh)

    def noted(first):
        for i, rows in zip(itertools.count(first), data.train(first), strict=False):
            if i == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            if seen is not None:
                seen[i] = rows["index"].tolist()
            yield rows

    return loop.run(
        made.system, config, workdir=directory, mesh=made.mesh, total_steps=made.total_steps,
        meta=made.meta(), data=dataclasses.replace(data, train=noted),
    )  # fmt: skip


def _lines(directory: pathlib.Path) -> list[str]:
    return (directory / "metrics.jsonl").read_text().splitlines()


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory, seen = tmp_path_factory.mktemp("whole"), {}
    return directory, _train(_config(), directory, seen=seen), seen


def test_a_run_leaves_every_scalar_and_a_curve_per_layer(whole):
    directory, result, _ = whole
    rows = [json.loads(line) for line in _lines(directory)]
    assert [r["step"] for r in rows if "train/loss" in r] == list(range(1, STEPS + 1))
    evaluations = [r for r in rows if "eval/accuracy" in r]
    assert [r["step"] for r in evaluations] == [4, 8, 12]
    assert {"layers/coding_rate/1", "layers/nonzero/2"} <= evaluations[0].keys()
    assert result.step == STEPS and result.exit_code == 0
    saved = json.loads((directory / "config.json").read_text())
    assert saved["digest"] == configs.digest(_config())


def test_stopped_and_resumed_it_is_the_same_run_bit_for_bit(whole, tmp_path):
    directory, result, batches = whole
    seen = {}
    stopped = _train(_config(), tmp_path, stop_at=STOP, seen=seen)
    assert (stopped.step, stopped.exit_code) == (STOP + 1, 75)
    seen.clear()
    resumed = _train(_config(), tmp_path, seen=seen)
    _assert_same(resumed.state, result.state)
    assert _lines(tmp_path) == _lines(directory)
    assert seen == {i: batches[i] for i in range(STOP + 1, STEPS)}


def test_other_worker_processes_and_another_mesh_go_on_with_the_same_batches(whole, tmp_path):
    directory, result, batches = whole
    seen = {}
    _train(_config(), tmp_path, stop_at=STOP)
    config = _config(data__workers=2, mesh__data=2, mesh__fsdp=4)
    resumed = _train(config, tmp_path, seen=seen)
    assert all(rows == batches[i] for i, rows in seen.items())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        resumed.state.params, result.state.params,
    )  # fmt: skip


def test_a_finished_run_changes_nothing_when_run_again(whole):
    directory, result, _ = whole
    before = _lines(directory)
    again = _train(_config(), directory)
    _assert_same(again.state, result.state)
    assert _lines(directory) == before


def test_a_stop_during_evaluation_evaluates_after_the_resume(whole, tmp_path, monkeypatch):
    directory, _, _ = whole
    evaluate, calls = loop.Evaluator.run, []

    def interrupted(self, params, *, stop):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, params, stop=stop)

    monkeypatch.setattr(loop.Evaluator, "run", interrupted)
    stopped = _train(_config(), tmp_path)
    assert (stopped.step, stopped.exit_code, stopped.metrics) == (4, 75, {})
    _train(_config(), tmp_path)
    assert _lines(tmp_path) == _lines(directory)


def test_the_step_is_traced_once(tmp_path):
    config = _config()
    made, traces = run.prepare(config), []
    step = made.system.step
    made.system.step = lambda *args: traces.append(1) or step(*args)
    loop.run(
        made.system, config, workdir=tmp_path, mesh=made.mesh, total_steps=4, meta=made.meta(),
        data=run.batches(config, made.mesh),
    )  # fmt: skip
    assert len(traces) == 1


@pytest.mark.parametrize("bearable", [1, 3])
def test_a_diverged_run_stops_and_names_its_batches(bearable, tmp_path):
    config = _config(
        optimizer__name="sgd", optimizer__learning_rate=1e30, train__max_bad_steps=bearable
    )
    seen = {}
    with pytest.raises(NonFiniteError, match=f"{bearable} steps in a row.*learning_rate"):
        _train(config, tmp_path, seen=seen)
    rows = json.loads((tmp_path / "nonfinite.json").read_text())
    saved = int(checkpoint.choose(tmp_path).name)
    # The last may have been under way when the run was stopped.
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], saved + 1))
    assert len(rows) in (bearable, bearable + 1)
    logged = [json.loads(line)["step"] for line in _lines(tmp_path)]
    assert logged == list(range(1, saved + 1))
    assert all(row["records"] == seen[row["step"] - 1] for row in rows)
    params, _ = checkpoint.restore_params(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_fine_tuning_run_killed_before_its_first_checkpoint_starts_from_its_donor_again(
    whole, tmp_path
):
    config = _config(train__init_from=str(whole[0]), train__steps=1, optimizer__learning_rate=0.0)
    workdir.claim(tmp_path / "other", config)
    (tmp_path / "other" / "checkpoints").mkdir()
    result = run.train(config, tmp_path / "other")
    donor, _ = checkpoint.restore_params(whole[0])
    _assert_same(result.state.params, donor)


def test_a_loader_that_fails_loses_no_step(whole, tmp_path):
    config, made = _config(train__checkpoint_every=0), run.prepare(_config())
    data = run.batches(config, made.mesh)

    def failing(first):
        yield from itertools.islice(data.train(first), 3)
        raise configs.ConfigError("record 7 is not a readable image")

    with pytest.raises(configs.ConfigError, match="record 7"):
        loop.run(
            made.system, config, workdir=tmp_path, mesh=made.mesh, total_steps=STEPS,
            meta=made.meta(), data=dataclasses.replace(data, train=failing),
        )  # fmt: skip
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_training_split_of_another_size_is_refused_on_resume(whole):
    made = run.prepare(_config())
    with pytest.raises(configs.ConfigError, match="begun with 12 steps and now has 20"):
        loop.run(
            made.system, _config(), workdir=whole[0], mesh=made.mesh, total_steps=20,
            meta=made.meta(), data=run.batches(_config(), made.mesh),
        )  # fmt: skip


def test_the_checkpoints_of_another_run_are_refused_where_its_config_has_gone(whole, tmp_path):
    """Copied beside the config of this one, or left without any."""
    other = _config(optimizer__learning_rate=0.5)
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(configs.ConfigError, match="another config:\n.*learning_rate: .* -> 0.5\n"):
        workdir.claim(tmp_path, other)
    made = run.prepare(other)
    with pytest.raises(configs.ConfigError, match="checkpoints/12 .*\n.*learning_rate: .* -> 0.5"):
        loop.run(
            made.system, other, workdir=tmp_path, mesh=made.mesh, total_steps=STEPS,
            meta=made.meta(), data=run.batches(other, made.mesh),
        )  # fmt: skip
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "metrics.jsonl").exists()
    workdir.claim(tmp_path, _config())


def test_a_misspelt_score_is_found_at_once():
    with pytest.raises(configs.ConfigError, match="did you mean 'eval/accuracy'"):
        run.prepare(_config(train__best_metric="eval/acuracy"))


def test_best_and_last_checkpoints_are_kept(whole):
    directory, _, _ = whole
    steps = sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.is_dir())
    scores = json.loads((directory / "checkpoints" / "scores.json").read_text())
    best = max(scores, key=lambda step: (scores[step], int(step)))
    assert {9, 12, int(best)} <= set(steps) and len(steps) <= 3  # the score of 12 came last
