import dataclasses
import json
import pathlib
import runpy
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from crate_jax import studies
from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram
from crate_jax.studies import ablation
from crate_jax.studies.ablation import (
    figures,
    optimizers,
    records,
    report,
    study,
    training,
    verdicts,
)
from crate_jax.studies.ablation import settings as S
from crate_jax.studies.ablation.view import View
from crate_jax.train.preemption import EXIT_RESUME
from crate_jax.train.whole import read_npz

V, N, B = 7, 8, 6


@pytest.fixture(scope="module")
def law():
    rng = np.random.default_rng(0)
    P, marginal = rng.dirichlet(np.ones(V), V), np.append(rng.dirichlet(np.ones(V - 1)), 0)
    P[:, -1] = 0
    P /= P.sum(1, keepdims=True)
    P[-1] = marginal
    return bigram.Law(P, marginal, tuple("abcdef") + ("<s>",), bos=V - 1)


def _settings(**changes):
    base = {
        "grid": S.Grid(layers=("2",), triggers=(2,)),
        "sweep": S.Sweep(seeds=2, learning_rate_factors=(1.0, 10.0)),
        "model": S.Model(width=8, heads=2, hidden=8),
        "data": S.Data(length=N, batch=B),
        "train": S.Train(steps=7, every=3, evaluation_batch=5),
    }
    return S.Settings(**base | changes)


@pytest.fixture(scope="module")
def trained(law):
    settings = _settings()
    trainer = training.Trainer(settings, S.list_cells(settings)[0], law)
    state, last = trainer.advance(trainer.init(), 7)
    return trainer, state, last


def test_cells_are_the_product_of_the_axes():
    grid = S.Grid(layers=("1", "TF+MLP"), attention=("softmax", "relu"), triggers=(1, 3))
    cells = S.list_cells(_settings(grid=grid))
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert cells[0] == S.Cell(triggers=1) and cells[-1].name == "TF+MLP_relu_adamw"
    assert cells[-1].attentive == (0,) and cells[-1].depth == 2


def test_cells_one_by_one_take_what_they_leave_out_from_the_grid():
    settings = _settings(cells=("layers=3,optimizer=sgdm", "triggers=5"))
    assert S.list_cells(settings) == [
        S.Cell("3", optimizer="sgdm", triggers=2), S.Cell("2", triggers=5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"cells": ("attention=sotfmax",)}, "did you mean 'softmax'"),
        ({"cells": ("layer=1",)}, "did you mean 'layers'"),
        ({"cells": ("layers=TF+MPL",)}, "did you mean 'MLP'"),
        ({"cells": ("layers=MLP",)}, "no attention"),
        ({"cells": ("optimizer=adam",)}, "did you mean 'adamw'"),
        ({"cells": ("optimizer=adamw:b3=1",)}, "no hyperparameter 'b3'"),
        ({"cells": ("optimizer=adamw:b2=x",)}, "no number"),
        ({"cells": ("layers=1", "layers=1")}, "twice"),
        ({"grid": S.Grid(task=())}, "config.grid.task is empty"),
        ({"sweep": S.Sweep(seeds=0)}, "config.sweep.seeds must be at least 1"),
        ({"sweep": S.Sweep(weight_decays=(-1.0,))}, "config.sweep.weight_decays"),
        ({"model": S.Model(width=9, heads=2)}, "does not divide"),
        ({"model": S.Model(frozen=("head",))}, "config.model.frozen"),
        ({"learning_rate": S.LearningRates(sgd=0.0)}, "config.learning_rate.sgd"),
        ({"cells": ("layers=²",)}, "number of layers"),
        ({"cells": ("triggers=70",)}, "at most 64"),
        ({"cells": ("triggers=-1",)}, "at least 0"),
        ({"cells": ("optimizer=adamw:b2=1",)}, "b2 must be from 0 to below 1"),
        ({"cells": ("optimizer=adamw:eps=nan",)}, "eps must be from 0"),
        ({"cells": ("optimizer=muon:ns_steps=1.5",)}, "no whole number"),
        ({"sweep": S.Sweep(learning_rate_factors=(1.0, 1.0))}, "twice.*config.sweep.seeds"),
        ({"data": S.Data(n_bos=3)}, "config.data.n_bos must be 0, 1 or 2"),
        ({"data": S.Data(delimiter=1.0)}, "config.data.delimiter is a probability below 1"),
        ({"data": S.Data(law="txt:a")}, "config.data.law='txt:a'.*did you mean 'text'"),
        ({"data": S.Data(law="synthetic:5")}, "synthetic alone"),
        ({"model": S.Model(hidden=0)}, "config.model.hidden must be at least 1"),
        ({"model": S.Model(width=7, positions="sincos")}, "width=7 is odd"),
        ({"model": S.Model(no_mlp_norm=(2,))}, "no_mlp_norm names layer 2"),
        ({"model": S.Model(frozen=("output",), tie_output=True)}, "'output' is to be frozen"),
        (
            {"train": S.Train(official_evaluation=True), "cells": ("task=markov",)},
            "official sequences are of backcopy",
        ),
    ],
    ids=lambda x: "" if isinstance(x, str) else next(iter(x)),
)
def test_what_is_wrong_is_said_before_any_compile(changes, says):
    with pytest.raises(ConfigError, match=says):
        ablation.check(_settings(**changes))


def test_the_study_resolves_by_its_name():
    raw = studies.default("ablation")
    raw.grid.optimizer = ("lion",)
    assert S.list_cells(studies.resolve(raw)) == [S.Cell(optimizer="lion")]


def test_log_steps():
    train = S.Train(steps=1_050, every=20, every_until=100, every_after=200)
    assert S.log_steps(train) == [0, 20, 40, 60, 80, 100, 300, 500, 700, 900, 1_050]
    paper = S.log_steps(S.Train(steps=100_000))
    assert len(paper) == 501 + 450


def test_learning_rates_are_the_papers():
    rates = S.LearningRates()
    assert optimizers.learning_rate(rates, "adamw", "relu", 1) == 3e-3
    assert optimizers.learning_rate(rates, "adamw:b2=0.9", "relu", 3) == 3e-4
    assert optimizers.learning_rate(rates, "sgdm", "relu", 1) == 0.03


def _adamw(p, gradients, lr, wd):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        p = p - lr * (step + wd * p)
    return p


def _sgdm(p, gradients, lr, wd):
    velocity = 0.0
    for g in gradients:
        velocity = 0.9 * velocity + g + wd * p
        p = p - lr * velocity
    return p


@pytest.mark.parametrize("name, by_hand", [("adamw", _adamw), ("sgdm", _sgdm)])
def test_the_papers_optimizers_by_hand(name, by_hand, x64):
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal((3, 2)), rng.standard_normal((4, 3, 2))

    def run(lr, wd):
        tx = optimizers.build(name, lr, wd)
        params = {"kernel": jnp.asarray(start)}
        state = tx.init(params)
        for g in gradients:
            update, state = tx.update({"kernel": jnp.asarray(g)}, state, params)
            params = optax.apply_updates(params, update)
        return params["kernel"]

    lrs, wds = np.array([0.1, 0.03]), np.array([0.01, 0.5])
    ours = jax.vmap(run)(lrs, wds)
    for r in range(2):
        np.testing.assert_allclose(ours[r], by_hand(start, gradients, lrs[r], wds[r]), rtol=1e-12)


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_every_optimizer_may_have_its_rates_mapped(name):
    params = {"blocks_0": {"mlp": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3)}}}
    gradient = jax.tree.map(jnp.sin, params)

    def step(lr, wd):
        tx = optimizers.build(name, lr, wd)
        return tx.update(gradient, tx.init(params), params)[0]["blocks_0"]["mlp"]["kernel"]

    lrs, wds = jnp.array([0.1, 0.2]), jnp.array([0.0, 0.3])
    mapped = jax.jit(jax.vmap(step))(lrs, wds)
    assert np.abs(mapped).max() > 0
    for r in range(2):
        np.testing.assert_allclose(mapped[r], step(lrs[r], wds[r]), rtol=1e-5, atol=1e-7)


def test_frozen_parameters_do_not_move():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = optimizers.build("adamw", 0.1, 0.1, {"a": True, "b": False})
    update, _ = tx.update(params, tx.init(params), params)
    assert not update["a"].any() and update["b"].all()


def test_a_run_is_what_a_plain_loop_makes_of_its_seed(trained, law):
    """Runs lie on 4 devices; the loop below knows of one run and of optax alone."""
    trainer, state, (_, _, losses) = trained
    assert trainer.mesh.shape == {"sweep": 4, "data": 1}
    task = S.task_of(trainer.settings, trainer.cell)
    for r in (1, 2):
        run = trainer.runs[r]
        assert run.learning_rate == pytest.approx((3e-4, 3e-4, 3e-3, 3e-3)[r])
        key = jax.random.fold_in(jax.random.key(0), run.seed)
        tokens = jnp.zeros((1, N), jnp.int32)
        params = trainer.model.init(jax.random.fold_in(key, 0), tokens)["params"]
        tx = optax.adamw(run.learning_rate, b2=0.99, weight_decay=1e-4)

        @jax.jit
        def step(params, opt_state, i, key=key, tx=tx):
            tokens = backcopy.sample(
                jax.random.fold_in(jax.random.fold_in(key, 1), i), law, task, B
            )

            def loss(params):
                log_q = jax.nn.log_softmax(trainer.model.apply({"params": params}, tokens[:, :-1]))
                return -(log_q * jax.nn.one_hot(tokens[:, 1:], V)).sum(-1).mean()

            value, gradient = jax.value_and_grad(loss)(params)
            update, opt_state = tx.update(gradient, opt_state, params)
            return optax.apply_updates(params, update), opt_state, value

        opt_state = tx.init(params)
        for i in range(7):
            params, opt_state, value = step(params, opt_state, i)
        np.testing.assert_allclose(losses[r], value, rtol=1e-5)
        mine = jax.tree.map(lambda x, r=r: x[r], jax.device_get(state["params"]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), mine, params)


def test_however_it_is_cut_the_training_is_the_same_program(trained):
    trainer, state, last = trained
    cut = trainer.init()
    for count in (1, 4, 2):
        cut, cut_last = trainer.advance(cut, count)
    for a, b in zip(jax.tree.leaves((state, last)), jax.tree.leaves((cut, cut_last)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert trainer._advance._cache_size() == 1


def test_metrics_are_those_of_the_definitions(trained, law):
    trainer, state, last = trained
    metrics = jax.device_get(trainer.metrics(state, last))
    task = S.task_of(trainer.settings, trainer.cell)
    key = jax.random.fold_in(jax.random.key(0), training._EVALUATION)
    tokens = np.asarray(backcopy.sample(key, law, task, 5))
    x, triggers = tokens[:, :-1], set(backcopy.triggers(law, 2).tolist())
    params = jax.tree.map(lambda p: p[3], jax.device_get(state["params"]))
    logits, seen = jax.device_get(
        trainer.model.apply(
            {"params": params}, x, capture=("attention", "scores", "values", "residual")
        )
    )
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    risk = {"backcopy": [], "bigram": []}
    for b, n in np.ndindex(x.shape):
        if x[b, n] in triggers:
            risk["backcopy"].append(-log_q[b, n, x[b, n - 1]])
        else:
            p = law.P[x[b, n]]
            risk["bigram"].append(-sum(p[k] * log_q[b, n, k] for k in range(V) if p[k]))
    for name, values in risk.items():
        np.testing.assert_allclose(metrics[f"{name}_risk_official"][3], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["backcopy_excess_exact"][3], metrics["backcopy_risk_exact"][3], rtol=1e-6
    )
    assert metrics["bigram_excess_exact"].min() > 0

    l, h = 1, 1
    to_first, by_token = [], {}
    for b, n in np.ndindex(x.shape):
        if x[b, n] in triggers:
            continue
        to_first.append(seen["attention"][l, b, h, n, 0])
        if n >= 2:
            s = seen["scores"][l, b, h, n]
            by_token.setdefault(x[b, n], []).append(s[0] - s[1:n].mean())
    of_tokens = [np.mean(values) for values in by_token.values()]
    norms = np.sqrt((seen["values"][l, :, h] ** 2).sum(-1)).mean(0)
    peaks = np.sqrt((seen["residual"] ** 2).sum(-1)).mean(1)
    expected = {
        "attention_bos": np.mean(to_first), "sink_logit": np.mean(of_tokens),
        "sink_logit_low": np.quantile(of_tokens, 0.1), "value_bos": norms[0],
        "value_ratio": norms[0] / norms[1:].mean(),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name][3, l, h], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        metrics["residual_peak"][3], peaks[:, 0] - peaks[:, 1:].mean(1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_growth_tells_what_an_update_does_to_the_residual(trained):
    """A small step's change of ``||Res_<s>||``, to first order, is the sum over parameters."""
    trainer, state, _ = trained
    shrink = 1e-3
    update = jax.tree.map(lambda p: shrink * jnp.cos(3 * p), state["params"])
    moved = state | {"params": jax.tree.map(jnp.add, state["params"], update)}
    metrics = trainer.metrics(state, (update, update, jnp.zeros(4)))
    change = trainer.metrics(moved)["residual_bos"] - metrics["residual_bos"]
    predicted = np.asarray(metrics["leaf_growth"]).sum(-1)
    np.testing.assert_allclose(predicted, change, rtol=0.05, atol=1e-4)
    k = trainer.leaf_names.index("token_embedding/embedding")
    np.testing.assert_allclose(
        metrics["leaf_update"][:, k],
        np.linalg.norm(update["token_embedding"]["embedding"], axis=(1, 2)), rtol=1e-5,
    )  # fmt: skip


def test_interventions_by_name(trained):
    trainer, state, _ = trained
    names = list(trainer.interventions())
    metrics = jax.device_get(trainer.intervene(state))
    plain = jax.device_get(trainer.metrics(state))
    for name in ("loss", "attention_bos", "residual_bos"):
        np.testing.assert_allclose(metrics[name][:, 0], plain[name], rtol=1e-5, atol=1e-6)
    attention = metrics["attention_bos"]
    assert not attention[:, names.index("zero head 1.0"), 1, 0].any()
    assert attention[:, names.index("zero head 1.0"), 1, 1].all()
    np.testing.assert_allclose(attention[:, names.index("all to <s> 0"), 0], 1)
    np.testing.assert_allclose(attention[:, names.index("ideal attention 1"), 1], 1)
    assert not metrics["value_bos"][:, names.index("zero <s> value 0"), 0].any()
    for name in ("zero <s> attention 1", "zero <s> MLP 1"):  # at <s> alone, from that layer on
        changed = metrics["residual_bos"][:, names.index(name)]
        np.testing.assert_allclose(changed[:, 0], plain["residual_bos"][:, 0], rtol=1e-5)
        assert np.abs(changed - plain["residual_bos"])[:, 1].min() > 1e-4
    dropped = metrics["residual_bos"][:, names.index("drop MLP 1")]
    assert np.abs(dropped - plain["residual_bos"])[:, 1].min() > 1e-3
    np.testing.assert_allclose(dropped[:, 0], plain["residual_bos"][:, 0], rtol=1e-5)


def test_a_task_without_triggers_has_its_interventions(law):
    """``markov`` copies nothing, so that ideal attention is all of it to ``<s>``."""
    settings = _settings(cells=("layers=1,task=markov",), sweep=S.Sweep(seeds=1))
    trainer = training.Trainer(settings, S.list_cells(settings)[0], law)
    names = list(trainer.interventions())
    metrics = jax.device_get(trainer.intervene(trainer.init()))
    for name in ("ideal attention 0", "all to <s> 0"):
        np.testing.assert_allclose(metrics["attention_bos"][:, names.index(name)], 1)
    ideal, to_bos = (names.index(name) for name in ("ideal attention 0", "all to <s> 0"))
    np.testing.assert_array_equal(metrics["loss"][:, ideal], metrics["loss"][:, to_bos])


def test_metrics_are_taken_on_the_official_sequences_where_asked(law):
    train = S.Train(steps=7, evaluation_batch=5, official_evaluation=True)
    settings = _settings(train=train, sweep=S.Sweep(seeds=1))
    cell = S.list_cells(settings)[0]
    trainer = training.Trainer(settings, cell, law)
    expected = backcopy.official_batch(law, S.task_of(settings, cell), 5)
    np.testing.assert_array_equal(trainer._batch.tokens_BN, expected[:, :-1])
    np.testing.assert_array_equal(trainer._batch.targets_BN, expected[:, 1:])


def test_devices_that_do_not_fit_are_named():
    devices = jax.devices()
    assert training.make_mesh(S.Sweep(), 5, 8, devices).shape["sweep"] == 5
    assert training.make_mesh(S.Sweep(data_devices=2), 6, 8, devices).shape == {
        "sweep": 3, "data": 2,
    }  # fmt: skip
    for sweep, runs, batch in ((S.Sweep(devices=3), 4, 8), (S.Sweep(data_devices=3), 4, 8)):
        with pytest.raises(ConfigError, match="divide"):
            training.make_mesh(sweep, runs, batch, devices)


@pytest.mark.slow
def test_a_split_batch_gives_the_same_update(trained, law):
    trainer, state, last = trained
    settings = dataclasses.replace(
        trainer.settings, sweep=dataclasses.replace(trainer.settings.sweep, data_devices=2)
    )
    split = training.Trainer(settings, trainer.cell, law)
    assert split.mesh.shape == {"sweep": 4, "data": 2}
    _, split_last = split.advance(split.init(), 7)
    np.testing.assert_allclose(last[2], split_last[2], rtol=1e-5)


def _console():
    return Console(quiet=True)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stopped_study_goes_on_bit_for_bit(fresh, trained, law, tmp_path, monkeypatch):
    """SIGTERM twice between two points; compiled anew at every start if ``fresh``."""
    trainer = trained[0]
    settings, cell = trainer.settings, trainer.cell
    monkeypatch.setattr(bigram, "load", lambda *_, **__: law)
    if not fresh:
        monkeypatch.setattr(study, "Trainer", lambda *_: trainer)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for directory in (whole, cut):
        directory.mkdir()
    assert ablation.run(settings, whole, _console()) == 0

    calls = {"trained": 0}

    def interrupt(self, updates, seconds):
        calls["trained"] += 1
        if calls["trained"] in (1, 4):  # each start's first call compiles and is not counted
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(study, "CALL_SECONDS", 1e-9)  # one update a call
    monkeypatch.setattr(View, "trained", interrupt)
    monkeypatch.setattr(report, "write", lambda *_: None)
    codes = [ablation.run(settings, cut, _console()) for _ in range(3)]
    assert codes == [EXIT_RESUME, EXIT_RESUME, 0]
    assert (whole / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()
    a, b = (read_npz(d / "cells" / cell.name / "result.npz") for d in (whole, cut))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)

    def never(*_):
        raise AssertionError("a finished cell is trained again")

    monkeypatch.setattr(study, "Training", never)
    assert ablation.run(settings, cut, _console()) == 0
    page = (whole / "report" / "index.html").read_text()
    assert cell.name in page and page.count("data:image/png") == 6
    rows = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows[::4]] == [0, 3, 6, 7]
    assert rows[0]["train_loss"] is None and rows[-1]["attention_bos/1/1"] > 0


@pytest.mark.parametrize("damage", ["missing", "cut", "older"])
def test_a_checkpoint_without_its_metrics_is_a_sentence(damage, trained, tmp_path):
    trainer = trained[0]
    directory = tmp_path / "cell"
    directory.mkdir()
    series, path = records.Series(), directory / records.SERIES
    series.append(0, {"loss": np.zeros(4)})
    if damage != "missing":
        series.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])

    class Newest:
        def newest(self):
            return 5

        def restore_newest(self, abstract):
            return 5, None, {}

    cell_training = study.Training.__new__(study.Training)
    cell_training._settings, cell_training._directory = trainer.settings, directory
    cell_training.trainer, cell_training.series = trainer, records.Series()
    with pytest.raises(ConfigError, match="series.npz.*update 5.*remove"):
        cell_training._start(Newest())


def _arrays(attention, ratio, peak, excess):
    """A last point of R runs, as ``judge`` reads it, and residual norms at three."""
    norms = np.arange(1.0, 3 * np.size(peak) + 1).reshape(3, *np.shape(peak))
    return {
        records.STEPS: np.array([0, 50, 100]), "residual_bos": norms,
        "attention_bos": np.array(attention)[None], "value_ratio": np.array(ratio)[None],
        "residual_ratio": np.array(peak)[None], "bigram_excess_exact": np.array(excess)[None],
        "backcopy_excess_exact": np.array(excess)[None], "loss": np.array(excess)[None] + 2,
    }  # fmt: skip


def test_verdicts_look_at_the_head_of_the_largest_attention():
    runs = [S.Run(0, 0.1, 0.0), S.Run(1, 0.1, 0.0), S.Run(0, 0.2, 0.0), S.Run(1, 0.2, 0.0)]
    arrays = _arrays(
        attention=[[[0.9], [0.1]], [[0.2], [0.7]], [[0.1], [np.nan]], [[0.1], [0.6]]],
        ratio=[[[0.2], [3.0]], [[3.0], [0.1]], [[0.1], [np.nan]], [[0.1], [0.3]]],
        peak=[[1.0, 3.0], [2.5, 1.0], [1.0, 1.0], [1.0, 1.0]],
        excess=[0.1, 0.3, np.nan, 0.2],
    )
    first, second = verdicts.judge(S.Cell("2"), runs, arrays)
    np.testing.assert_array_equal(first.attention, [0.9, 0.7])
    np.testing.assert_array_equal(first.drain, [0.2, 0.1])
    # norms of 4 runs x 2 layers count on from 1: run 0 peaks in layer 1, run 1 in layer 0
    np.testing.assert_allclose(first.growth, [18 / 10, 19 / 11])
    row = dict(zip(verdicts.COLUMNS[:11], first.row()[:11], strict=True))
    assert (row["sink"], row["drain"], row["peak"]) == ("yes", "yes", "yes")
    assert row["loss"] == "2.2"
    assert row["Attn_<s>"] == "0.8 [0.72, 0.88]" and row["backcopy, bigram excess"] == "0.2, 0.2"
    row = second.row()
    assert row[4:7] == ["yes", "0.3", "no"] and row[8] == "no" and "1 diverged" in row[10]


def test_a_cell_speaks_by_the_rates_of_the_least_loss():
    runs = [S.Run(seed, rate, 0.0) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)]
    one = [[0.5]]
    arrays = _arrays([one] * 6, [one] * 6, [[1.0]] * 6, excess=[0.5, 0.6, 0.2, 0.1, 0.0, np.nan])
    found = verdicts.judge(S.Cell(), runs, arrays)
    assert verdicts.best(found) == 1  # of 0.3, one of two seeds diverged: its median is infinite
    assert verdicts.mark(found) == " (best of 3)"
    assert (
        verdicts.mark(found[:2]) == " (best of 2, at the edge)" and verdicts.mark(found[:1]) == ""
    )
    assert found[1].row(" *")[1] == "0.2, 0 *"


def test_a_risk_that_cannot_be_measured_is_no_divergence():
    arrays = _arrays([[[0.5]]], [[[0.5]]], [[1.0]], excess=[0.5])
    arrays["backcopy_excess_exact"] = np.array([[np.nan]])
    (verdict,) = verdicts.judge(S.Cell(), [S.Run(0, 0.1, 0.0)], arrays)
    assert verdict.alive.all() and verdict.row()[10] == "-, 0.5"


def test_the_papers_rates_are_found_among_those_that_were_tried():
    settings = _settings(sweep=S.Sweep(seeds=2, learning_rate_factors=(0.1, 1.0)))
    for cell in (S.Cell("1"), S.Cell("1", "relu"), S.Cell("3", optimizer="sgdm")):
        assert verdicts.papers_rates(cell, S.list_runs(settings, cell)).tolist() == [2, 3]
    assert verdicts.papers_rates(S.Cell(), [S.Run(0, 3e-5, 1e-4), S.Run(0, 3e-4, 0.0)]) is None


def test_the_paper_is_quoted_for_its_own_cells_alone():
    def published(cell, **changes):
        return verdicts.published(cell, _settings(**{"model": S.Model(width=8)} | changes))

    assert published(S.Cell("3")) == ("yes", "yes", "yes")
    assert published(S.Cell("3", optimizer="sgdm")) == ("yes", "-", "no")
    assert published(S.Cell("3", attention="relu")) == ("no", "-", "no")
    own = (
        {"data": S.Data(n_bos=0)}, {"data": S.Data(delimiter=0.1)}, {"model": S.Model(no_wv=True)},
        {"model": S.Model(frozen=("wo",))}, {"model": S.Model(tie_output=True)},
        {"model": S.Model(heads=2)},
    )  # fmt: skip
    for changes in own:
        assert published(S.Cell("3"), **changes) == ("-", "-", "-")
    for other in (
        S.Cell("3", norm="post"),
        S.Cell("3", triggers=5),
        S.Cell("4"),
        S.Cell("1", "sigmoid"),
    ):
        assert published(other) == ("-", "-", "-")


def test_published_numbers_stand_beside_the_same_update():
    steps = [0, 200, 10_000]
    series = {records.STEPS: np.array(steps)}
    series |= {name: np.arange(6.0).reshape(3, 2) for name in verdicts.TRAJECTORY_METRICS}
    rows = verdicts.trajectory(np.arange(2), series)
    assert rows[1][:2] == ["200", "0.223 / 2.5"] and rows[2][1] == "0.56 / -"


def test_the_terminal_shows_medians_of_the_runs():
    cell = S.Cell()
    console = Console(record=True, width=200, force_terminal=False, quiet=False, file=None)
    metrics = {
        "loss": np.array([1.0, 3.0]), "attention_bos": np.array([[[0.25]], [[0.75]]]),
        "value_ratio": np.array([[[0.5]], [[0.25]]]), "residual_ratio": np.array([[1.0], [2.0]]),
    }  # fmt: skip
    with View([cell], 100, console) as view:
        view.begin(cell, 2)
        view.trained(50, 10.0)
        view.point(cell, 50, metrics)
    text = console.export_text()
    for part in ("50/100", "left 0:00:10", "run-steps/s 10", "loss 2", "Attn_<s> 0.5", "1.5"):
        assert part in text


def test_the_report_describes_what_was_trained(law):
    assert "2 seeds, 7 updates on batches of 6 sequences of 8" in report.describe(_settings(), law)


def _diverged(cell, points=2):
    """A series whose runs are not finite after the first point."""
    rng = np.random.default_rng(0)
    P, R, L, H = points, 2, cell.depth, 1
    heads = "attention_bos sink_logit sink_logit_low sink_logit_high value_bos value_others"
    heads += " value_ratio"
    layers = "residual_bos residual_others residual_ratio"
    runs = "backcopy_excess_exact bigram_excess_exact bigram_risk_exact"
    shapes = dict.fromkeys(heads.split(), (P, R, L, H)) | dict.fromkeys(layers.split(), (P, R, L))
    shapes |= dict.fromkeys(runs.split(), (P, R))
    shapes |= {"leaf_gradient": (P, R, 2), "leaf_update": (P, R, 2), "leaf_growth": (P, R, L, 2)}
    arrays = {name: rng.random(shape) for name, shape in shapes.items()}
    for values in arrays.values():
        values[1:] = np.nan
    names = np.array(["blocks_0/mlp/w1/kernel", "output/kernel"])
    return arrays | {records.STEPS: np.arange(points), "about/leaf_names": names}


@pytest.mark.parametrize("cells, expected", [(8, [8]), (9, [5, 4]), (96, [8] * 12)])
def test_many_cells_are_spread_over_figures(cells, expected, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "comparison", lambda part, path: shown.append(list(part)))
    names = [S.Cell(triggers=k) for k in range(cells)]
    chosen = {cell: verdicts.Verdict(cell, 3e-4, 1e-4, *[np.ones(1)] * 6) for cell in names}
    pictures = report._comparisons(_settings(), dict.fromkeys(names), chosen, tmp_path)
    assert [len(part) for part in shown] == expected
    assert sum(shown, []) == [cell.name for cell in names]
    assert len({picture.path for picture in pictures}) == len(expected)


@pytest.mark.filterwarnings("error")
def test_what_has_diverged_is_drawn_as_far_as_it_goes(tmp_path):
    cell, runs = S.Cell(), np.arange(2)
    arrays = _diverged(cell)
    figures.parameters(arrays, runs, tmp_path / "parameters.png", "")
    figures.comparison({"a": (arrays, runs)}, tmp_path / "comparison.png")
    figures.dynamics(cell, arrays, runs, 4.0, tmp_path / "dynamics.png", "")
    shapes = {
        "portrait/attention": (2, 1, 1, N, N), "portrait/value_norm": (2, 1, 1, N),
        "portrait/residual_norm": (2, 1, N), "intervened/residual_peak": (2, 2, 1),
        "intervened/backcopy_excess_exact": (2, 2), "intervened/bigram_excess_exact": (2, 2),
    }  # fmt: skip
    result = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
    result |= {"about/tokens": np.array(list("abcdefgh")), "about/trigger": np.zeros(N, bool)}
    result["about/interventions"] = np.array(["none", "zero head 0.0"])
    figures.attention_maps(cell, result, 0, tmp_path / "attention.png", "")
    figures.token_norms(cell, result, 0, tmp_path / "norms.png", "")
    figures.interventions(cell, result, runs, tmp_path / "interventions.png", "")
    assert len(list(tmp_path.iterdir())) == 6


def test_presets_are_what_they_say():
    file = pathlib.Path(__file__).parents[2] / "configs/extreme_tokens/ablation.py"
    config = runpy.run_path(str(file))
    cells = {
        name: S.list_cells(studies.resolve(config["get_config"](f"preset={name}")))
        for name in config["PRESETS"]
    }
    assert {name: len(of_preset) for name, of_preset in cells.items()} == {
        "table": 6, "paper": 6, "optimizers": 8, "attention": 8, "norms": 4, "blocks": 5,
        "tasks": 13, "adam": 4, "grid": 96,
    }  # fmt: skip
    assert {cell.optimizer for cell in cells["grid"]} == set(optimizers.NAMES)
    paper = studies.resolve(config["get_config"]("preset=paper"))
    assert paper.train.official_evaluation and paper.train.evaluation_batch == 512
    for name in ("optimizers", "grid"):
        settings = studies.resolve(config["get_config"](f"preset={name},seeds=2"))
        rates = {run.learning_rate for run in S.list_runs(settings, cells[name][0])}
        np.testing.assert_allclose(sorted(rates), [3e-5, 9e-5, 3e-4, 9e-4, 3e-3])
