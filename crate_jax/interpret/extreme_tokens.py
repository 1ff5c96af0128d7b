"""Statistics of attention sinks, value-state drains and residual-state peaks.

"Active-Dormant Attention Heads" (arXiv 2410.13835). A token is extreme where heads attend to it
(sink), its value is small (drain) and its residual is large (peak); mostly it is the first token.
Attention ``A`` and scores ``s`` are ``(..., T, T)``: rows are queries, columns keys, and ``s`` is
scaled and before the mask. All functions are pure and may be jitted, mapped and differentiated.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def bos_attention(A: Array, where: Array | None = None) -> Array:
    """``Attn_<s>``: the mean over queries of the attention to the first token.

    Args:
      A: ``(..., T, T)``.
      where: booleans ``(..., T)`` that broadcast against ``A[..., 0]``, True for the queries that
        count; None for all. Query 0 sees the first token alone.

    Returns:
      ``(...)``; nan where no query counts.
    """
    to_first = A[..., 0]
    if where is not None:
        where = jnp.broadcast_to(where, to_first.shape)
    return jnp.mean(to_first, axis=-1, where=where)


def column_mass(A: Array) -> Array:
    """``m_k = sum_{q >= k} A_qk / (T - k)``, the mean attention to key k of those that see it.

    Returns:
      ``(..., T)``. The key of the largest mass is the sink, wherever it stands.
    """
    T = A.shape[-1]
    seen = jnp.tril(jnp.ones((T, T), bool))
    seen_by = jnp.broadcast_to(jnp.arange(T, 0, -1).astype(A.dtype), A.shape[:-1])
    return jnp.where(jnp.broadcast_to(seen, A.shape), A, 0).sum(axis=-2) / seen_by


def sink_logits(s: Array) -> Array:
    """``s_n0 - mean_{1 <= j < n} s_nj``: how far a query's score of the first token stands out.

    Neither the query's own score nor any of the future counts.

    Returns:
      ``(..., T)``; nan for the queries 0 and 1, which have nothing to compare with.
    """
    T = s.shape[-1]
    query, key = jnp.arange(T)[:, None], jnp.arange(T)[None, :]
    others = jnp.broadcast_to((key >= 1) & (key < query), s.shape)
    return s[..., 0] - jnp.mean(s, axis=-1, where=others)


def sink_logits_legacy(s: Array) -> Array:
    """``s_n0 - mean_j s_nj`` over all keys, the first one and the unseen future included.

    The official code has this form for OLMo; :func:`sink_logits` is the one of the definition.
    """
    return s[..., 0] - jnp.mean(s, axis=-1)


def attention_entropy(A: Array) -> Array:
    """``-sum_k A_qk ln A_qk`` in nats, ``(..., T)``; ``0 ln 0 = 0``.

    Rows are taken as they are: only softmax makes them sum to 1.
    """
    safe = jnp.where(A > 0, A, 1)
    return -(safe * jnp.log(safe)).sum(axis=-1)


def value_norms(v: Array) -> Array:
    """``||W_O v_k||`` of values ``(..., T, d)`` that have passed their head's slice of W_O."""
    return jnp.linalg.norm(v, axis=-1)


def norm_ratio(norms: Array, position: int = 0) -> Array:
    """A token's norm over the mean norm of the others.

    Args:
      norms: ``(..., T)`` of values or residuals.
      position: of the token.

    Returns:
      ``(...)``; below 1 for a drain, above 1 for a peak.
    """
    return norms[..., position] / _mean_of_others(norms, position)


def peak(norms: Array, position: int = 0) -> Array:
    """A token's norm minus the mean norm of the others: the paper's bars for residuals."""
    return norms[..., position] - _mean_of_others(norms, position)


def sink_rate(A: Array, threshold: float = 0.3) -> Array:
    """The share of heads whose mean attention to the first token exceeds a threshold.

    The ``Sink^eps`` of "When Attention Sink Emerges in Language Models" (arXiv 2410.10781).

    Args:
      A: ``(L, ..., H, T, T)``, layers first.
      threshold: the paper's epsilon.

    Returns:
      ``(...)``: of a batch in the middle, one a sequence.
    """
    above = bos_attention(A) > threshold
    return above.astype(A.dtype).mean(axis=(0, -1))


def max_median_ratio(x: Array) -> Array:
    """``max |x| / median |x|`` over tokens and features, ``(..., T, d) -> (...)``.

    Large where there are massive activations (arXiv 2402.17762).
    """
    size = jnp.abs(x)
    return jnp.max(size, axis=(-2, -1)) / jnp.median(size, axis=(-2, -1))


def kurtosis(x: Array) -> Array:
    """``E (x - Ex)^4 / (Var x)^2`` over features, ``(..., d) -> (...)``; 3 for a Gaussian."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return jnp.mean(centred**4, axis=-1) / jnp.mean(centred**2, axis=-1) ** 2


def mean_by_token(values: Array, tokens: Array, vocab: int) -> Array:
    """The mean of a quantity over the queries of each token.

    Args:
      values: of any shape; nan does not count.
      tokens: ids, of the same shape.
      vocab: number V of ids.

    Returns:
      ``(V,)``; nan for a token without a value.
    """
    values, tokens = jnp.ravel(values), jnp.ravel(tokens)
    valid = ~jnp.isnan(values)
    total = jnp.zeros(vocab, values.dtype).at[tokens].add(jnp.where(valid, values, 0))
    return total / jnp.zeros(vocab, values.dtype).at[tokens].add(valid.astype(values.dtype))


def _mean_of_others(norms: Array, position: int) -> Array:
    return (jnp.sum(norms, axis=-1) - norms[..., position]) / (norms.shape[-1] - 1)
