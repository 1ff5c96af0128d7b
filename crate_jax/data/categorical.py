"""Draws from fixed categorical laws by integers, which never yield what has probability 0.

A row of probabilities is cumulated once, in float64, and rounded to 31 bits; a draw compares as
many random bits with it. Cumulated in float32, a row may fall short of 1 and let an impossible
entry slip in at its end; Gumbel noise costs a random number and two logarithms an entry.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

BITS = 31
"""Of a draw: thresholds up to 2^31 - 1, and -1 for nothing at all, fit int32."""


def thresholds(p: np.ndarray) -> np.ndarray:
    """What :func:`draw` compares with.

    Args:
      p: ``(..., V)``, rows sum to 1.

    Returns:
      int32 ``(..., V)``; entry k is drawn by the bits above threshold k - 1 up to threshold k. A
      probability is off by less than 2^-30.
    """
    p = np.asarray(p, np.float64)
    cumulated = np.minimum(np.floor(np.cumsum(p, axis=-1) * 2**BITS), 2**BITS)
    last = p.shape[-1] - 1 - np.argmax(np.flip(p, -1) > 0, axis=-1)
    is_past = np.arange(p.shape[-1]) >= last[..., None]  # the last possible entry takes the rest
    return (np.where(is_past, 2**BITS, cumulated) - 1).astype(np.int32)


def threshold(probability: float) -> int:
    """The largest bits with which an event of this probability happens; -1 where it never does."""
    return int(probability * 2**BITS) - 1


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform int32 from 0 to 2^31 - 1."""
    return (jax.random.bits(key, shape, jnp.uint32) >> (32 - BITS)).astype(jnp.int32)


def draw(bits_B: Array, thresholds_BV: Array) -> Array:
    """One entry a row, int32 ``(B,)``."""
    return jnp.sum(bits_B[:, None] > thresholds_BV, axis=-1, dtype=jnp.int32)
