"""Products of every token with one matrix, in the shape that the machine multiplies fastest."""

import jax.numpy as jnp
from jax import Array

from crate_jax.ops.platform import platform


def product(x: Array, W: Array, **settings) -> Array:
    """``x @ W`` for tokens ``x: (..., d)`` and a matrix ``W: (d, m)``; on a CPU all tokens as rows.

    The gradient of W sums over all leading axes. XLA's CPU compiler transposes its operands where
    these are several, and recomputes in each transpose whatever elementwise work came before, for
    unrolled layers the sum of all later residuals. TPUs and GPUs have no trouble with several; they
    get ``x @ W``, since a TPU tiles the last two axes and would move the tokens to merge them.

    Args:
      x: ``(..., d)``.
      W: ``(d, m)``.
      **settings: of ``jnp.matmul``.

    Returns:
      ``(..., m)``.
    """
    if platform() != "cpu" or x.ndim < 3:
        return jnp.matmul(x, W, **settings)
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), W, **settings)
    return rows.reshape(*x.shape[:-1], W.shape[-1])
