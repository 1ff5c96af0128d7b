"""L-BFGS for many starts under one vmap: a step without a loop or a branch in it.

A line search that loops lets all starts wait for the slowest, so here it tries a few step sizes at
once and takes the largest that raises F enough (Armijo's condition), or the safe gradient step. The
direction is the two-loop recursion (Nocedal & Wright, Numerical Optimization, algorithm 7.4), whose
pairs are kept only where F is concave along them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crate_jax.studies.landscape.problem import Problem

Array = jax.Array

MEMORY = 8
"""Pairs of steps and gradient differences."""

TRIES = (1.0, 0.25, 1 / 16, 1 / 64)
"""Step sizes."""

ENOUGH, ROUNDING = 1e-4, 1e-14
"""Of the first-order rise that is asked for; of F, what may be lost to its rounding."""


class State(NamedTuple):
    """One start on its way.

    Attributes:
      Z: ``(N, d)``.
      value, gradient: there.
      s: ``(MEMORY, N, d)`` the last steps, the newest last.
      y: ``(MEMORY, N, d)`` what the gradient fell by over them.
      rho: ``(MEMORY,)`` ``1/<s, y>``; 0 where there is no pair yet.
    """

    Z: Array
    value: Array
    gradient: Array
    s: Array
    y: Array
    rho: Array


def init(problem: Problem, Z: Array) -> State:
    """The state of one start ``(N, d)``."""
    value, gradient = problem.value_and_gradient(Z)
    empty = jnp.zeros((MEMORY, *Z.shape), Z.dtype)
    return State(Z, value, gradient, empty, empty, jnp.zeros(MEMORY, Z.dtype))


def step(problem: Problem, state: State) -> State:
    """One step upwards."""
    Z, value, gradient = state.Z, state.value, state.gradient
    safe = gradient / problem.alpha
    ascent = _direction(state, problem.alpha)
    slope = jnp.vdot(gradient, ascent)
    sizes = jnp.array(TRIES, Z.dtype)
    reached = problem.value(jnp.stack([Z + size * ascent for size in TRIES]))
    asked = value + ENOUGH * sizes * slope - ROUNDING * jnp.abs(value)
    good = (reached >= asked) & (slope > 0)
    move = jnp.where(good.any(), sizes[jnp.argmax(good)] * ascent, safe)
    new_value, new_gradient = problem.value_and_gradient(Z + move)
    y = gradient - new_gradient
    product = jnp.vdot(move, y)
    keep = product > 1e-10 * jnp.linalg.norm(move) * jnp.linalg.norm(y)
    rho = 1 / jnp.where(keep, product, 1.0)
    memory = (state.s, state.y, state.rho)
    memory = (
        jnp.where(keep, jnp.concatenate([old[1:], new[None]]), old)
        for old, new in zip(memory, (move, y, rho), strict=True)
    )
    return State(Z + move, new_value, new_gradient, *memory)


def _direction(state: State, alpha: float) -> Array:
    """The inverse of the remembered curvature times the gradient."""
    q, weights = state.gradient, []
    for i in reversed(range(MEMORY)):
        weights.append(state.rho[i] * jnp.vdot(state.s[i], q))
        q = q - weights[-1] * state.y[i]
    size = state.rho[-1] * jnp.vdot(state.y[-1], state.y[-1])
    r = q / jnp.where(size > 0, size, alpha)
    for i, weight in zip(range(MEMORY), reversed(weights), strict=True):
        r = r + (weight - state.rho[i] * jnp.vdot(state.y[i], r)) * state.s[i]
    return r
