"""From attention scores to attention weights: softmax and what has been put in its place.

Rows are queries, columns keys. ``s_qk`` is the scaled score, ``n_q`` the number of keys that query
``q`` sees. A key that is not seen has weight 0, exactly, and passes no gradient.

    softmax            exp(s_qk) / sum_k exp(s_qk)
    softmax_plus_one   exp(s_qk) / (1 + sum_k exp(s_qk))
    relu               max(s_qk, 0) / n_q
    sigmoid            1 / (1 + exp(-(s_qk - ln n_q)))

ReLU with the division by the visible keys is the one of "Active-Dormant Attention Heads"
(arXiv 2410.13835); sigmoid with the bias ``-ln n`` that of "Theory, Analysis, and Best Practices
for Sigmoid Self-Attention" (arXiv 2409.04431). ``softmax_plus_one`` is softmax with one more key of
score 0 and value 0, which lets a head attend to nothing.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def attention_map(scores: Array, kind: str, mask: Array) -> Array:
    """Attention weights.

    Args:
      scores: ``(..., Q, K)``, scaled, before any mask.
      kind: one of :data:`KINDS`.
      mask: booleans that broadcast against ``scores``, True where a key is seen. Every query sees
        one at least.

    Returns:
      ``(..., Q, K)`` in the dtype of ``scores``. Rows of ``softmax`` sum to 1.
    """
    return KINDS[kind](scores, jnp.broadcast_to(mask, scores.shape))


def causal_mask(length: int) -> Array:
    """``(N, N)``, True on and below the diagonal."""
    return jnp.tril(jnp.ones((length, length), bool))


def softmax(scores: Array, mask: Array) -> Array:
    """``exp(s) / sum exp(s)`` over the keys that are seen."""
    return jax.nn.softmax(scores, axis=-1, where=mask)


def softmax_plus_one(scores: Array, mask: Array) -> Array:
    """``exp(s) / (1 + sum exp(s))``, with the largest of the scores and 0 taken out first."""
    seen = jnp.where(mask, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(seen.max(axis=-1, keepdims=True), 0))
    weights = jnp.exp(seen - top)
    return weights / (jnp.exp(-top) + weights.sum(axis=-1, keepdims=True))


def relu(scores: Array, mask: Array) -> Array:
    """``max(s, 0) / n`` with ``n`` the keys that are seen."""
    return jnp.where(mask, jax.nn.relu(scores), 0) / _visible(mask, scores.dtype)


def sigmoid(scores: Array, mask: Array) -> Array:
    """``sigma(s - ln n)`` with ``n`` the keys that are seen."""
    return jnp.where(mask, jax.nn.sigmoid(scores - jnp.log(_visible(mask, scores.dtype))), 0)


def _visible(mask: Array, dtype) -> Array:
    return mask.sum(axis=-1, keepdims=True).astype(dtype)


KINDS = {
    "softmax": softmax,
    "softmax_plus_one": softmax_plus_one,
    "relu": relu,
    "sigmoid": sigmoid,
}
"""Attention by name."""
