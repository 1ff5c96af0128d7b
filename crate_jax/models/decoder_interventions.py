"""Changes to a decoder as arrays, so that many changed networks run under ``vmap``."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from crate_jax.ops.attention_entropy import largest_column_entropy, mean_row_entropy


class Interventions(NamedTuple):
    """Changes to a network as arrays; under ``vmap`` each gets a leading axis.

    Attributes:
      head_gain: ``(L, H)``, factor on a head's attention weights; 0 takes the head out.
      to_first: ``(L, H)``, the part of a head's attention that is moved to the first token; 1 moves
        all of it.
      attention_gain, mlp_gain: ``(L,)``, factors on what a sublayer adds; 0 takes it out.
      row_below, column_above: ``(L, H)``, a gate: ``head_gain`` and ``to_first`` act only on the
        texts on which the head's ``mean_row_entropy`` is below the one and its
        ``largest_column_entropy`` above the other. None is no gate; infinity and its negative leave
        one open.
    """

    head_gain: Array
    to_first: Array
    attention_gain: Array
    mlp_gain: Array
    row_below: Array | None = None
    column_above: Array | None = None

    @classmethod
    def none(cls, depth: int, heads: int, dtype=jnp.float32) -> "Interventions":
        """What changes nothing."""
        ones, zeros = jnp.ones((depth, heads), dtype), jnp.zeros((depth, heads), dtype)
        return cls(ones, zeros, jnp.ones(depth, dtype), jnp.ones(depth, dtype))

    def at(self, layer: int) -> "Interventions":
        """Those of one layer: ``(H,)`` by head and ``()`` by sublayer."""
        return Interventions(*(None if field is None else field[layer] for field in self))


def intervene(A_BHTT: Array, intervention: Interventions) -> Array:
    """Attention weights ``(B, H, T, T)`` with one layer's changes to heads."""
    gain, moved = (
        x[None, :, None, None].astype(A_BHTT.dtype)
        for x in (intervention.head_gain, intervention.to_first)
    )
    if intervention.row_below is not None:
        row_1H, column_1H = intervention.row_below[None], intervention.column_above[None]
        open_BH = mean_row_entropy(A_BHTT) < row_1H
        open_BH &= largest_column_entropy(A_BHTT) > column_1H
        gain = jnp.where(open_BH[..., None, None], gain, 1)
        moved = jnp.where(open_BH[..., None, None], moved, 0)
    mass_BHT1 = jnp.sum(A_BHTT, axis=-1, keepdims=True)
    first_1T = (jnp.arange(A_BHTT.shape[-1]) == 0).astype(A_BHTT.dtype)
    return gain * ((1 - moved) * A_BHTT + moved * mass_BHT1 * first_1T[None, None, None, :])
