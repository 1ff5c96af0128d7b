"""Scaled softmax attention, by an explicit einsum that shows its weights or by a fused kernel."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

IMPLEMENTATIONS = ("einsum", "xla", "cudnn")


def attend(
    q_BNKP: Array,
    k_BMKP: Array,
    v_BMKP: Array,
    *,
    scale: float,
    causal: bool = False,
    implementation: str = "einsum",
) -> tuple[Array, Array | None]:
    """``softmax(scale q k^T) v`` over keys, head by head.

    The softmax runs in float32 or better. Subspace attention passes one tensor three times.

    Args:
      q_BNKP, k_BMKP, v_BMKP: queries, keys and values, ``(..., tokens, heads, size)``.
      scale: factor on the inner products.
      causal: token n sees tokens up to n only.
      implementation: ``einsum``, or ``xla`` / ``cudnn`` of ``jax.nn.dot_product_attention``, which
        give no weights.

    Returns:
      ``(out_BNKP, A_BKNM)``; the weights are None where the implementation does not form them.
    """
    if implementation != "einsum":
        out = jax.nn.dot_product_attention(
            q_BNKP, k_BMKP, v_BMKP, scale=scale, is_causal=causal, implementation=implementation
        )
        return out, None
    G_BKNM = scale * jnp.einsum("...nkp,...mkp->...knm", q_BNKP, k_BMKP)
    G_BKNM = checkpoint_name(G_BKNM, "attention")
    if causal:
        N, M = G_BKNM.shape[-2:]
        G_BKNM = jnp.where(jnp.tril(jnp.ones((N, M), bool)), G_BKNM, -jnp.inf)
    precise = G_BKNM.astype(jnp.promote_types(G_BKNM.dtype, jnp.float32))
    A_BKNM = checkpoint_name(jax.nn.softmax(precise, axis=-1).astype(v_BMKP.dtype), "attention")
    return jnp.einsum("...knm,...mkp->...nkp", A_BKNM, v_BMKP), A_BKNM
