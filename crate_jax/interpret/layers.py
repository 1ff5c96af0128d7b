"""The white-box measurements of the CRATE figures: each layer's coding rate and sparsity.

The rate is of the attention input ``U_k^T LN(z^l)``, unit tokens, class token included, with 0.01
where the paper writes epsilon squared, in nats; the sparsity the fraction of codes that are not
exactly zero. Both are per image, then mean and deviation over images, as released: the rate's
deviation unbiased, the sparsity's not.
"""

import jax.numpy as jnp
from jax import Array

from crate_jax.ops.coding_rate import token_coding_rate

CAPTURE = ("projections", "codes")
"""What a model has to capture for :func:`measure`."""


def measure(captured: dict[str, Array]) -> dict[str, Array]:
    """Per layer and image: ``coding_rate`` (nats) and ``nonzero`` (fraction), each ``(L, B)``.

    Args:
      captured: ``projections`` (L,B,N,K,p) and ``codes`` (L,B,N,m) of a model.
    """
    W_LBKNP = jnp.swapaxes(captured["projections"], -3, -2)
    return {
        "coding_rate": token_coding_rate(W_LBKNP),
        "nonzero": jnp.mean(captured["codes"] != 0, axis=(-2, -1)),
    }


def summarise(measured: dict[str, Array]) -> dict[str, Array]:
    """Mean and standard deviation over images of :func:`measure`'s arrays, each ``(L,)``."""
    rate, nonzero = measured["coding_rate"], measured["nonzero"]
    return {
        "coding_rate": rate.mean(axis=1),
        "coding_rate_std": rate.std(axis=1, ddof=min(1, rate.shape[1] - 1)),
        "nonzero": nonzero.mean(axis=1),
        "nonzero_std": nonzero.std(axis=1),
    }
