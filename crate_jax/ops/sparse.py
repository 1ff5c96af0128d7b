"""Proximal steps, ISTA and FISTA for the LASSO, with rows as samples.

The papers' ``z = D a`` for a column ``a`` is ``a @ D.T`` for a row: ``D: (d, m)`` holds one atom a
column, codes are ``(..., m)`` and signals ``(..., d)``.
"""

import jax
import jax.numpy as jnp
from jax import Array

from crate_jax.ops.products import product


def soft_threshold(x: Array, threshold: Array | float) -> Array:
    """``sign(x) max(|x| - t, 0)``: the proximal map of ``t ||.||_1``."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def relu_threshold(x: Array, threshold: Array | float) -> Array:
    """``max(x - t, 0)``: the proximal map of ``t ||.||_1`` restricted to non-negative codes."""
    return jax.nn.relu(x - threshold)


PROX = {"relu": relu_threshold, "soft": soft_threshold}


def lasso_objective(a: Array, z: Array, D: Array, lmbda: float) -> Array:
    """``1/2 ||z - D a||^2 + lmbda ||a||_1`` for codes ``a: (..., m)``, signals ``z: (..., d)``."""
    residual = z - a @ D.T
    return 0.5 * jnp.sum(residual**2, axis=-1) + lmbda * jnp.sum(jnp.abs(a), axis=-1)


def ista_step(a: Array, z: Array, D: Array, *, eta: float, lmbda: float, prox: str = "relu"):
    """One proximal gradient step, ``prox_{eta lmbda}(a + eta D^T (z - D a))``.

    Args:
      a: ``(..., m)`` present codes.
      z: ``(..., d)`` signals.
      D: ``(d, m)`` dictionary.
      eta: step; convergence wants ``eta <= 1 / ||D||_2^2``.
      lmbda: weight of the l1 norm.
      prox: ``'relu'`` for non-negative codes, ``'soft'`` for signed ones.
    """
    return PROX[prox](a + eta * product(z - product(a, D.T), D), eta * lmbda)


def ista(z: Array, D: Array, *, steps: int, eta: float, lmbda: float, prox="relu", a0=None):
    """``steps`` proximal steps from ``a0`` (zero by default); returns codes ``(..., m)``."""
    a0 = jnp.zeros((*z.shape[:-1], D.shape[1]), z.dtype) if a0 is None else a0

    def body(a, _):
        return ista_step(a, z, D, eta=eta, lmbda=lmbda, prox=prox), None

    return jax.lax.scan(body, a0, length=steps)[0]


def fista(z: Array, D: Array, *, steps: int, eta: float, lmbda: float, prox="relu", a0=None):
    """Accelerated ISTA (Beck & Teboulle 2009): momentum ``(t_k - 1)/t_{k+1}``, same arguments."""
    a0 = jnp.zeros((*z.shape[:-1], D.shape[1]), z.dtype) if a0 is None else a0

    def body(carry, _):
        a, y, t = carry
        a_next = ista_step(y, z, D, eta=eta, lmbda=lmbda, prox=prox)
        t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return (a_next, a_next + (t - 1) / t_next * (a_next - a), t_next), None

    one = jnp.ones((), a0.dtype)
    return jax.lax.scan(body, (a0, a0, one), length=steps)[0][0]
