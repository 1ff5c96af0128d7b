"""ReLU attention in the simplified model: the sink closes, and the value need not drain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.ops import sink_dynamics as sinks
from crate_jax.studies.claims import Claim
from crate_jax.studies.theory.flow import integrate
from crate_jax.studies.theory.laws import Ensemble
from crate_jax.studies.theory.softmax import plain_divergence

UNITS = 60.0
"""Length of the flows with a fixed value, in each row's own time constants."""


class Relu(NamedTuple):
    """Flows under ReLU attention; E members, T times.

    Attributes:
      units: ``(T,)`` time in units of a row's constant.
      alpha: ``(N, T)`` logits of single rows with beta fixed.
      t: ``(T,)`` of the joint flow.
      attention, value: ``(E, T)`` ``sum max(alpha, 0)^2`` over the rows that move, and
        ``||beta - mean||^2``, in the joint flow.
      balance: ``(E,)`` their conserved difference.
    """

    units: np.ndarray
    alpha: np.ndarray
    t: np.ndarray
    attention: np.ndarray
    value: np.ndarray
    balance: np.ndarray


def check_relu(ensemble: Ensemble, horizon: float, points: int):
    """The gradient's formula, the decay of attention at its rate, and where the joint flow ends."""
    E, R, V = ensemble.p.shape
    n, moves = ensemble.W, ensemble.moves
    members = ensemble.alpha0, ensemble.beta0, ensemble.p, ensemble.pi

    def formula_error(alpha, beta, p, pi):
        def plain(alpha, beta):
            z = jnp.maximum(alpha, 0)[:, None] * beta[None, :] / n
            return plain_divergence(p, pi, z)

        ours = jnp.concatenate(sinks.relu_gradient(alpha, beta, p, pi, n))
        theirs = jnp.concatenate(jax.grad(plain, argnums=(0, 1))(alpha, beta))
        return jnp.abs(ours - theirs).max() / jnp.abs(theirs).max()

    formula = np.asarray(jax.jit(jax.vmap(formula_error))(*members))

    units = np.linspace(0, UNITS, points)

    def follow_row(alpha0, beta, p, pi):
        row, weight = p[None], pi[None]
        rate = sinks.relu_rate(row, weight, beta, n)

        def velocity(s, log_alpha):  # of ln alpha, which has no floor
            alpha = jnp.exp(log_alpha)
            return -sinks.relu_gradient(alpha, beta, row, weight, n)[0] / alpha / rate

        return integrate(velocity, jnp.log(jnp.abs(alpha0))[None], units).x[:, 0]

    rows = moves.reshape(-1)
    log_alpha = np.asarray(
        jax.jit(jax.vmap(follow_row))(
            ensemble.alpha0.reshape(-1)[rows],
            np.repeat(ensemble.beta0, R, axis=0)[rows],
            ensemble.p.reshape(-1, V)[rows],
            ensemble.pi.reshape(-1)[rows],
        )
    )
    half = points // 2
    slope = (log_alpha[:, -1] - log_alpha[:, half]) / (units[-1] - units[half])

    log_t = jnp.linspace(0, np.log(horizon), points)

    def follow(alpha0, beta0, p, pi, moves):
        def velocity(s, x):
            return -jnp.exp(s) * jnp.concatenate(sinks.relu_gradient(x[:R], x[R:], p, pi, n))

        x = integrate(velocity, jnp.concatenate([alpha0, beta0]), log_t).x
        alpha, beta = x[:, :R] * moves[None, :], x[:, R:]
        attention = jnp.sum(jax.nn.relu(alpha) ** 2, axis=-1)
        losses = jax.vmap(lambda x: sinks.relu_loss(x[:R], x[R:], p, pi, n))(x)
        closed = jnp.where(alpha0 > 0, 0.0, x[-1, :R] - alpha0)
        return (
            attention,
            sinks.visible_size(beta) ** 2,
            sinks.relu_balance(alpha, beta),
            losses,
            closed,
        )

    attention, value, balance, losses, closed = map(
        np.asarray, jax.jit(jax.vmap(follow))(*members, moves.astype(float))
    )
    start = balance[:, 0]
    # A row that leaves tokens out may stop where beta is constant over those that it emits.
    dense = np.where(moves, ensemble.p.min(-1), 1).min(-1) > 1e-6
    stays = (start > 0) & dense
    ends = np.maximum(attention[:, -1], np.abs(value[:, -1] - start))[stays]
    claims = [
        Claim(
            "relu", "gradient under ReLU attention, against automatic differentiation",
            "dloss/dalpha_v = pi_v 1[alpha_v > 0] <q_v - p_v, beta> / n", float(formula.max()),
            1e-11,
        ),
        Claim(
            "relu", "attention to <s> decays to 0 with the value fixed: no drain is needed",
            "alpha_v -> 0", float(np.exp(log_alpha[:, -1]).max()), 1e-12,
        ),
        Claim(
            "relu", "at this rate", "-(ln alpha_v)' n^2 / (pi_v Var_v beta) -> 1",
            float(np.abs(slope + 1).max()), 1e-6,
        ),
        Claim(
            "relu", "a closed sink stays closed", "alpha_v(t) = alpha_v(0) <= 0",
            float(np.abs(closed).max()), 0.0,
        ),
        Claim(
            "relu", "with both free, the squares of value and logits keep their difference",
            "C = ||beta - mean||^2 - sum_v max(alpha_v, 0)^2 = const",
            float(np.abs(balance - start[:, None]).max()), 1e-8,
        ),
        Claim(
            "relu", "and the loss goes to 0", "loss -> 0", float(losses[:, -1].max()), 1e-9,
        ),
    ]  # fmt: skip
    if stays.any():
        claims.append(
            Claim(
                "relu", "so that the value stays where C > 0, and attention goes to 0",
                "||beta - mean||^2 -> C, sum_v max(alpha_v, 0)^2 -> 0", float(ends.max()), 1e-6,
            )
        )  # fmt: skip
    t = np.exp(np.asarray(log_t))
    return claims, Relu(units, np.exp(log_alpha), t, attention, value, start)
