"""How far the subspaces of MSSA are from orthonormal bases, which the theory takes them to be."""

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array


def orthogonality(params) -> Array:
    """``sum ||U_k^T U_k - I||_F^2`` over all layers and subspaces of a model's parameters.

    Args:
      params: nested dict; the bases are the leaves ``.../subspaces/kernel``, ``(..., d, K, p)``.

    Raises:
      ValueError: when the model has no subspaces.
    """
    flat = traverse_util.flatten_dict(params)
    bases = [U for path, U in flat.items() if path[-2:] == ("subspaces", "kernel")]
    if not bases:
        raise ValueError("an orthogonality penalty needs a model with MSSA; this one has none.")

    def penalty(U_DKP):
        U_DKP = U_DKP.astype(jnp.promote_types(U_DKP.dtype, jnp.float32))
        gram = jnp.einsum(
            "...dkp,...dkq->...kpq", U_DKP, U_DKP, precision=jax.lax.Precision.HIGHEST
        )
        identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        return jnp.sum((gram - identity) ** 2)

    return sum(map(penalty, bases))
