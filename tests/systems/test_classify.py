"""The classification task: its step, its guard, its averages, its measurements, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from crate_jax import models
from crate_jax.config import ConfigError, MeshConfig, resolve
from crate_jax.interpret import layers
from crate_jax.layers.stack import unstack_layers
from crate_jax.sharding import place
from crate_jax.sharding.mesh import create_mesh
from crate_jax.systems import base, classify
from crate_jax.systems.classify import Classify
from crate_jax.train import loop

B, CLASSES = 8, 7
TINY = {"name": "crate", "width": 16, "depth": 2, "heads": 2, "patch": 4}


def _system(model=None, dtype="float32", cls=Classify, **sections):
    raw = {
        "model": TINY | {"param_dtype": dtype} | (model or {}),
        "data": {"num_classes": CLASSES, "channels": 3} | sections.pop("data", {}),
        "optimizer": {"name": "sgd", "learning_rate": 0.125} | sections.pop("optimizer", {}),
        "schedule": {"name": "constant"},
        "train": {"steps": 10, "batch_size": B} | sections.pop("train", {}),
        **sections,
    }
    return cls(resolve(raw), total_steps=10, steps_per_epoch=5)


def _batch(seed=0, size=B, dtype="float32", side=8):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(size, side, side, 3)), dtype),
        "label": jnp.asarray(rng.integers(CLASSES, size=size), "int32"),
    }


def _fresh(system, seed=0):
    """A state with parameters from numpy, which spares compiling ``system.init``."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), system.abstract_params
    )
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if system.config.train.ema_decay else None
    return base.State(zero, zero, zero, params, system.tx.init(params), ema)


def _log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def _assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_step_is_the_loop_one_would_write_by_hand(x64):
    system = _system(
        dtype="float64",
        optimizer={"weight_decay": 0.1, "decay_mask": "kernels", "clip_norm": 0.5},
    )
    batch = _batch(dtype="float64")
    state = _fresh(system)

    def loss(params):
        logits = system.module.apply({"params": params}, batch["image"])
        return -jax.nn.log_softmax(logits)[jnp.arange(B), batch["label"]].mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    assert norm > 0.5  # the clip is at work
    flat, flat_grads = map(traverse_util.flatten_dict, (state.params, grads))
    want = {
        path: p - 0.125 * (0.5 / norm * flat_grads[path] + 0.1 * p * (path[-1] == "kernel"))
        for path, p in flat.items()
    }
    new, metrics = jax.jit(system.step)(state, batch, jax.random.key(1))
    _assert_same(traverse_util.flatten_dict(new.params), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-12)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-12)
    assert (int(new.step), int(new.bad_steps)) == (1, 0)
    assert metrics["learning_rate"] == 0.125


def test_accumulated_gradients_are_those_of_the_whole_batch(x64):
    batch = _batch(dtype="float64")
    target = jax.nn.one_hot(batch["label"], CLASSES)
    found = []
    for parts in (1, 4):
        system = _system(dtype="float64", train={"accumulate": parts})
        params = _fresh(system).params
        data = (batch["image"], target, batch["label"], jax.random.key(1))
        found.append(jax.jit(system.loss_and_grad)(params, *data))
    _assert_same(*found, rtol=1e-12, atol=1e-14)


class _RootOfZero(Classify):
    """A loss that is finite with a gradient that is not: the derivative of sqrt at 0."""

    def loss(self, params, *batch):
        value, accuracy = super().loss(params, *batch)
        return value + jnp.sqrt(0.0 * jnp.sum(params["head"]["bias"])), accuracy


@pytest.mark.parametrize("fault", ["image", "gradient"])
def test_what_is_not_finite_reaches_nothing(fault):
    settings = {"optimizer": {"name": "adamw"}, "train": {"ema_decay": 0.9}}
    system, good = _system(**settings), _batch()
    good_step = bad_step = jax.jit(system.step)
    bad = good | {"image": good["image"].at[0, 0, 0, 0].set(jnp.inf)}
    if fault == "gradient":
        bad_step, bad = jax.jit(_system(cls=_RootOfZero, **settings).step), good
    before, _ = good_step(_fresh(system), good, jax.random.key(1))
    state = before
    for tries in (1, 2):
        state, metrics = bad_step(state, bad, jax.random.key(1 + tries))
        assert (int(state.bad_steps), int(state.step)) == (tries, 1 + tries)
        assert int(metrics["bad_steps"]) == tries
        assert np.isfinite(metrics["loss"]) == (fault == "gradient")
        assert not np.isfinite(metrics["grad_norm"])
    for part in ("params", "opt_state", "ema"):
        _assert_identical(getattr(state, part), getattr(before, part))
    after, _ = good_step(state, good, jax.random.key(9))
    assert int(after.bad_steps) == 0
    assert not np.array_equal(after.params["head"]["bias"], before.params["head"]["bias"])


def test_the_average_moves_by_its_decay_and_is_what_is_judged(x64):
    system = _system(dtype="float64", train={"ema_decay": 0.75})
    batch = _batch(dtype="float64")
    state = jax.jit(system.init)(jax.random.key(0), batch)
    _assert_identical(state.ema, state.params)
    want, step = state.params, jax.jit(system.step)
    for i in range(3):
        state, _ = step(state, batch, jax.random.key(i))
        want = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, want, state.params)
    _assert_same(state.ema, want, rtol=1e-12, atol=1e-15)
    assert system.eval_params(state) is state.ema
    assert system.eval_params(state.replace(ema=None)) is state.params


def test_an_average_of_averages_is_refused():
    with pytest.raises(ConfigError, match="averages the parameters itself.*ema_decay=0"):
        _system(optimizer={"name": "schedule_free_adamw"}, train={"ema_decay": 0.9})


@pytest.mark.parametrize(
    "settings, on, off",
    [
        ({}, 1.0, 0.0),
        ({"label_smoothing": 0.1}, 0.9 + 0.1 / CLASSES, 0.1 / CLASSES),
        ({"on_value": 0.9, "off_value": 1e-4}, 0.9, 1e-4),
    ],
)
def test_the_targets_of_the_loss(settings, on, off):
    system, batch = _system(classify=settings), _batch()
    state = _fresh(system)
    logp = _log_softmax(jax.jit(system.forward)(state.params, batch))
    target = np.full((B, CLASSES), off)
    target[np.arange(B), batch["label"]] = on
    _, metrics = jax.jit(system.step)(state, batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], -(target * logp).sum(1).mean(), rtol=1e-5)
    accuracy = (logp.argmax(1) == batch["label"]).mean()
    np.testing.assert_allclose(metrics["accuracy"], accuracy)


def test_the_orthogonality_penalty_adds_to_the_loss_and_to_the_gradient(x64):
    plain, batch = _system(dtype="float64"), _batch(dtype="float64")
    penalised = _system(dtype="float64", classify={"ortho_penalty": 0.03})
    params = _fresh(plain).params
    data = (
        batch["image"],
        jax.nn.one_hot(batch["label"], CLASSES),
        batch["label"],
        jax.random.key(1),
    )
    (loss, _), grads = jax.jit(plain.loss_and_grad)(params, *data)
    (more, _), more_grads = jax.jit(penalised.loss_and_grad)(params, *data)
    penalty = 0.0
    for l in range(2):
        U_DKP = np.asarray(params[f"blocks_{l}"]["attention"]["subspaces"]["kernel"])
        for k in range(2):
            gram = U_DKP[:, k].T @ U_DKP[:, k]
            penalty += np.sum((gram - np.eye(8)) ** 2)
            want = 4 * U_DKP[:, k] @ (gram - np.eye(8))
            got = more_grads[f"blocks_{l}"]["attention"]["subspaces"]["kernel"][:, k]
            base = grads[f"blocks_{l}"]["attention"]["subspaces"]["kernel"][:, k]
            np.testing.assert_allclose(got - base, 0.03 * want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(more - loss, 0.03 * penalty, rtol=1e-10)


def test_an_orthogonality_penalty_without_subspaces_is_refused():
    with pytest.raises(ConfigError, match="config.classify.ortho_penalty: .* model with MSSA"):
        _system(model={"name": "vit"}, classify={"ortho_penalty": 0.1})


def test_cudnn_attention_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        _system(model={"name": "vit", "attention_implementation": "cudnn"})


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_changes_training_and_not_evaluation(kind):
    plain, mixed = _system(), _system(classify={kind: 1.0})
    batch = _batch() | {"mask": jnp.ones(B)}
    state = _fresh(plain)
    losses = []
    for system in (plain, mixed):
        step = jax.jit(system.step)
        losses.append({float(step(state, batch, jax.random.key(i))[1]["loss"]) for i in range(3)})
    assert len(losses[0]) == 1 and len(losses[1]) == 3 and not losses[0] & losses[1]
    _assert_identical(
        jax.jit(plain.evaluate)(state.params, batch), jax.jit(mixed.evaluate)(state.params, batch)
    )


def test_evaluation_counts_the_rows_of_the_mask_alone():
    system, batch = _system(), _batch(size=12)
    params = _fresh(system).params
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1], np.float32)
    logp = _log_softmax(jax.jit(system.forward)(params, batch))
    label, rows = np.asarray(batch["label"]), np.flatnonzero(mask)
    best = np.argsort(-logp, axis=1)
    want = {
        "loss": sum(-logp[i, label[i]] for i in rows),
        "accuracy": sum(best[i, 0] == label[i] for i in rows),
        "accuracy_top5": sum(label[i] in best[i, :5] for i in rows),
        "count": len(rows),
    }
    got = jax.jit(system.evaluate)(params, batch | {"mask": jnp.asarray(mask)})
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert 0 < want["accuracy_top5"] < want["count"]


def test_five_classes_have_no_top_five():
    system, batch = _system(data={"num_classes": 5}), _batch()
    batch |= {"label": batch["label"] % 5, "mask": jnp.ones(B)}
    params = _fresh(system).params
    assert "accuracy_top5" not in system.evaluate(params, batch)


@pytest.mark.parametrize("name", models.MODELS)
def test_measuring_by_parts_is_measuring_at_once(name, monkeypatch):
    system, batch = _system(model={"name": name}), _batch(size=12)
    params = _fresh(system).params
    _, captured = jax.jit(lambda p, b: system.forward(p, b, layers.CAPTURE))(params, batch)
    want = layers.summarise(layers.measure(captured))
    largest = []
    forward = system.forward

    def watched(params, batch, capture=()):
        largest.append(batch["image"].shape[0])
        return forward(params, batch, capture)

    monkeypatch.setattr(system, "forward", watched)
    for at_once in (1, 5, 100):
        monkeypatch.setattr(classify, "MEASURED_AT_ONCE", at_once)
        got = jax.jit(system.measure)(params, batch)
        assert got.keys() == want.keys()
        _assert_same(got, want, rtol=1e-5, atol=1e-6)
        assert largest[-1] <= at_once
    assert want["coding_rate"].shape == (2,)


@pytest.mark.parametrize(
    "optimizer, ema", [("adamw", 0.9), ("schedule_free_adamw", 0.0), ("schedule_free_sgd", 0.0)]
)
def test_starting_from_parameters_takes_them_everywhere_with_a_fresh_optimizer(optimizer, ema):
    """The donor is unrolled and its head is not wanted; the taker is scanned."""
    donor, batch = _system(), _batch()
    given = _fresh(donor, 5).params
    system = _system(
        model={"scan_layers": True}, optimizer={"name": optimizer}, train={"ema_decay": ema}
    )
    fresh = _fresh(system)
    state = system.start_from(fresh, system.adapt(given, ("head",)))
    taken = unstack_layers(state.params)
    for name in given.keys() - {"head"}:
        _assert_identical(taken[name], given[name])
    _assert_identical(state.params["head"], fresh.params["head"])
    assert not np.array_equal(taken["head"]["kernel"], given["head"]["kernel"])
    _assert_identical(state.opt_state, system.tx.init(state.params))
    _assert_same(system.eval_params(state), state.params, rtol=1e-6, atol=1e-7)
    if ema:
        _assert_identical(state.ema, state.params)
    new, _ = jax.jit(system.step)(state, batch, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params, state.params)
    assert max(jax.tree.leaves(moved)) < 0.5  # it goes on from there, not from a stale copy


def test_parameters_of_another_network_are_refused_leaf_by_leaf():
    params = _fresh(_system(model={"width": 24})).params
    with pytest.raises(ConfigError, match=r"head/kernel: \(24, 7\) .* \(16, 7\) wanted"):
        _system().adapt(params)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": {"patch": 3}}, "image_size=8 does not divide into patches of 3x3"),
        ({"model": {"num_classes": 3}}, "config.model.num_classes=3 is smaller than"),
        ({"model": {"widht": 3}}, "no setting 'widht'; did you mean 'width'"),
        ({"optimizer": {"name": "adamv"}}, "config.optimizer.name='adamv'; did you mean"),
        ({"optimizer": {"b1": 0.9}}, "sgd has no such hyperparameter"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_compiled(settings, message):
    with pytest.raises(ConfigError, match=message):
        _system(**settings)


def test_a_model_without_a_name_lists_the_models():
    with pytest.raises(ConfigError, match="config.model.name is not set; write one of crate"):
        Classify(resolve({"train": {"steps": 1}}), total_steps=1, steps_per_epoch=1)


ONE = MeshConfig(data=1)
LAYOUTS = {
    "dp": MeshConfig("dp"),
    "fsdp": MeshConfig("fsdp"),
    "fsdp_tp": MeshConfig("fsdp_tp"),
    "hybrid": MeshConfig("hybrid", slice=2),
    "data=2,fsdp=2,tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def _one_step(system, mesh_config, batch):
    devices = jax.devices()[:1] if mesh_config is ONE else None
    mesh = create_mesh(mesh_config, devices)
    key = jax.device_put(jax.random.key(3), place.replicated(mesh))
    with jax.set_mesh(mesh):
        placed = place.place_batch(mesh, {k: np.asarray(x) for k, x in batch.items()})
        like = loop.abstract_state(system, mesh, placed)
        step = loop.compile_step(system, mesh, like, placed, key)
        state = loop.fresh_state(system, like, placed, key)
        split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
        fresh = jax.device_get(state.params)
        state, metrics = step(state, placed, key)
    return fresh, jax.device_get(state.params), float(metrics["loss"]), split


@pytest.fixture(scope="module", params=models.MODELS)
def alone(request):
    """A system and its step on one device."""
    system = _system(
        model={"name": request.param, "width": 32, "heads": 4, "scan_layers": True},
        data={"num_classes": 8}, optimizer={"name": "momentum", "clip_norm": 1.0},
        train={"batch_size": 16},
    )  # fmt: skip
    batch = _batch(size=16)
    return system, batch, _one_step(system, ONE, batch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_devices_takes_the_step_of_one(alone, layout):
    system, batch, (fresh, params, loss, _) = alone
    got_fresh, got_params, got_loss, split = _one_step(system, LAYOUTS[layout], batch)
    _assert_same(got_fresh, fresh, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    for got, want, before in zip(*map(jax.tree.leaves, (got_params, params, fresh)), strict=True):
        np.testing.assert_allclose(got - before, want - before, rtol=0, atol=1e-5)
        assert np.any(want != before)
    assert (split > 0) == (layout != "dp")
