"""How spread attention is, between 0 and 1: the gate of interventions on sink heads.

A sink head looks at one key from every query: its rows have little entropy, and the column of the
sink, read as a distribution over queries, has almost all that it can have. The official code of
"Active-Dormant Attention Heads" (arXiv 2410.13835) tells sink heads by these two numbers. ``A`` is
``(..., T, T)``, rows are queries, weights at keys that are not seen are 0.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def mean_row_entropy(A: Array) -> Array:
    """The mean over queries ``q`` of ``H(A_q.) / ln(q + 1)``, ``(...)``; query 0 counts as 0."""
    seen = jnp.arange(1, A.shape[-1] + 1)
    return jnp.mean(_normalised(_entropy(A, axis=-1), seen), axis=-1)


def largest_column_entropy(A: Array) -> Array:
    """The maximum over keys ``k`` of ``H(A_.k / sum_q A_qk) / ln(T - k)``, ``(...)``.

    The last key, which one query sees, counts as 0.
    """
    seen_by = jnp.arange(A.shape[-1], 0, -1)
    return jnp.max(_normalised(_entropy(A, axis=-2), seen_by), axis=-1)


def _entropy(A: Array, axis: int) -> Array:
    """In nats, of what is scaled to sum to 1; 0 where there is nothing."""
    total = A.sum(axis, keepdims=True)
    p = A / jnp.where(total > 0, total, 1)
    safe = jnp.where(p > 0, p, 1)
    return -(safe * jnp.log(safe)).sum(axis)


def _normalised(entropy: Array, count: Array) -> Array:
    most = jnp.broadcast_to(jnp.log(count.astype(entropy.dtype)), entropy.shape)
    return jnp.where(most > 0, entropy / jnp.where(most > 0, most, 1), 0)
