"""The representation task: its step by hand, on any mesh, its classes, its guard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from crate_jax import models
from crate_jax.config import ConfigError, MeshConfig, resolve
from crate_jax.layers.batch_norm import BatchNorm
from crate_jax.objectives.rate_reduction import rate_reduction_loss
from crate_jax.ops.sphere import unit
from crate_jax.sharding import place, rules
from crate_jax.sharding.mesh import create_mesh
from crate_jax.systems.mcr2 import MCR2

B, K, RATE = 16, 3, 0.125


class Tiny(nn.Module):
    """A normalised layer between two maps."""

    hidden: int = 16
    feature_dim: int = 6
    param_dtype: str = "float64"

    @nn.compact
    def __call__(self, image, *, train=False, capture=()):
        x = image.reshape(image.shape[0], -1)
        x = nn.Dense(self.hidden, name="hidden", param_dtype=self.param_dtype)(x)
        x = BatchNorm(name="norm", param_dtype=self.param_dtype)(x, train=train)
        x = nn.Dense(self.feature_dim, name="features", param_dtype=self.param_dtype)(nn.relu(x))
        return unit(x)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, x64):
    monkeypatch.setitem(models.NETS, "tiny", (Tiny, {}))


def _system(**sections):
    raw = {
        "system": "mcr2",
        "model": {"name": "tiny"},
        "data": {"num_classes": K, "image_size": 2, "channels": 3} | sections.pop("data", {}),
        "optimizer": {"name": "sgd", "learning_rate": RATE, "weight_decay": 0.1,
                      "decay_mask": "all"},
        "schedule": {"name": "constant"},
        "train": {"steps": 10, "batch_size": B} | sections.pop("train", {}),
        **sections,
    }  # fmt: skip
    return MCR2(resolve(raw), total_steps=10, steps_per_epoch=5)


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(K, size=B)).astype("int32")  # no device sees them all
    return {"image": rng.normal(size=(B, 2, 2, 3)), "label": labels}


@pytest.fixture(scope="module")
def stepped():
    """A state, a batch, and what a step makes of them on one device."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETS, "tiny", (Tiny, {}))
        system = _system(train={"ema_decay": 0.9})
        batch = _batch()
        state = jax.jit(system.init)(jax.random.key(0), batch)
        return system, state, batch, jax.jit(system.step)(state, batch, jax.random.key(1))


def _close(a, b, rtol=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13), a, b)


def test_a_step_is_the_one_written_by_hand(stepped):
    system, state, batch, (new, metrics) = stepped

    def loss(params):
        Z = system.module.apply(
            {**state.params, "params": params}, batch["image"], train=True, mutable=["batch_stats"]
        )[0]
        a = 6 / (B * 0.5)
        value = -0.5 * jnp.linalg.slogdet(jnp.eye(6) + a * Z.T @ Z)[1]
        for k in range(K):
            Z_k = Z[batch["label"] == k]
            n = len(Z_k)
            gram = jnp.eye(6) + 6 / (n * 0.5) * Z_k.T @ Z_k
            value += n / (2 * B) * jnp.linalg.slogdet(gram)[1]
        return value

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params["params"])
    want = jax.tree.map(lambda p, g: p - RATE * (g + 0.1 * p), state.params["params"], grads)
    _close(new.params["params"], want)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-12)
    np.testing.assert_allclose(metrics["rate_reduction"], -value, rtol=1e-12)
    x = np.asarray(batch["image"]).reshape(B, -1)
    hidden = jax.tree.map(np.asarray, state.params["params"]["hidden"])
    h = x @ hidden["kernel"] + hidden["bias"]
    stats = new.params["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * h.mean(0), rtol=1e-10)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * h.var(0, ddof=1), rtol=1e-10)
    averaged = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.params, new.params)
    _close(system.eval_params(new), averaged)  # the statistics are averaged with the rest


@pytest.mark.parametrize("preset", [pytest.param("dp", marks=pytest.mark.slow), "fsdp"])
def test_any_mesh_takes_the_step_of_one_device(stepped, preset):
    system, state, batch, (want, metrics) = stepped
    mesh = create_mesh(MeshConfig(preset))
    shardings = rules.shardings(mesh, state)
    kernel = shardings.params["params"]["hidden"]["kernel"].spec
    assert ("fsdp" in kernel) == (preset == "fsdp")
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, shardings)
        rows = place.place_batch(mesh, batch)
        step = jax.jit(system.step, out_shardings=(shardings, place.replicated(mesh)))
        new, found = step(placed, rows, jax.random.key(1))
    _close(jax.device_get(new.params), jax.device_get(want.params))
    _close(jax.device_get(found), jax.device_get(metrics))


def test_what_is_not_finite_moves_neither_parameters_nor_statistics(stepped):
    system, state, batch, _ = stepped
    bad = {**batch, "image": batch["image"].copy()}
    bad["image"][3] = np.nan
    new, _ = jax.jit(system.step)(state, bad, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    assert (int(new.step), int(new.bad_total)) == (1, 1)


def _loss(system, state, batch):
    return jax.jit(system.loss)(state.params["params"], state.params, batch)[0]


def test_every_image_is_a_class_of_its_views(stepped):
    _, state, batch, _ = stepped
    system = _system(mcr2={"classes": "images", "gamma1": 20.0, "gamma2": 0.05}, data={"views": 4})
    labels, count = system.memberships(batch)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(4), 4))
    assert count == 4

    @jax.jit
    def by_hand(variables):
        Z = system.module.apply(variables, batch["image"], train=True, mutable=["batch_stats"])[0]
        return rate_reduction_loss(Z, labels, 4, eps_sq=0.5, gamma1=20.0, gamma2=0.05)[0]

    np.testing.assert_allclose(_loss(system, state, batch), by_hand(state.params), rtol=1e-12)


def test_memberships_may_be_soft(stepped):
    _, state, batch, (_, metrics) = stepped
    soft = 0.7 * np.eye(K)[batch["label"]] + 0.1
    smoothed = _loss(_system(mcr2={"smoothing": 0.3}), state, batch)
    given = _loss(_system(), state, {**batch, "membership": soft})
    np.testing.assert_allclose(smoothed, given, rtol=1e-12)
    assert abs(smoothed - metrics["loss"]) > 1e-2


def test_lmb_is_half_of_lambda(stepped):
    _, state, batch, (_, metrics) = stepped
    a, b = (
        _loss(_system(mcr2=settings), state, batch) for settings in ({"lmbda": 0.2}, {"lmb": 0.1})
    )
    assert a == b
    np.testing.assert_allclose(
        a - metrics["loss"], 0.1 * B, rtol=1e-10
    )  # B features of unit length


def test_evaluation_sums_over_what_is_not_padding(stepped):
    system, state, batch, _ = stepped
    mask = np.r_[np.ones(11), np.zeros(5)]
    sums = jax.jit(system.evaluate)(state.params, {**batch, "mask": mask})
    forward = jax.jit(system.forward)
    Z = forward(state.params, batch)[:11]
    _, want = jax.jit(lambda Z: rate_reduction_loss(Z, batch["label"][:11], K, eps_sq=0.5))(Z)
    assert sums["count"] == 11 and set(want) == set(system.evaluation_metrics)
    for name, value in want.items():
        np.testing.assert_allclose(sums[name] / 11, value, rtol=1e-10)


def test_a_fresh_state_starts_from_other_parameters_and_statistics(stepped):
    system, state, _, (other, _) = stepped
    saved = jax.tree.map(np.asarray, other.params)
    started = system.start_from(state, system.adapt(saved, skip=("params/features",)))
    _close(started.params["batch_stats"], saved["batch_stats"])
    _close(started.params["params"]["hidden"], saved["params"]["hidden"])
    _close(started.params["params"]["features"], state.params["params"]["features"])


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"model": {"name": "crate"}}, "config.model.name='crate'.*Valid: .*resnet"),
        ({"model": {"name": "sngan", "variant": "cifar"}}, "'sngan'.*Valid: mlp, resnet"),
        ({"mcr2": {"classes": "image"}}, "classes='image'; did you mean 'images'"),
        ({"mcr2": {"classes": "images"}}, "wants several views.*data.views=1"),
        ({"train": {"accumulate": 2}}, "set config.train.accumulate=1"),
    ],
)
def test_what_does_not_fit_is_said(sections, message):
    with pytest.raises(ConfigError, match=message):
        _system(**sections)
