"""Descent on the Stiefel manifold by a rule of choice, for FlatNet's inner problem.

A *descent* is a pair of functions, ``init(U) -> state`` and ``step(U, E, state) -> (U, state)``,
where E is the gradient in the space of all matrices. FlatNet's code uses geoopt's Riemannian Adam
with a learning rate of 1 (``ops.stiefel.adam_step``): one second moment for the whole matrix, the
Cayley transform, and the first moment carried along by it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from crate_jax.ops import stiefel

RETRACTIONS = ("cayley", "cayley_exact", "qr", "polar")


class Descent(NamedTuple):
    """How to descend; see the top of the file."""

    init: Callable[[Array], Any]
    step: Callable[[Array, Array, Any], tuple[Array, Any]]


def riemannian_adam(
    learning_rate: float = 1.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
    retraction: str = "cayley",
) -> Descent:  # fmt: skip
    """Adam with one second moment for the whole matrix.

    With another retraction than geoopt's ``cayley`` the first moment is projected onto the tangent
    space of the new point instead of being carried there.
    """
    if retraction == "cayley":

        def step(U, E, state):
            return stiefel.adam_step(U, E, state, learning_rate, b1=b1, b2=b2, eps=eps)

        return Descent(stiefel.adam_init, step)

    def projected(U, E, state):
        g, count = stiefel.tangent(U, E), state["count"] + 1
        m = b1 * state["m"] + (1 - b1) * g
        v = b2 * state["v"] + (1 - b2) * stiefel.inner(U, g, g)
        times = count.astype(U.dtype)
        direction = (m / (1 - b1**times)) / (jnp.sqrt(v / (1 - b2**times)) + eps)
        U = stiefel.retract(U, -learning_rate * direction, retraction)
        return U, {"count": count, "m": stiefel.project_tangent(U, m), "v": v}

    return Descent(stiefel.adam_init, projected)


def from_transform(init: Callable, update: Callable, retraction: str = "cayley_exact") -> Descent:
    """A descent from the two functions of a gradient transformation (optax's, say).

    The transformation sees the Riemannian gradient; its own memory stays where it was when the
    point moves on, and what it returns is projected onto the tangent space.
    """

    def step(U, E, state):
        update_of_U, state = update(stiefel.tangent(U, E), state, U)
        return stiefel.retract(U, stiefel.project_tangent(U, update_of_U), retraction), state

    return Descent(init, step)
