"""The residual peak: its heuristic flow, and what SGD and Adam make of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crate_jax.ops import sink_dynamics as sinks
from crate_jax.studies.claims import Claim
from crate_jax.studies.theory.flow import integrate

LOG_TIME = 1e4
"""Logarithm of the time at which the flow has to have met its reduced law."""

SIZES = (1.0, 2.0, 4.0)
"""Initial sizes of the residual's direction for the optimizers."""

B1, B2, EPS = 0.9, 0.99, 1e-8
"""Adam's, as in the paper's runs."""

RECORDS = 200
"""Points kept of an optimizer's run."""


class Peak(NamedTuple):
    """The flow and the optimizers; S starts, T times, M sizes, K records.

    Attributes:
      log_t: ``(T,)``.
      ratio: ``(S, T)`` ``((m + c)^4 - (m0 + c)^4) / (2 (1 - c^2) ln^2 t)``.
      steps: ``(K,)``.
      sgd, adam: ``(M, K)`` m under the optimizers.
      sgd_form, adam_form: ``(M, K)`` the closed form, and Adam's slow law.
      slow_t, slow_m, slow_form: ``(M, T)`` Adam's slow law far beyond, and its late closed form.
    """

    log_t: np.ndarray
    ratio: np.ndarray
    steps: np.ndarray
    sgd: np.ndarray
    adam: np.ndarray
    sgd_form: np.ndarray
    adam_form: np.ndarray
    slow_t: np.ndarray
    slow_m: np.ndarray
    slow_form: np.ndarray


def check_peak(seed: int, starts: int, steps: int, sgd_lr: float, adam_lr: float):
    """The heuristic against its reduced law; SGD and Adam on the reduced law."""
    formula, log_t, ratio = _follow_heuristic(np.random.default_rng(seed), starts)
    every = max(steps // RECORDS, 1)
    at = every * np.arange(1, RECORDS + 1)
    sgd = _descend(optax.sgd(sgd_lr), every)
    adam = _descend(optax.adam(adam_lr, b1=B1, b2=B2, eps=EPS), every)
    sizes = np.array(SIZES)[:, None]
    sgd_form = np.asarray(sinks.sgd_peak(at[None, :] * 1.0, sizes, sgd_lr))
    slow_t, slow_m = _follow_slow(adam_lr, at)
    adam_form = np.stack([np.interp(at, t, m) for t, m in zip(slow_t, slow_m, strict=True)])
    settled = at[1:] >= 100 / (1 - B2)
    middle = (at[1:] + at[:-1]) / 2
    g = np.asarray(sinks.peak_gradient((adam[:, 1:] + adam[:, :-1]) / 2, middle[None, :]))
    step = np.diff(adam) / every
    linear = np.abs(step / adam_lr - 1)[settled[None, :] & (g > 100 * EPS)]
    slow = np.abs(step / np.asarray(sinks.adam_rate(g, adam_lr, EPS)) - 1)[:, settled]

    late = np.asarray(sinks.peak_gradient(slow_m, slow_t)) < EPS / 100
    late[:, 0] = False  # ln 1 = 0
    first = late.argmax(axis=1)
    rows = np.arange(len(SIZES))
    t1, m1 = slow_t[rows, first][:, None], slow_m[rows, first][:, None]
    slow_form = np.where(late, sinks.sgd_peak(slow_t, m1, adam_lr / EPS, t1), np.nan)
    claims = [
        Claim(
            "peak", "flow of the heuristic, against automatic differentiation",
            "(m, y)' = -grad e^(-y n(m))", formula, 1e-12,
        ),
        Claim(
            "peak", "its reduced law, m' = (1 - c^2) ln t / (m^3 t)",
            "(m + c)^4 - (m_0 + c)^4 ~ 2 (1 - c^2) ln^2 t",
            float(np.abs(ratio[:, -1] - 1).max()), 1e-3,
        ),
        Claim(
            "peak", "SGD on the reduced law: nearly flat", "m^4 = m_0^4 + 2 lr ln^2 t",
            float(np.abs(sgd / sgd_form - 1).max()), 1e-2,
        ),
        Claim(
            "peak", "Adam: linear, lr a step, while the gradient is above 100 eps",
            "(m(t+1) - m(t)) / lr -> 1", float(linear.max(initial=0)), 0.1,
        ),
        Claim(
            "peak", "Adam's step, at any gradient", "(m(t+1) - m(t)) / (lr g / (|g| + eps)) -> 1",
            float(slow.max()), 0.1,
        ),
        Claim(
            "peak", "Adam once the gradient is below eps / 100: SGD of rate lr / eps",
            "m^4 = m_1^4 + 2 (lr / eps) (ln^2 t - ln^2 t_1)",
            float(np.nanmax(np.abs(slow_m / slow_form - 1))), 1e-2,
        ),
    ]  # fmt: skip
    return claims, Peak(log_t, ratio, at, sgd, adam, sgd_form, adam_form, slow_t, slow_m, slow_form)


def _follow_heuristic(rng, starts: int):
    m0, y0 = rng.uniform(0.5, 4, starts), rng.uniform(0, 2, starts)
    c = rng.uniform(-0.4, 0.8, starts)
    log_t = np.concatenate([np.linspace(0, 10, 41), np.geomspace(10, LOG_TIME, 61)[1:]])

    def follow(m0, y0, c):
        def velocity(s, x):
            return jnp.stack(sinks.peak_flow(x[0], x[1], c, s))

        by_formula = jnp.stack(sinks.peak_flow(m0, y0, c))
        by_autodiff = -jnp.stack(jax.grad(sinks.peak_loss, argnums=(0, 1))(m0, y0, c))
        error = jnp.abs(by_formula - by_autodiff).max() / jnp.abs(by_autodiff).max()
        m = integrate(velocity, jnp.stack([m0, y0]), log_t).x[1:, 0]
        gained = (m + c) ** 4 - (m0 + c) ** 4
        return error, gained / (2 * (1 - c**2) * log_t[1:] ** 2)

    error, ratio = map(np.asarray, jax.jit(jax.vmap(follow))(m0, y0, c))
    return float(error.max()), log_t[1:], ratio


def _descend(optimizer: optax.GradientTransformation, every: int) -> np.ndarray:
    """m after every ``every`` steps, ``(M, RECORDS)``, with the reduced law as its descent."""

    def step(i, carry):
        m, state, t = carry
        update, state = optimizer.update(-sinks.peak_gradient(m, t), state)
        return m + update, state, t + 1

    def run(m0):
        def record(carry, _):
            carry = jax.lax.fori_loop(0, every, step, carry)
            return carry, carry[0]

        return jax.lax.scan(record, (m0, optimizer.init(m0), 1.0), length=RECORDS)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.array(SIZES)))


def _follow_slow(lr: float, at: np.ndarray):
    """Adam's slow law from step 1 to far beyond the run: ``(M, T)`` times and sizes."""
    log_t = np.concatenate([[0.0], np.log(at), np.log(at[-1]) + np.linspace(0, 20, 41)[1:]])

    def follow(m0):
        def velocity(s, m):
            t = jnp.exp(s)
            return t * sinks.adam_rate(sinks.peak_gradient(m, t), lr, EPS)

        return integrate(velocity, m0[None], log_t).x[:, 0]

    m = np.asarray(jax.jit(jax.vmap(follow))(jnp.array(SIZES)))
    return np.broadcast_to(np.exp(log_t), m.shape), m
