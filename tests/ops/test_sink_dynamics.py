"""The simplified model against its definition in numpy, jax.grad and plain simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import sink_dynamics as sinks

R, V, W = 4, 6, 5.0


@pytest.fixture
def model():
    """``alpha, beta, p, pi, B``: dense rows, one with a single successor, one with a gap."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(V), R)
    p[1] = np.eye(V)[2]
    p[2, :2] = 0
    p[2] /= p[2].sum()
    pi = rng.dirichlet(np.ones(R))
    alpha = np.array([0.7, 0.3, 1.2, -0.9])
    return alpha, rng.standard_normal(V), p, pi, rng.standard_normal(V)


def _divergence(p, pi, z):
    """Cross-entropy less entropy, entry by entry."""
    total = 0.0
    for row, weight, shift in zip(p, pi, z, strict=True):
        q = row * np.exp(shift)
        q /= q.sum()
        total += weight * sum(a * np.log(a / b) for a, b in zip(row, q, strict=True) if a > 0)
    return total


def _plain(alpha, beta, p, pi, B):
    e = np.exp(alpha)[:, None]
    return _divergence(p, pi, (e * beta + B) / (e + W))


def _plain_relu(alpha, beta, p, pi):
    return _divergence(p, pi, np.maximum(alpha, 0)[:, None] * beta / W)


def _slopes(function, x, step=1e-5):
    """Central differences."""
    basis = step * np.eye(len(x))
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in basis])


def test_the_loss_is_its_definition(model, x64):
    ours = sinks.loss(*map(jnp.asarray, model), W)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, _plain(*model), rtol=1e-12)
    alpha, beta, p, pi, _ = model
    ours = sinks.relu_loss(*map(jnp.asarray, (alpha, beta, p, pi)), W)
    np.testing.assert_allclose(ours, _plain_relu(alpha, beta, p, pi), rtol=1e-12)


def test_the_gradients_are_those_of_the_losses(model, x64):
    alpha, beta, p, pi, B = model
    for ours, function, rest in (
        (sinks.gradient(*map(jnp.asarray, model), W), _plain, (p, pi, B)),
        (sinks.relu_gradient(alpha, beta, p, pi, W), _plain_relu, (p, pi)),
    ):
        by_alpha = _slopes(lambda a, f=function, r=rest: f(a, beta, *r), alpha)
        by_beta = _slopes(lambda b, f=function, r=rest: f(alpha, b, *r), beta)
        np.testing.assert_allclose(ours[0], by_alpha, atol=1e-9)
        np.testing.assert_allclose(ours[1], by_beta, atol=1e-9)
        assert ours[0][1] == 0  # one successor
    by_jax = jax.grad(sinks.loss, argnums=(0, 1))(*map(jnp.asarray, model), W)
    for a, b in zip(sinks.gradient(*map(jnp.asarray, model), W), by_jax, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-16)


def test_single_precision_stays_single(model):
    parts = [jnp.asarray(x, jnp.float32) for x in model]
    assert sinks.loss(*parts, W).dtype == jnp.float32
    np.testing.assert_allclose(sinks.loss(*parts, W), _plain(*model), rtol=1e-5)


def test_a_tiny_tilt_keeps_its_digits(model, x64):
    _, _, p, _, x = model
    p, x = p[0], 1e-9 * x
    mean = p @ x
    kl, change = sinks.tilt(jnp.asarray(p), jnp.asarray(x))
    np.testing.assert_allclose(kl, p @ (x - mean) ** 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(change, p * (x - mean), rtol=1e-6)


def test_attention_saturates_without_overflow(x64):
    alpha = jnp.array([-800.0, 0.0, 800.0])
    np.testing.assert_allclose(sinks.sink_attention(alpha, W), [0, 1 / (1 + W), 1], atol=1e-300)
    beta, B = jnp.arange(3.0), jnp.array([1.0, 0.0, -1.0])
    z = sinks.attention_output(alpha, beta, B, W)
    np.testing.assert_allclose(z, [B / W, (beta + B) / (1 + W), beta], atol=1e-15)


def test_moments(model, x64):
    _, _, p, _, x = model
    centred = x - (p @ x)[:, None]
    np.testing.assert_allclose(sinks.variance(p, x), (p * centred**2).sum(1), atol=1e-15)
    np.testing.assert_allclose(sinks.third_moment(p, x), (p * centred**3).sum(1), atol=1e-15)
    assert sinks.variance(jnp.asarray(p), jnp.asarray(x))[1] == 0


def test_growth_solves_the_flow_at_late_times(model, x64):
    """``dalpha/dt`` of the limit is the force there, ever more nearly; its next term sooner."""
    _, _, p, pi, B = (jnp.asarray(x) for x in model)
    rows = np.array([0, 2, 3])

    def errors(t):
        out = []
        for form in (
            lambda t: sinks.growth(t, p, pi, B),
            lambda t: sinks.growth_next(t, p, pi, B, W),
        ):
            alpha, slope = jax.jvp(form, (t,), (jnp.ones_like(t),))
            force = -sinks.gradient(alpha, jnp.zeros(V), p, pi, B, W)[0]
            out.append(float(np.abs(force / slope - 1)[rows].max()))
        return out

    first, late = errors(jnp.asarray(1e10)), errors(jnp.asarray(1e14))
    np.testing.assert_allclose(late[0] / first[0], 1e-2, rtol=0.1)  # 1/sqrt(t)
    assert first[1] < first[0] / 100 and late[1] < 1e-8
    assert sinks.growth(1e10, p, pi, B)[1] == -np.inf


def test_the_drained_value_has_no_gradient_and_keeps_the_mean(model, x64):
    _, beta0, p, pi, B = (jnp.asarray(x) for x in model)
    alpha = jnp.asarray(1.3)
    beta = sinks.drained_value(alpha, beta0, B)
    np.testing.assert_allclose(beta.mean(), beta0.mean(), rtol=1e-13)
    np.testing.assert_allclose(
        sinks.visible_size(beta), np.exp(-1.3) * np.linalg.norm(B - B.mean()), rtol=1e-13
    )
    for g in sinks.gradient(jnp.full(R, alpha), beta, p, pi, B, W):
        np.testing.assert_allclose(g, 0, atol=1e-15)


def test_classes_of_tokens_drain_apart(x64):
    """Rows {0, 1} and {2, 3}: descent meets the form with two groups and no other."""
    p = jnp.array([[0.4, 0.6, 0, 0], [0, 0, 0.7, 0.3]])
    pi, B = jnp.array([0.5, 0.5]), jnp.array([1.0, -1.0, 0.5, 2.0])
    beta0, alpha = jnp.array([0.3, 0.1, -1.0, 0.8]), jnp.asarray(2.0)

    def descend(_, beta):
        return beta - 3.0 * sinks.gradient(jnp.full(2, alpha), beta, p, pi, B, 1.0)[1]

    end = jax.lax.fori_loop(0, 500, descend, beta0)
    limit = sinks.drained_value(alpha, beta0, B, jnp.array([0, 0, 1, 1]))
    np.testing.assert_allclose(end, limit, atol=1e-12)
    assert np.abs(sinks.drained_value(alpha, beta0, B) - end).max() > 0.05


def test_the_stationary_family_has_no_loss(model, x64):
    _, _, p, pi, B = (jnp.asarray(x) for x in model)
    for alpha, shift in ((-1.0, 0.0), (0.5, 2.0), (3.0, -1.0)):
        point = jnp.full(R, alpha), sinks.stationary_value(alpha, shift, B)
        np.testing.assert_allclose(sinks.loss(*point, p, pi, B, W), 0, atol=1e-15)
        for g in sinks.gradient(*point, p, pi, B, W):
            np.testing.assert_allclose(g, 0, atol=1e-15)


def test_relu_pulls_down_only_and_keeps_its_balance(model, x64):
    alpha, beta, p, pi, _ = (jnp.asarray(x) for x in model)
    by_alpha, by_beta = sinks.relu_gradient(alpha, beta, p, pi, W)
    assert (np.asarray(by_alpha) >= 0).all() and (by_alpha > 0).any()
    assert (np.asarray(by_alpha)[np.asarray(alpha) <= 0] == 0).all()
    _, slope = jax.jvp(sinks.relu_balance, (alpha, beta), (by_alpha, by_beta))
    np.testing.assert_allclose(slope, 0, atol=1e-15)
    open_ = jnp.full(R, 1e-7)
    rate = sinks.relu_gradient(open_, beta, p, pi, W)[0] / open_
    np.testing.assert_allclose(rate, sinks.relu_rate(p, pi, beta, W), rtol=1e-5, atol=1e-18)


@pytest.mark.parametrize("c", [-0.3, 0.0, 0.6])
def test_the_peak_flow_descends_its_loss(c, x64):
    m, y = jnp.asarray(1.7), jnp.asarray(0.9)
    by_m, by_y = jax.grad(sinks.peak_loss, argnums=(0, 1))(m, y, c)
    for ours, theirs in zip(sinks.peak_flow(m, y, c), (-by_m, -by_y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    late = sinks.peak_flow(m, y, c, 2.0)
    np.testing.assert_allclose(late[1], -np.exp(2.0) * by_y, rtol=1e-13)
    u = np.array([c, np.sqrt(1 - c**2)]) + 1.7 * np.array([1.0, 0.0])
    np.testing.assert_allclose(sinks.alignment(m, c), u[0] / np.linalg.norm(u), rtol=1e-13)


def test_the_sgd_law_solves_the_reduced_law(x64):
    for t, t0 in ((7.0, 1.0), (1e4, 50.0)):
        t = jnp.asarray(t)
        m, slope = jax.value_and_grad(lambda t, s=t0: sinks.sgd_peak(t, 1.5, 0.2, s))(t)
        np.testing.assert_allclose(slope, sinks.peak_gradient(m, t, 0.2), rtol=1e-12)
        np.testing.assert_allclose(sinks.sgd_peak(t0, 1.5, 0.2, t0), 1.5, rtol=1e-14)


def test_adams_rate_has_two_ends(x64):
    lr, eps = 3e-4, 1e-8
    np.testing.assert_allclose(sinks.adam_rate(jnp.array([1.0, -1.0]), lr, eps), [lr, -lr], 1e-7)
    np.testing.assert_allclose(sinks.adam_rate(jnp.asarray(1e-16), lr, eps), lr * 1e-8, 1e-7)
