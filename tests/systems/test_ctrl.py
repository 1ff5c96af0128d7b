"""The game: who moves, against what, and that neither devices nor interruptions change it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax import config as configs
from crate_jax import models, systems
from crate_jax.config import ConfigError
from crate_jax.layers.csc import COLLECTION
from crate_jax.objectives import closed_loop
from crate_jax.systems import ctrl as ctrl_module

K, BATCH, RATE = 3, 16, 1e-2


@pytest.fixture(autouse=True)
def float64(x64):
    """Everything here is to be exact."""


def _raw(encoder="csc", **ctrl):
    raw = configs.default()
    raw.system = "ctrl"
    raw.model = models.settings("dcgan", encoder=encoder, nz=4, param_dtype="float64")
    raw.model.widths = (4,)
    if encoder == "csc":
        raw.model.lmbda = (0.01,)  # 0.1 silences so small a net
    raw.data.update(image_size=8, channels=1, num_classes=K)
    raw.optimizer.update(name="sgd", learning_rate=RATE)
    raw.schedule.name = "linear"
    raw.train.update(batch_size=BATCH, steps=10, best_metric="eval/psnr")
    raw.ctrl.update(**ctrl)
    return raw


def _system(encoder="csc", **ctrl):
    config = configs.resolve(_raw(encoder, **ctrl))
    return systems.create(config, total_steps=10, steps_per_epoch=5)


def _batch(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (BATCH, 8, 8, 1))
    return {"image": jnp.asarray(image), "label": jnp.asarray(np.arange(BATCH) % K)}


@pytest.fixture(scope="module")
def game():
    """A system of two encoder steps, its fresh state and its compiled step."""
    with jax.enable_x64(True):
        system = _system(objective="alternating", encoder_steps=2)
        state = jax.jit(system.init)(jax.random.key(0), _batch())
    return system, state, jax.jit(system.step)


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_a_fresh_state_holds_all_collections_and_a_state_a_player(game):
    system, state, _ = game
    assert set(state.params) == {"params", "batch_stats", COLLECTION}
    assert set(state.opt_state) == {"f", "g"}
    steps = [float(x["step_size"]) for x in state.params[COLLECTION]["f"].values()]
    assert all(step != 0.1 for step in steps)  # of the first power iteration, not the default


def test_each_loss_moves_its_own_player_alone(game):
    system, state, _ = game
    batch = (_batch()["image"], _batch()["label"])
    for player, loss in (("f", system.encoder_loss), ("g", system.decoder_loss)):
        moved, opt_state, *_ = jax.jit(
            lambda v, o, p=player, loss=loss: system._update(p, loss, v, o, *batch)
        )(state.params, state.opt_state)
        other = {"f": "g", "g": "f"}[player]
        for tree, before in ((moved["params"], state.params["params"]),
                             (opt_state, state.opt_state)):  # fmt: skip
            np.testing.assert_array_equal(_flat(tree[other]), _flat(before[other]))
            assert np.any(_flat(tree[player]) != _flat(before[player]))


@pytest.mark.slow
def test_the_encoder_does_not_see_through_the_decoder_and_the_decoder_does(game):
    system, state, _ = game
    image, label = _batch()["image"], _batch()["label"]
    v = state.params

    def passes(variables, method, x):
        out, moved = system.module.apply(
            variables, x, train=True, method=method, mutable=["batch_stats"]
        )
        return out, {**variables, **moved}

    z, _ = passes(v, "encode", image)
    fixed, _ = passes(v, "decode", z)

    def by_hand(f):
        variables = {**v, "params": {**v["params"], "f": f}}
        Z, variables = passes(variables, "encode", image)
        Zhat, _ = passes(variables, "encode", fixed)
        return -closed_loop.multi(Z, Zhat, label, K, eps_sq=0.5)[0]

    wanted = jax.jit(jax.grad(by_hand))(v["params"]["f"])
    found = jax.jit(jax.grad(lambda f: system.encoder_loss(f, v, image, label)[0]))(
        v["params"]["f"]
    )
    np.testing.assert_allclose(_flat(found), _flat(wanted), rtol=1e-9, atol=1e-10)

    def full(g):
        variables = {**v, "params": {**v["params"], "g": g}}
        Z, variables = passes(variables, "encode", image)
        Xhat, variables = passes(variables, "decode", Z)
        return closed_loop.multi(Z, passes(variables, "encode", Xhat)[0], label, K, eps_sq=0.5)[0]

    wanted = jax.jit(jax.grad(full))(v["params"]["g"])
    found = jax.jit(jax.grad(lambda g: system.decoder_loss(g, v, image, label)[0]))(
        v["params"]["g"]
    )
    assert np.linalg.norm(_flat(wanted)) > 1e-3
    np.testing.assert_allclose(_flat(found), _flat(wanted), rtol=1e-9, atol=1e-10)


def test_a_transcription_is_normalised_by_its_images_where_wished(game):
    _, state, _ = game
    image, v = _batch()["image"], state.params
    Xhat = 0.3 * image + 0.4  # what a BatchNorm of its own would take back

    def both(system):
        Z, after = system._pass(v, "encode", image)
        Zhat, last = system._encode_again(v, after, Xhat)
        return Z, Zhat, after["batch_stats"]["f"], last["batch_stats"]["f"]

    _, found, by_images, left = jax.jit(lambda: both(_system(normalise_by="image")))()
    np.testing.assert_array_equal(_flat(left), _flat(by_images))
    _, sown = game[0].module.apply(v, image, method="encode", mutable=["intermediates"])
    codes = np.asarray(sown["intermediates"]["f"]["codes_0"][0])
    axes = (0, 1, 2)
    seen = {"mean": codes.mean(axes), "var": codes.var(axes, ddof=1)}
    stats = {**v["batch_stats"], "f": {"norm_0": seen}}
    wanted = game[0].module.apply({**v, "batch_stats": stats}, Xhat, method="encode")
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10)
    _, own, by_images, left = jax.jit(lambda: both(_system(normalise_by="own")))()
    assert np.any(_flat(left) != _flat(by_images))
    assert np.abs(own - wanted).max() > 1e-2


@pytest.mark.slow
def test_a_step_is_its_moves_one_after_another(game):
    system, state, step = game
    new, metrics = step(state, _batch(), jax.random.key(1))
    image, label = _batch()["image"], _batch()["label"]
    v = state.params
    f_state, g_state = (state.opt_state[player] for player in "fg")
    for alone in (True, False):
        grads, (_, moved) = jax.jit(
            jax.grad(system.encoder_loss, has_aux=True), static_argnums=4
        )(v["params"]["f"], v, image, label, alone)  # fmt: skip
        updates, f_state = system.tx["f"].update(grads, f_state, v["params"]["f"])
        f = optax.apply_updates(v["params"]["f"], updates)
        v = {**v, **moved, "params": system.module.project({**v["params"], "f": f})}
        v = system.module.renew(v)
    grads, (_, moved) = jax.jit(jax.grad(system.decoder_loss, has_aux=True))(
        v["params"]["g"], v, image, label
    )
    updates, g_state = system.tx["g"].update(grads, g_state, v["params"]["g"])
    g = optax.apply_updates(v["params"]["g"], updates)
    np.testing.assert_allclose(_flat(new.params["params"]["f"]), _flat(v["params"]["f"]), rtol=1e-8)
    np.testing.assert_allclose(_flat(new.params["params"]["g"]), _flat(g), rtol=1e-8)
    np.testing.assert_allclose(
        _flat(new.params["batch_stats"]), _flat({**v, **moved}["batch_stats"]), rtol=1e-8
    )
    norms = jnp.sum(new.params["params"]["f"]["stage_0"]["atoms"] ** 2, axis=(0, 1, 2))
    np.testing.assert_allclose(norms, 1.0, rtol=1e-12)
    assert {"loss", "encoder_loss", "distance", "reduction"} <= set(metrics)


def test_the_encoders_schedule_counts_iterations(game):
    system, _, _ = game
    sizes = {}
    for player in "fg":
        opt_state, sizes[player] = system.tx[player].init({"a": jnp.zeros(())}), []
        for _ in range(4):
            grads = {"a": jnp.ones(())}
            updates, opt_state = system.tx[player].update(grads, opt_state, {"a": jnp.zeros(())})
            sizes[player].append(-float(updates["a"]) / RATE)
    np.testing.assert_allclose(sizes["f"], [1.0, 1.0, 0.9, 0.9])
    np.testing.assert_allclose(sizes["g"], [1.0, 0.9, 0.8, 0.7])


@pytest.mark.slow
def test_what_is_not_finite_leaves_both_players(game):
    _, state, step = game
    batch = _batch()
    batch["image"] = batch["image"].at[0, 0, 0, 0].set(jnp.nan)
    new, _ = step(state, batch, jax.random.key(1))
    np.testing.assert_array_equal(_flat(new.params), _flat(state.params))
    assert (int(new.step), int(new.bad_steps)) == (1, 1)


@pytest.mark.slow
def test_a_batch_on_eight_devices_is_one_batch(game):
    system, state, step = game
    alone, alone_metrics = step(state, _batch(), jax.random.key(1))
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    spread, metrics = jax.jit(system.step)(
        jax.device_put(state, whole), jax.device_put(_batch(), split), jax.random.key(1)
    )
    assert float(metrics["loss"]) == pytest.approx(float(alone_metrics["loss"]), rel=1e-10)
    np.testing.assert_allclose(
        _flat(spread.params["params"]), _flat(alone.params["params"]), rtol=1e-8, atol=1e-11
    )


def test_evaluation_adds_up_what_is_not_masked(game):
    system, state, _ = game
    batch = _batch() | {"mask": jnp.asarray([1.0] * 10 + [0.0] * 6)}
    sums = jax.jit(system.evaluate)(state.params, batch)
    assert set(sums) == {*system.evaluation_metrics, "count"} and float(sums["count"]) == 10
    z, x = system.module.apply(state.params, batch["image"][:10])
    error = np.mean((np.asarray(batch["image"][:10] - x) / 2) ** 2, axis=(1, 2, 3))
    assert float(sums["psnr"]) == pytest.approx(np.sum(-10 * np.log10(error)), rel=1e-4)
    np.testing.assert_allclose(system.features(state.params, batch)[:10], z, atol=1e-5)


def test_transforms_draw_each_of_five_and_dither_adds_up_to_its_height():
    config = configs.resolve(_raw(transform="tmnist", dither=0.0)).ctrl
    image = jnp.broadcast_to(_batch()["image"][:1], (200, 8, 8, 1))
    made = np.asarray(ctrl_module.transformed(jax.random.key(0), image, config))
    assert len(np.unique(made.reshape(200, -1).round(4), axis=0)) == 5
    config = configs.resolve(_raw(dither=0.25)).ctrl
    noise = np.asarray(ctrl_module.transformed(jax.random.key(0), image, config) - image)
    assert 0 <= noise.min() and 0.2 < noise.max() <= 0.25


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"ctrl.objective": "multy"}, "config.ctrl.objective='multy'; did you mean 'multi'"),
        (
            {"ctrl.normalise_by": "images"},
            "config.ctrl.normalise_by='images'; did",
        ),
        ({"ctrl.objective": "alternating"}, "needs config.ctrl.encoder_steps of 2 or more"),
        ({"data.mean": (0.1,)}, "set config.data.mean="),
        ({"train.accumulate": 2}, "set config.train.accumulate=1"),
        ({"train.ema_decay": 0.9}, "set config.train.ema_decay=0"),
        ({"model.name": "resnet"}, "is no game's"),
        ({"model.widths": (4, 4, 4, 4)}, "no place left after 3 stages"),
        ({"ctrl.eps_sq": 0.0}, "config.ctrl.eps_sq must be above 0"),
        ({"optimizer.name": "schedule_free_sgd"}, "take adam"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_a_compile(change, sentence):
    raw = _raw()
    for path, value in change.items():
        section, name = path.split(".")
        raw[section][name] = value
    with pytest.raises(ConfigError) as error:
        systems.create(configs.resolve(raw), total_steps=10, steps_per_epoch=5)
    assert sentence in str(error.value)
