"""The softmax sink: growth of its logits, the drain of its value, and both at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.ops import sink_dynamics as sinks
from crate_jax.studies.claims import Claim
from crate_jax.studies.theory.flow import integrate
from crate_jax.studies.theory.laws import Ensemble

Array = jax.Array

CLOSE = 1e-2
"""How near ``1/2 ln t`` and its constant a sink logit has to come."""


class Growth(NamedTuple):
    """Flows of single rows with beta constant over the tokens; N rows, T times.

    Attributes:
      t: ``(N, T)``; the last is the row's own, see :func:`check_growth`.
      alpha: ``(N, T)``.
      limit, refined: ``(N, T)`` ``growth`` and ``growth_next`` at these times.
      horizon: index of the last time that all rows share.
    """

    t: np.ndarray
    alpha: np.ndarray
    limit: np.ndarray
    refined: np.ndarray
    horizon: int


def check_growth(ensemble: Ensemble, horizon: float, points: int):
    """``alpha_v - 1/2 ln t -> 1/2 ln(2 pi_v Var)`` with beta held at a constant.

    Rows do not feel each other. A row is followed to ``horizon``, and on until the next term of
    its expansion is a tenth of :data:`CLOSE` and the time that its start took is forgotten.
    """
    V = ensemble.p.shape[-1]
    R = ensemble.p.shape[1]
    p, pi = ensemble.p.reshape(-1, V), ensemble.pi.reshape(-1)
    B = np.repeat(ensemble.B, R, axis=0)
    alpha0, moves = ensemble.alpha0.reshape(-1), ensemble.moves.reshape(-1)
    level = np.repeat(ensemble.beta0.mean(-1), R)
    W = ensemble.W

    def each(function):  # of one row, over all rows
        return jax.vmap(lambda *row: function(*row)[0])

    def laws_of(p, pi, B):
        row, weight = p[None], pi[None]
        return jnp.stack([weight * sinks.variance(row, B), sinks.growth_lag(row, B, W)], axis=-1)

    force, lag = np.asarray(jax.jit(each(laws_of))(p, pi, B)).T  # pi Var, and c
    ends = np.full(len(p), horizon)
    delay = (np.exp(alpha0) + W) ** 3 / np.exp(alpha0)  # over the force: to leave the start
    late = np.maximum((10 * lag / CLOSE) ** 2 / 2, 10 * delay / CLOSE**2)
    ends[moves] = np.maximum(horizon, (late / force)[moves])
    shared = np.broadcast_to(np.linspace(0, np.log(horizon), points), (len(p), points))
    further = np.linspace(np.log(horizon), np.log(ends), 9, axis=1)[:, 1:]
    log_t = np.concatenate([shared, further], axis=1)

    def follow(p, pi, B, level, alpha0, log_t):
        beta = jnp.full(B.shape, level)

        def velocity(s, alpha):
            return -jnp.exp(s) * sinks.gradient(alpha, beta, p[None], pi[None], B, W)[0]

        alpha = integrate(velocity, alpha0[None], log_t).x[:, 0]
        t = jnp.exp(log_t)
        forms = jax.vmap(
            lambda t: jnp.concatenate(
                [
                    sinks.growth(t, p[None], pi[None], B),
                    sinks.growth_next(t, p[None], pi[None], B, W),
                ]
            )
        )(t)
        return alpha, forms[:, 0], forms[:, 1]

    alpha, limit, refined = map(
        np.asarray, jax.jit(jax.vmap(follow))(p, pi, B, level, alpha0, log_t)
    )
    curves = Growth(np.exp(log_t), alpha, limit, refined, points - 1)
    last = np.abs(alpha - limit)[moves, -1]
    rest = np.abs(alpha - refined)[moves, -1]
    still = np.abs(alpha - alpha0[:, None])[~moves]
    claims = [
        Claim(
            "growth", "sink logits grow like half the logarithm of time, with this constant",
            "alpha_v - 1/2 ln t -> 1/2 ln(2 pi_v Var_v B)", float(last.max()), CLOSE,
        ),
        Claim(
            "growth", "its next term",
            "alpha_v -> ln(sqrt(c^2 + 2 pi_v Var_v B t) - c)", float(rest.max()), CLOSE**2,
        ),
    ]  # fmt: skip
    if still.size:
        claims.append(
            Claim(
                "growth", "a token with one successor does not move", "alpha_v(t) = alpha_v(0)",
                float(still.max()), 0.0,
            )
        )  # fmt: skip
    return claims, curves


class Drain(NamedTuple):
    """Flows of beta with one fixed logit; A logits, E members, T times, V tokens.

    Attributes:
      logits: ``(A,)``.
      t: ``(A, E, T)``.
      size: ``(A, E, T)`` of the visible part of beta, over that of B.
    """

    logits: np.ndarray
    t: np.ndarray
    size: np.ndarray


def check_drain(ensemble: Ensemble, logits: tuple[float, ...], points: int):
    """``beta -> mean(beta(0) + e^-alpha B) - e^-alpha B`` with all alpha held at one value.

    Each flow ends after sixty of its slowest time constants, known from the Hessian at the limit.
    """
    W = ensemble.W
    E, R, V = ensemble.p.shape
    same = ensemble.groups[:, :, None] == ensemble.groups[:, None, :]
    classes = (1 / same.sum(-1)).sum(-1).round().astype(int)

    spread = np.einsum("er,erv->ev", ensemble.pi, ensemble.p)[:, :, None] * np.eye(V)
    spread = spread - np.einsum("er,erv,erw->evw", ensemble.pi, ensemble.p, ensemble.p)
    slowest = np.take_along_axis(np.linalg.eigvalsh(spread), classes[:, None], axis=1)[:, 0]

    def follow(alpha, p, pi, B, beta0, groups, slowest):
        alphas = jnp.full(R, alpha)
        rate = sinks.sink_attention(alpha, W) ** 2 * slowest
        log_t = jnp.linspace(0, jnp.log(60 / rate), points)

        def velocity(s, beta):
            return -jnp.exp(s) * sinks.gradient(alphas, beta, p, pi, B, W)[1]

        beta = integrate(velocity, beta0, log_t).x
        limit = sinks.drained_value(alpha, beta0, B, groups)
        pull = sinks.visible_size(beta) / sinks.visible_size(B)
        mean = jnp.abs(beta.mean(-1) - beta0.mean()).max()
        return jnp.exp(log_t), pull, jnp.abs(beta[-1] - limit).max(), mean

    over_members = jax.vmap(follow, in_axes=(None, 0, 0, 0, 0, 0, 0))
    over_logits = jax.jit(jax.vmap(over_members, in_axes=(0, *(None,) * 6)))
    alphas = np.array(logits)
    t, size, error, mean = map(
        np.asarray,
        over_logits(
            alphas, ensemble.p, ensemble.pi, ensemble.B, ensemble.beta0, ensemble.groups, slowest
        ),
    )
    claims = [
        Claim(
            "drain", "the value of <s> drains to this limit",
            "beta -> mean(beta_0 + e^-alpha B) - e^-alpha B", float(error.max()), 1e-9,
        ),
        Claim(
            "drain", "its mean never moves", "mean(beta(t)) = mean(beta(0))", float(mean.max()),
            1e-9,
        ),
    ]  # fmt: skip
    if (classes == 1).all():  # else every class of tokens keeps a level of its own
        ratio = size[..., -1] * np.exp(alphas)[:, None]
        claims.append(
            Claim(
                "drain", "what softmax sees of it shrinks with the sink",
                "e^alpha ||beta - mean|| / ||B - mean|| = 1", float(np.abs(ratio - 1).max()), 1e-8,
            )
        )  # fmt: skip
    return claims, Drain(alphas, t, size)


class Joint(NamedTuple):
    """Flows of alpha and beta together; E members, T times.

    Attributes:
      t: ``(T,)``.
      alpha: ``(E, T, R)``.
      loss: ``(E, T)``.
      spread: ``(E, T)`` standard deviation of alpha over the rows that move.
      off: ``(E, T)`` ``||beta - mean + e^-mean(alpha) (B - mean)||``, distance of the value.
    """

    t: np.ndarray
    alpha: np.ndarray
    loss: np.ndarray
    spread: np.ndarray
    off: np.ndarray


def check_joint(ensemble: Ensemble, horizon: float, points: int):
    """The stationary family, and that the joint flow ends on it."""
    R, W = ensemble.p.shape[1], ensemble.W
    log_t = jnp.linspace(0, np.log(horizon), points)

    def gradient_on_family(p, pi, B, alpha0, beta0):
        beta = sinks.stationary_value(alpha0[0], beta0[0], B)
        point = jnp.full(R, alpha0[0]), beta
        by_formula = sinks.gradient(*point, p, pi, B, W)
        by_autodiff = jax.grad(plain_loss, argnums=(0, 1))(*point, p, pi, B, W)
        return jnp.stack([jnp.abs(g).max() for g in (*by_formula, *by_autodiff)]).max()

    def follow(p, pi, B, alpha0, beta0, moves):
        def velocity(s, x):
            return -jnp.exp(s) * jnp.concatenate(sinks.gradient(x[:R], x[R:], p, pi, B, W))

        x = integrate(velocity, jnp.concatenate([alpha0, beta0]), log_t).x
        alpha, beta = x[:, :R], x[:, R:]
        losses = jax.vmap(lambda a, b: sinks.loss(a, b, p, pi, B, W))(alpha, beta)
        among = jnp.broadcast_to(moves, alpha.shape)
        level = alpha.mean(-1, where=among)
        off = sinks.visible_size(beta + jnp.exp(-level)[:, None] * B[None, :])
        mean = jnp.abs(beta.mean(-1) - beta0.mean()).max()
        return alpha, losses, alpha.std(-1, where=among), off, mean

    members = ensemble.p, ensemble.pi, ensemble.B, ensemble.alpha0, ensemble.beta0
    flat = np.asarray(jax.jit(jax.vmap(gradient_on_family))(*members))
    alpha, losses, spread, off, mean = map(
        np.asarray, jax.jit(jax.vmap(follow))(*members, ensemble.moves)
    )
    t = np.exp(np.asarray(log_t))
    before = np.searchsorted(t, horizon / 100)
    late = np.abs(alpha[:, -1] - alpha[:, before]).max()
    claims = [
        Claim(
            "joint", "equal logits and a drained value are stationary",
            "grad loss(a 1, s - e^-a B) = 0", float(flat.max()), 1e-14,
        ),
        Claim("joint", "the joint flow makes the sink logits equal", "sd_v(alpha_v) -> 0",
              float(spread[:, -1].max()), 1e-4),
        Claim("joint", "it ends on that family", "||beta - mean + e^-a (B - mean)|| -> 0",
              float(off[:, -1].max()), 1e-4),
        Claim("joint", "without loss", "loss -> 0", float(losses[:, -1].max()), 1e-12),
        Claim("joint", "where the logits no longer grow", "alpha_v(t) - alpha_v(t / 100) -> 0",
              float(late), 1e-4),
        Claim("joint", "the mean of the value never moves", "mean(beta(t)) = mean(beta(0))",
              float(mean.max()), 1e-9),
    ]  # fmt: skip
    return claims, Joint(t, alpha, losses, spread, off)


def plain_loss(alpha: Array, beta: Array, p: Array, pi: Array, B: Array, W: float) -> Array:
    """The loss as it is defined, for automatic differentiation: cross-entropy less entropy."""
    e = jnp.exp(alpha)[:, None]
    return plain_divergence(p, pi, (e * beta[None, :] + B[None, :]) / (e + W))


def plain_divergence(p: Array, pi: Array, z: Array) -> Array:
    """``sum_v pi_v KL(p_v || softmax(log p_v + z_v))`` through ``log_softmax``."""
    seen = p > 0
    log_p = jnp.where(seen, jnp.log(jnp.where(seen, p, 1)), -jnp.inf)
    log_q = jax.nn.log_softmax(log_p + z, axis=-1)
    return jnp.sum(pi[:, None] * p * jnp.where(seen, log_p - log_q, 0))
