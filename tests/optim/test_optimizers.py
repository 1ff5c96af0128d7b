"""Every optimizer of the table: layouts, dtypes, progress, and published formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax import optim
from crate_jax.config import ConfigError, OptimizerConfig
from crate_jax.layers.stack import stack_layers, unstack_layers

WIDTH, HEADS, SIZE, LAYERS = 6, 2, 3, 3


def _params(rng, dtype):
    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def layer():
        return {
            "attention": {
                "subspaces": {"kernel": leaf(WIDTH, HEADS, SIZE)},
                "out": {"kernel": leaf(HEADS, SIZE, WIDTH), "bias": leaf(WIDTH)},
            },
            "norm_attention": {"scale": leaf(WIDTH), "bias": leaf(WIDTH)},
            "ista": {"D": leaf(WIDTH, 4 * WIDTH)},
        }

    return {
        "embedding": {"cls_token": leaf(1, 1, WIDTH), "pos_embedding": leaf(1, 5, WIDTH)},
        "head": {"kernel": leaf(WIDTH, 4), "bias": leaf(4)},
        **{f"blocks_{l}": layer() for l in range(LAYERS)},
    }


def _loss(params, target):
    """A quartic with a Hessian that is no multiple of the identity."""
    unrolled, goal = unstack_layers(params), unstack_layers(target)
    terms = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2 + 0.1 * (p - t) ** 4), unrolled, goal)
    return sum(jax.tree.leaves(terms))


def _run(config, params, target, steps):
    tx = optim.create(config, lambda step: 1.0, params)

    @jax.jit
    def step(params, state):
        grad_fn = jax.grad(lambda p: _loss(p, target))
        loss, grads = jax.value_and_grad(lambda p: _loss(p, target))(params)
        updates, state = tx.update(grads, state, params, value=loss, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def _config(name, **changes):
    settings = {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 5.0}
    if name == "adafactor":
        settings["min_dim_size_to_factor"] = 4
    return OptimizerConfig(name=name, **settings | changes)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_stacked_layers_get_the_update_of_unrolled_ones(name, x64):
    rng = np.random.default_rng(0)
    params, target = _params(rng, "float64"), _params(rng, "float64")
    unrolled, _ = _run(_config(name), params, target, 4)
    stacked, _ = _run(_config(name), stack_layers(params), stack_layers(target), 4)
    again = unstack_layers(stacked)
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), unrolled, params)
    assert max(jax.tree.leaves(moved)) > 1e-9
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), unrolled, again
    )


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_it_lowers_the_loss_and_keeps_dtypes(name):
    rng = np.random.default_rng(1)
    params, target = _params(rng, "float32"), _params(rng, "float32")
    config = _config(
        name, weight_decay=None, learning_rate=1.0 if name in ("prodigy", "lars") else 1e-2
    )
    new, state = _run(config, stack_layers(params), stack_layers(target), 30)
    assert _loss(optim.eval_params(config, state, new), target) < _loss(params, target)
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    abstract = jax.eval_shape(lambda p: optim.create(config, lambda s: 1.0, p).init(p), new)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)


def _adam_direction(gs, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(gs, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def _momentum(gs, mu=0.9):
    m = 0.0
    for g in gs:
        m = mu * m + g
        yield m


def _nesterov(gs, mu=0.9):
    m = 0.0
    for g in gs:
        m = mu * m + g
        yield g + mu * m


def _lion(gs, b1=0.9, b2=0.99):
    m = 0.0
    for g in gs:
        yield np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g


def _signum(gs, mu=0.9):
    m = 0.0
    for g in gs:
        m = mu * m + (1 - mu) * g
        yield np.sign(m)


def _rmsprop(gs, decay=0.9, eps=1e-8):
    v = 0.0
    for g in gs:
        v = decay * v + (1 - decay) * g * g
        yield g / np.sqrt(v + eps)


def _adagrad(gs, eps=1e-7):
    v = 0.1
    for g in gs:
        v = v + g * g
        yield g / np.sqrt(v + eps)


FORMULAS = {
    "sgd": lambda gs: iter(gs),
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam_direction,
    "adamw": _adam_direction,
    "lion": _lion,
    "signsgd": lambda gs: (np.sign(g) for g in gs),
    "signum": _signum,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_published_formulas(name, decay, x64):
    """Three steps on given gradients; L2 goes into the gradient, decoupled decay beside it."""
    rng = np.random.default_rng(2)
    p, gs = rng.normal(size=(4, 3)), rng.normal(size=(3, 4, 3))
    config = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=decay)
    params = {"head": {"kernel": jnp.asarray(p)}}
    tx = optim.create(config, lambda step: 0.5, params)
    state = tx.init(params)
    l2 = optim.OPTIMIZERS[name].decay == "l2"
    seen, want = [], p
    for g in gs:
        updates, state = tx.update({"head": {"kernel": jnp.asarray(g)}}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(g + decay * want * l2)
        direction = list(FORMULAS[name](seen))[-1]
        want = want - 0.05 * (direction + decay * want * (not l2))
        np.testing.assert_allclose(params["head"]["kernel"], want, rtol=1e-9)


def test_lamb_and_lars_scale_by_the_trust_ratio(x64):
    rng = np.random.default_rng(3)
    p, g = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))

    def first_update(name):
        params = {"head": {"kernel": jnp.asarray(p)}}
        tx = optim.create(OptimizerConfig(name=name, learning_rate=0.1), lambda s: 1.0, params)
        grads = {"head": {"kernel": jnp.asarray(g)}}
        return tx.update(grads, tx.init(params), params)[0]["head"]["kernel"]

    direction = g / (np.abs(g) + 1e-6)
    ratio = np.linalg.norm(p) / np.linalg.norm(direction)
    np.testing.assert_allclose(first_update("lamb"), -0.1 * ratio * direction, rtol=1e-9)
    ratio = 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
    np.testing.assert_allclose(first_update("lars"), -0.1 * ratio * g, rtol=1e-9)


def test_muon_steps_along_a_nearly_orthogonal_matrix(x64):
    rng = np.random.default_rng(4)
    params = {
        "blocks_0": {
            "attention": {"subspaces": {"kernel": jnp.asarray(rng.normal(size=(6, 2, 6)))}}
        }
    }
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
    tx = optim.create(OptimizerConfig(name="muon", learning_rate=1.0), lambda s: 1.0, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    step = np.asarray(jax.tree.leaves(updates)[0]).reshape(6, 12)
    singular = np.linalg.svd(step / np.sqrt(2), compute_uv=False)
    assert singular.min() > 0.5 and singular.max() < 1.3
    U, _, Vt = np.linalg.svd(
        np.asarray(jax.tree.leaves(grads)[0]).reshape(6, 12), full_matrices=False
    )
    aligned = U.T @ (-step) @ Vt.T
    np.testing.assert_allclose(aligned, np.diag(np.diag(aligned)), atol=1e-6)


def test_sam_takes_its_gradient_at_the_worst_neighbour(x64):
    p = np.array([[1.0, -2.0]])
    params = {"head": {"kernel": jnp.asarray(p)}}
    curvature = np.array([[1.0, 10.0]])

    def grad_fn(params):
        return jax.tree.map(lambda x: curvature * x, params)

    config = OptimizerConfig(name="sam", learning_rate=0.1, rho=0.5)
    tx = optim.create(config, lambda s: 1.0, params)
    updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    g = curvature * p
    worst = p + 0.5 * g / np.linalg.norm(g)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * curvature * worst, rtol=1e-9)


@pytest.mark.parametrize("clip_norm", [0.2, 1e3])
def test_sam_clips_the_gradient_that_it_steps_along(x64, clip_norm):
    params = {"head": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}}

    def grad_fn(params):
        return jax.tree.map(lambda x: 2 * x, params)

    config = OptimizerConfig(name="sam", learning_rate=0.1, rho=0.5, clip_norm=clip_norm)
    tx = optim.create(config, lambda s: 1.0, params)
    updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    worst = 2 * (14**0.5 + 0.5)  # the gradient's norm, half a unit along it
    np.testing.assert_allclose(optax.tree.norm(updates), 0.1 * min(clip_norm, worst), rtol=1e-9)


def test_sophia_estimates_a_diagonal_hessian_exactly_in_the_mean(x64):
    """For f = sum c x^2 / 2, u * H u = c u^2: the mean over draws is c."""
    params = {"head": {"kernel": jnp.ones((500, 40))}}
    curvature = 3.0
    config = OptimizerConfig(name="sophia", learning_rate=1.0, b2=0.0)
    tx = optim.create(config, lambda s: 1.0, params)

    def grad_fn(params):
        return jax.tree.map(lambda x: curvature * x, params)

    _, state = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    hessian = [
        s.hessian
        for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "hessian"))
        if hasattr(s, "hessian")
    ]
    np.testing.assert_allclose(hessian[0]["head"]["kernel"].mean(), curvature, rtol=0.05)


def test_schedule_free_evaluates_the_running_mean(x64):
    """With b1 = 0.9 and constant gradients, x is the mean of the base iterates z."""
    params = {"head": {"kernel": jnp.zeros((1, 1))}}
    config = OptimizerConfig(name="schedule_free_sgd", learning_rate=0.1)
    tx = optim.create(config, lambda s: 1.0, params)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"head": {"kernel": jnp.ones((1, 1))}}, state, params)
        params = optax.apply_updates(params, updates)
    z = -0.1 * np.arange(1, 5)
    x = optim.eval_params(config, state, params)["head"]["kernel"]
    np.testing.assert_allclose(x, [[z.mean()]], rtol=1e-9)


@pytest.mark.parametrize("name", [n for n, o in optim.OPTIMIZERS.items() if o.decay == "decoupled"])
def test_decoupled_decay_follows_the_mask(name, x64):
    rng = np.random.default_rng(5)
    params, grads = _params(rng, "float64"), _params(rng, "float64")

    def update(decay):
        config = _config(name, weight_decay=decay, decay_mask="kernels")
        tx = optim.create(config, lambda s: 1.0, params)
        return tx.update(grads, tx.init(params), params, grad_fn=lambda p: p)[0]

    with_decay, without = update(0.5), update(0.0)
    kernel, bias = (with_decay["head"][k] - without["head"][k] for k in ("kernel", "bias"))
    assert (np.abs(kernel) > 0).all()
    np.testing.assert_array_equal(bias, 0)
    D = with_decay["blocks_0"]["ista"]["D"] - without["blocks_0"]["ista"]["D"]
    np.testing.assert_array_equal(D, 0)
    if name not in ("lamb", "prodigy", "schedule_free_sgd", "schedule_free_adamw"):
        np.testing.assert_allclose(kernel, -1e-2 * 0.5 * params["head"]["kernel"], rtol=1e-6)


def test_prodigy_survives_a_learning_rate_that_starts_at_zero():
    params = {"head": {"kernel": jnp.ones((2, 2))}}
    config = OptimizerConfig(name="prodigy", learning_rate=1.0)
    tx = optim.create(config, lambda step: step / 10, params)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update({"head": {"kernel": jnp.ones((2, 2))}}, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isfinite(params["head"]["kernel"]).all()
    assert (params["head"]["kernel"] < 1).all()


def test_the_clip_sees_all_gradients_together(x64):
    params = {"head": {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}}
    config = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=1.0)
    tx = optim.create(config, lambda s: 1.0, params)
    grads = {"head": {"kernel": jnp.full((1, 1), 3.0), "bias": jnp.full(1, 4.0)}}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], [[-0.6]])
    np.testing.assert_allclose(updates["head"]["bias"], [-0.8])


def test_a_bfloat16_first_moment():
    params = {"head": {"kernel": jnp.zeros((2, 2))}}
    config = OptimizerConfig(name="adamw", mu_dtype="bfloat16")
    state = optim.create(config, lambda s: 1.0, params).init(params)
    dtypes = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


@pytest.mark.parametrize(
    "config, message",
    [
        (OptimizerConfig(name="adamm"), "did you mean 'adam"),
        (OptimizerConfig(name="sgd", b1=0.9), "b1: sgd has no such"),
        (OptimizerConfig(name="lion", eps=1e-8), "It takes: b1, b2, mu_dtype"),
        (OptimizerConfig(decay_mask="kernel"), "did you mean 'kernels'"),
    ],
)
def test_bad_settings_get_a_sentence(config, message):
    with pytest.raises(ConfigError, match=message):
        optim.create(config, lambda s: 1.0, {"head": {"kernel": jnp.zeros((1, 1))}})
