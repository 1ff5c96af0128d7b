"""Scaled softmax attention, by an explicit einsum that shows its weights or by a fused kernel."""

import jax
import jax.numpy as jnp
from jax import Array

from crate_jax.ops.platform import platform
from crate_jax.ops.shared_attention import DTYPES, shared_attention

IMPLEMENTATIONS = ("einsum", "xla", "cudnn", "pallas")


def attend(
    q_BNKP: Array,
    k_BMKP: Array,
    v_BMKP: Array,
    *,
    scale: float,
    causal: bool = False,
    implementation: str = "einsum",
    remat: bool = False,
    batch_axes: tuple[str, ...] = (),
    head_axis: str | None = None,
) -> tuple[Array, Array | None]:
    """``softmax(scale q k^T) v`` over keys, head by head.

    The softmax runs in float32 or better. Subspace attention passes one tensor three times.

    Args:
      q_BNKP, k_BMKP, v_BMKP: queries, keys and values, ``(..., tokens, heads, size)``.
      scale: factor on the inner products.
      causal: token n sees tokens up to n only.
      implementation: ``einsum``, or ``xla`` / ``cudnn`` of ``jax.nn.dot_product_attention``, which
        give no weights, or ``pallas``, for q, k and v that are one and the same array: the kernel
        of ``ops.shared_attention``, which gives none either. In float64 all are the einsum.
      remat: keep only q, k and v for the backward pass, which forms the weights again; ``pallas``
        always does.
      batch_axes, head_axis: axes of the mesh that split the first axis and the heads, which
        ``pallas`` must be told.

    Returns:
      ``(out_BNKP, A_BKNM)``; the weights are None where the implementation does not form them.

    Raises:
      ValueError: where ``pallas`` gets three arrays.
    """
    if implementation == "pallas":
        if not (q_BNKP is k_BMKP is v_BMKP):
            raise ValueError(
                "attention_implementation='pallas' is for attention='mssa', where queries, keys "
                "and values are one; write 'xla' or 'einsum'."
            )
        if q_BNKP.dtype in DTYPES:
            return shared_attention(
                q_BNKP, scale=scale, causal=causal, batch_axes=batch_axes, head_axis=head_axis
            ), None

    def fused(q_BNKP, k_BMKP, v_BMKP):
        if implementation == "pallas" or q_BNKP.dtype == jnp.float64:  # jax's would be float32
            return explicit(q_BNKP, k_BMKP, v_BMKP)[0], None
        return jax.nn.dot_product_attention(
            q_BNKP, k_BMKP, v_BMKP, scale=scale, is_causal=causal, implementation=implementation
        ), None

    def masked(G_BKNM):
        if not causal:
            return G_BKNM
        seen = jnp.tri(*G_BKNM.shape[-2:], dtype=bool)
        return jnp.where(jnp.broadcast_to(seen, G_BKNM.shape), G_BKNM, -jnp.inf)

    def explicit(q_BNKP, k_BMKP, v_BMKP):
        G_BKNM = masked(scale * jnp.einsum("...nkp,...mkp->...knm", q_BNKP, k_BMKP))
        precise = G_BKNM.astype(jnp.promote_types(G_BKNM.dtype, jnp.float32))
        A_BKNM = jax.nn.softmax(precise, axis=-1).astype(v_BMKP.dtype)
        return jnp.einsum("...knm,...mkp->...nkp", A_BKNM, v_BMKP), A_BKNM

    def heads_first(q_BNKP, k_BMKP, v_BMKP):
        """The same for CPUs, whose compiler has a fast path for products of whole matrices alone.

        Weights are divided by their sum after the product, which is a third of the size.
        """
        q_BKNP, k_BKMP, v_BKMP = (jnp.swapaxes(x, -3, -2) for x in (q_BNKP, k_BMKP, v_BMKP))
        G_BKNM = masked(scale * jnp.einsum("...np,...mp->...nm", q_BKNP, k_BKMP))
        top_BKN1 = jax.lax.stop_gradient(G_BKNM.max(axis=-1, keepdims=True))
        E_BKNM = jnp.exp(G_BKNM - jnp.broadcast_to(top_BKN1, G_BKNM.shape))
        sum_BKN1 = E_BKNM.sum(axis=-1, keepdims=True)
        out_BKNP = jnp.einsum("...nm,...mp->...np", E_BKNM, v_BKMP)
        out_BKNP /= jnp.broadcast_to(sum_BKN1, out_BKNP.shape)
        A_BKNM = E_BKNM / jnp.broadcast_to(sum_BKN1, E_BKNM.shape)
        return jnp.swapaxes(out_BKNP, -3, -2), A_BKNM

    if implementation != "einsum":
        attention = fused
    elif platform() == "cpu" and q_BNKP.dtype in (jnp.float32, jnp.float64):
        attention = heads_first
    else:
        attention = explicit
    return (jax.checkpoint(attention) if remat else attention)(q_BNKP, k_BMKP, v_BMKP)
