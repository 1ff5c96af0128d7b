"""Interventions on the backcopy transformer: heads and branches scaled, attention forced."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

FORCES = {"none": 0, "ideal": 1, "bos": 2, "diagonal": 3, "dormant": 4, "active": 5}
"""Codes of ``Interventions.force``.

``bos`` sends every query to the first token, ``diagonal`` to itself, ``ideal`` a trigger to the
token before it and all others to the first. ``dormant`` is the half of ``ideal`` that concerns the
non-triggers, ``active`` the other half; the rest of the map stays the model's own.
"""


class Interventions(NamedTuple):
    """Changes to a forward pass, as arrays: many of them are one ``vmap``.

    Layers come first, then heads. What a layer does not have is not intervened on.

    Attributes:
      head_gain: ``(L, H)`` factor on a head's attention weights, after ``force``.
      attention_gain, mlp_gain: ``(L,)`` factor on a residual branch.
      bos_attention_gain: ``(L, H)`` factor on the weight of the first token's query.
      bos_value_gain: ``(L, H)`` factor on the first token's value.
      bos_mlp_gain: ``(L,)`` factor on the MLP's branch at the first token.
      force: ``(L, H)`` integers, one of :data:`FORCES`.
      triggers: ``(k,)`` ids of the triggers, for ``force``.
    """

    head_gain: Array
    attention_gain: Array
    mlp_gain: Array
    bos_attention_gain: Array
    bos_value_gain: Array
    bos_mlp_gain: Array
    force: Array
    triggers: Array

    @classmethod
    def none(cls, depth: int, heads: int, triggers: Sequence[int] = ()) -> "Interventions":
        """Those that change nothing; ``_replace`` what is wanted."""
        by_head, by_layer = jnp.ones((depth, heads)), jnp.ones((depth,))
        return cls(
            head_gain=by_head,
            attention_gain=by_layer,
            mlp_gain=by_layer,
            bos_attention_gain=by_head,
            bos_value_gain=by_head,
            bos_mlp_gain=by_layer,
            force=jnp.zeros((depth, heads), jnp.int32),
            triggers=jnp.asarray(triggers, jnp.int32),
        )

    def layer(self, l: int) -> "Interventions":
        """Those of one layer."""
        *by_layer, triggers = self
        return Interventions(*(x[l] for x in by_layer), triggers)


def scale(x: Array, gain: Array) -> Array:
    """``gain x`` in the dtype of ``x``."""
    return x * gain.astype(x.dtype)


def scale_first(x_BN: Array, gain: Array) -> Array:
    """Scales ``x_BN[:, 0]`` by a gain that broadcasts against one ``x_BN[b, 0]``."""
    return jnp.concatenate([scale(x_BN[:, :1], gain[None, None]), x_BN[:, 1:]], axis=1)


def intervene(A_BHNN: Array, trigger_BN: Array, change: Interventions) -> Array:
    """Attention weights with ``force``, ``head_gain`` and ``bos_attention_gain`` of one layer."""
    N = A_BHNN.shape[-1]
    trigger_B1N = trigger_BN[:, None]
    itself_11N = jnp.arange(N)[None, None]
    code_1H1 = change.force[None, :, None]

    def is_code(*names):
        return jnp.isin(code_1H1, jnp.array([FORCES[name] for name in names]))

    forced_BHN = (
        is_code("ideal", "bos", "diagonal")
        | (is_code("dormant") & ~trigger_B1N)
        | (is_code("active") & trigger_B1N)
    )
    copies_BHN = is_code("ideal", "active") & trigger_B1N
    target_BHN = jnp.where(copies_BHN, jnp.maximum(itself_11N - 1, 0), 0)
    target_BHN = jnp.where(is_code("diagonal"), itself_11N, target_BHN)
    A_BHNN = jnp.where(
        forced_BHN[..., None], jax.nn.one_hot(target_BHN, N, dtype=A_BHNN.dtype), A_BHNN
    )
    A_BHNN = scale(A_BHNN, change.head_gain[None, :, None, None])
    first_BH1N = scale(A_BHNN[:, :, :1], change.bos_attention_gain[None, :, None, None])
    return jnp.concatenate([first_BH1N, A_BHNN[:, :, 1:]], axis=2)
