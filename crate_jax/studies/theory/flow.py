"""Stiff flows for many starts at once: an adaptive integrator that jits and vmaps.

The flows here approach their limits exponentially while we look at them over powers of ten of time:
an explicit method would take steps of the fastest rate for all of it. The linearly implicit Euler
step, extrapolated (Deuflhard's method; Hairer & Wanner, Solving Ordinary Differential Equations II,
section IV.9), needs no table of coefficients, is stable at any step, and keeps every linear
invariant of the flow to rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

COLUMNS = 8
"""Of the extrapolation tableau: the order of the result. More would amplify rounding: at late times
the tolerance would be out of reach."""

MAX_STEPS = 4000
"""Between two times that are asked for; a flow that needs more comes back as nan."""


class Solution(NamedTuple):
    """A flow at the times asked for.

    Attributes:
      x: ``(T, n)``.
      steps: how many it took, all in all.
    """

    x: Array
    steps: Array


def integrate(
    velocity: Callable[[Array, Array], Array],
    x0: Array,
    times: Array,
    rtol: float = 1e-10,
    atol: float = 1e-11,
) -> Solution:
    """Solves ``dx/ds = velocity(s, x)``.

    Args:
      velocity: of the time, a scalar, and the state, ``(n,)``.
      x0: ``(n,)`` at ``times[0]``, float64.
      times: ``(T,)``, increasing.
      rtol, atol: of the local error.

    Returns:
      The states at ``times``, the first of them ``x0``.
    """

    def to_next(carry, end):
        start, x, step, total = carry
        state = (start, x, step, jnp.zeros((), int))
        _, x, step, taken = jax.lax.while_loop(
            lambda state: (state[0] < end) & (state[3] < MAX_STEPS) & jnp.isfinite(state[1][0]),
            lambda state: _try_step(velocity, state, end, rtol, atol),
            state,
        )
        x = jnp.where(taken < MAX_STEPS, x, jnp.nan)
        return (end, x, step, total + taken), x

    first = (times[1] - times[0]) / 100
    carry = (times[0], x0, first, jnp.zeros((), int))
    (_, _, _, total), xs = jax.lax.scan(to_next, carry, times[1:])
    return Solution(jnp.concatenate([x0[None], xs]), total)


def _try_step(velocity, state, end, rtol, atol):
    s, x, step, taken = state
    last = s + step >= end
    h = jnp.where(last, end - s, step)
    better, good = _extrapolate(velocity, s, x, h)
    size = atol + rtol * jnp.maximum(jnp.abs(x), jnp.abs(better))
    error = jnp.sqrt(jnp.mean(((better - good) / size) ** 2))
    accepted = error <= 1
    factor = jnp.clip(0.8 * jnp.maximum(error, 1e-30) ** (-1 / COLUMNS), 0.1, 5.0)
    factor = jnp.where(jnp.isfinite(error), factor, 0.1)
    # A step cut short by the end of its stretch says nothing against the longer one.
    new_step = jnp.where(accepted & last, jnp.maximum(step, h * factor), h * factor)
    return (
        jnp.where(accepted, jnp.where(last, end, s + h), s),
        jnp.where(accepted, better, x),
        new_step,
        taken + 1,
    )


def _extrapolate(velocity, s, x, h):
    """The two best results of one step of size h: orders ``COLUMNS`` and ``COLUMNS - 1``.

    Row j of the tableau starts from j Euler steps of size ``h / j``. All rows go side by side, each
    until it has made its own; one batched factorisation keeps BLAS from being called by several of
    XLA's threads at once, where its own threads wait for each other.
    """
    J = jax.jacfwd(velocity, argnums=1)(s, x)
    rows = jnp.arange(1, COLUMNS + 1)
    small = h / rows
    eye = jnp.eye(x.shape[0], dtype=x.dtype)
    factors = jax.scipy.linalg.lu_factor(eye[None] - small[:, None, None] * J[None])

    def euler(i, ys):
        slopes = jax.vmap(velocity)(s + (i + 1) * small, ys)
        gains = jax.vmap(jax.scipy.linalg.lu_solve)(factors, small[:, None] * slopes)
        return jnp.where((i < rows)[:, None], ys + gains, ys)

    starts = jax.lax.fori_loop(0, COLUMNS, euler, jnp.broadcast_to(x, (COLUMNS, *x.shape)))
    tableau = []
    for j in range(1, COLUMNS + 1):
        row = [starts[j - 1]]
        for k in range(1, j):
            row.append(row[-1] + (row[-1] - tableau[-1][k - 1]) / (j / (j - k) - 1))
        tableau.append(row)
    return tableau[-1][-1], tableau[-1][-2]
