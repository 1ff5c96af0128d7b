"""Sophia-H: momentum over a clipped running estimate of the Hessian's diagonal."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import Array

from crate_jax.optim.layerwise import STACK


class SophiaState(NamedTuple):
    """Steps so far, first moment, and the diagonal of the Hessian."""

    count: Array
    mu: Any
    hessian: Any


def scale_by_sophia(
    *, b1: float, b2: float, eps: float, gamma: float, update_interval: int
) -> optax.GradientTransformationExtraArgs:
    """``clip(m / max(gamma h, eps), 1)`` (Liu et al. 2023, arXiv 2305.14342).

    Every ``update_interval`` steps ``h`` averages in Hutchinson's estimate ``u * (H u)``, ``u``
    standard normal and ``H u`` the derivative of the gradient along it. ``u`` depends on the step,
    the parameter's path and its layer alone, so that stacked layers draw what unrolled ones do.

    The update wants ``grad_fn``: parameters to gradient, on the same batch.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SophiaState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(updates, state, params=None, *, grad_fn, **_):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)

        def estimated():
            u = directions(params, state.count)
            _, Hu = jax.jvp(grad_fn, (params,), (u,))

            def average(h, u, hu):  # an estimate that overflowed would stay for good
                return jnp.where(jnp.isfinite(u * hu), b2 * h + (1 - b2) * u * hu, h)

            return jax.tree.map(average, state.hessian, u, Hu)

        hessian = jax.lax.cond(state.count % update_interval == 0, estimated, lambda: state.hessian)
        updates = jax.tree.map(
            lambda m, h: jnp.clip(m / jnp.maximum(gamma * h, eps), -1.0, 1.0), mu, hessian
        )
        return updates, SophiaState(state.count + 1, mu, hessian)

    return optax.GradientTransformationExtraArgs(init, update)


def directions(params, count: Array):
    """Standard normal leaves like ``params``, by step, path and layer."""
    step_key = jax.random.fold_in(jax.random.key(0), count)

    def draw(path, leaf):
        unrolled = [n for n in path if n.startswith(f"{STACK}_")]
        layer = int(unrolled[0].rpartition("_")[2]) if unrolled else None
        name = "/".join(STACK if n in unrolled else n for n in path)
        key = jax.random.fold_in(step_key, zlib.crc32(name.encode()))
        if STACK in path:
            keys = jax.vmap(lambda l: jax.random.fold_in(key, l))(jnp.arange(leaf.shape[0]))
            return jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(keys)
        if layer is not None:
            key = jax.random.fold_in(key, layer)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})
