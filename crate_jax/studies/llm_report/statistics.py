"""What is kept of a layer: numbers a text and head, reduced inside the compiled layer."""

import jax
import jax.numpy as jnp

from crate_jax.interpret import extreme_tokens

CAPTURE = ("scores", "attention", "value", "value_norms", "residual")
"""What the statistics take of a ``DecoderBlock``."""


def of_layer(seen: dict[str, jax.Array], legacy: bool) -> dict[str, jax.Array]:
    """Statistics of a layer, one number a text, or a text and head.

    Args:
      seen: what a block captured by ``CAPTURE``.
      legacy: sink logits over all keys.

    Returns:
      ``(B, H)``: ``sink_score`` (mean attention to the first token over the queries from 1 on),
      ``sink_logit`` (mean over the queries for which it is defined), ``entropy`` (nats, mean over
      the queries from 1 on), ``value_first`` and ``value_others`` (norm after the output map of the
      first token's value, mean of the others'), ``value_ratio``, their ratio, and
      ``raw_value_ratio``, the same before the output map. ``(B, H, T)``: ``column_mass``.
      ``(B, H, 2)``: ``top_position`` and ``top_mass`` of the two largest column masses among the
      keys that at least half of the text sees. And what :func:`of_residual` gives.
    """
    A, s = seen["attention"], seen["scores"]
    T = A.shape[-1]
    later = jnp.arange(T)[None, None, :] >= 1
    logit = extreme_tokens.sink_logits_legacy(s) if legacy else extreme_tokens.sink_logits(s)
    mass = extreme_tokens.column_mass(A)
    top_mass, top_position = jax.lax.top_k(mass[..., : (T + 1) // 2], 2)
    norms = seen["value_norms"]
    raw_norms = extreme_tokens.value_norms(
        jnp.moveaxis(seen["value"], 1, 2).astype(norms.dtype)
    )  # (B, H, T)
    first = norms[..., 0]
    return {
        "sink_score": extreme_tokens.bos_attention(A, later),
        "sink_logit": jnp.nanmean(logit, axis=-1),
        "entropy": jnp.mean(extreme_tokens.attention_entropy(A)[..., 1:], axis=-1),
        "value_first": first,
        "value_others": first - extreme_tokens.peak(norms),
        "value_ratio": extreme_tokens.norm_ratio(norms),
        "raw_value_ratio": extreme_tokens.norm_ratio(raw_norms),
        "column_mass": mass,
        "top_position": top_position,
        "top_mass": top_mass,
    } | of_residual(seen["residual"])


def of_residual(x_BTC: jax.Array) -> dict[str, jax.Array]:
    """Statistics of the residual stream, ``(B,)`` each.

    ``residual_first``, ``residual_max`` and ``residual_mean`` are the norm of the first token and
    the largest and mean norm of the others; ``max_median`` and ``kurtosis`` tell of massive
    activations (the latter a mean over tokens).
    """
    x_BTC = x_BTC.astype(jnp.promote_types(x_BTC.dtype, jnp.float32))
    norms = jnp.linalg.norm(x_BTC, axis=-1)
    return {
        "residual_first": norms[:, 0],
        "residual_max": jnp.max(norms[:, 1:], axis=-1),
        "residual_mean": jnp.mean(norms[:, 1:], axis=-1),
        "max_median": extreme_tokens.max_median_ratio(x_BTC),
        "kurtosis": jnp.mean(extreme_tokens.kurtosis(x_BTC), axis=-1),
    }
