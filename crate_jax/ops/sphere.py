"""Onto the unit sphere."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def unit(Z: ArrayLike, *, eps: float = 1e-12) -> Array:
    """Rows of ``Z (..., d)`` at unit length, ``z / max(||z||, eps)``, float32 or better.

    The gradient of a row shorter than eps is 0, where torch's is that of ``z / eps``, which one
    empty row would fill the optimizer with.
    """
    Z = jnp.asarray(Z)
    Z = Z.astype(jnp.promote_types(Z.dtype, jnp.float32))
    norm_sq = jnp.sum(Z * Z, axis=-1, keepdims=True)
    Z = jnp.where(norm_sq > eps * eps, Z, jax.lax.stop_gradient(Z))
    return Z * jax.lax.rsqrt(jnp.maximum(norm_sq, eps * eps))
