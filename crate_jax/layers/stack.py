"""A stack of equal layers: unrolled or scanned, rematerialised or not, always the same numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.sharding.place import pin_batch

_policies = jax.checkpoint_policies
REMAT_POLICIES = {
    "full": None,
    "dots": _policies.checkpoint_dots,
    "dots_no_batch": _policies.checkpoint_dots_with_no_batch_dims,
}
"""What a block saves for the backward pass: nothing, matrix products, or those without batch
dimensions."""

REMATS = ("none", *REMAT_POLICIES, "attention")
"""``attention`` recomputes the attention weights alone. No policy over names can say so: a policy
that refuses the named weights saves the unnamed logits and softmax just before them, equally large.
So blocks hand it to ``ops.attention.attend``.
"""


def stack(
    Block: type[nn.Module],
    fields: Mapping[str, Any],
    depth: int,
    z_BND: Array,
    *broadcast: Array | None,
    drop_path: float = 0.0,
    scan: bool = False,
    remat: str = "none",
) -> tuple[Array, dict[str, Array]]:
    """Applies ``depth`` blocks, inside a compact method.

    A block maps ``(z, drop_rate, *broadcast)`` to ``(z, {name: captured})``. Unrolled layers are
    called ``blocks_0``, ``blocks_1``, ...; scanned ones ``blocks``, each leaf with a leading layer
    axis.

    Args:
      Block: the layer's class, made with ``**fields``.
      depth: number of layers.
      z_BND: tokens.
      *broadcast: arguments that every layer gets (a shared dictionary).
      drop_path: drop rate of the last layer; it rises linearly from 0. At 0 a block gets None.
      scan: compile one layer and loop over it.
      remat: one of ``REMATS``; ``attention`` is left to the block's own field ``remat``.

    Returns:
      tokens, and each captured array stacked over layers on a new leading axis.
    """
    if remat in REMAT_POLICIES:
        Block = nn.remat(Block, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    rates = jnp.linspace(0.0, drop_path, depth) if drop_path else None
    if scan:
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *([nn.broadcast] * len(broadcast))),
            length=depth,
        )
        z_BND, captured = scanned(name="blocks", **fields)(pin_batch(z_BND), rates, *broadcast)
        return pin_batch(z_BND), captured
    captured = []
    for l in range(depth):
        z_BND, seen = Block(name=f"blocks_{l}", **fields)(
            pin_batch(z_BND), None if rates is None else rates[l], *broadcast
        )  # fmt: skip
        captured.append(seen)
    return z_BND, jax.tree.map(lambda *layers: jnp.stack(layers), *captured)


def shared_fields(Block: type[nn.Module], model: nn.Module) -> dict[str, Any]:
    """The fields of a block that its model has under the same name."""
    names = {f.name for f in dataclasses.fields(Block)} - {"parent", "name"}
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def select(seen: Mapping[str, Array | None], capture: Sequence[str]) -> dict[str, Array]:
    """The captured arrays that were asked for.

    Raises:
      ValueError: on a name that the layer does not have, or attention that was never formed.
    """
    for name in capture:
        if name not in seen:
            raise ValueError(f"capture={name!r} is none of {', '.join(sorted(seen))}.")
        if seen[name] is None:
            raise ValueError(f"capture={name!r} needs attention_implementation='einsum'.")
    return {name: seen[name] for name in capture}


class DropPath(nn.Module):
    """Stochastic depth: drops the whole update of an example with probability ``rate``."""

    train: bool

    @nn.compact
    def __call__(self, update_BND: Array, rate: Array | None) -> Array:
        if not self.train or rate is None:
            return update_BND
        shape = (update_BND.shape[0],) + (1,) * (update_BND.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, shape)
        return jnp.where(keep, update_BND / (1.0 - rate).astype(update_BND.dtype), 0)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Unrolled parameters ``blocks_i`` as scanned ``blocks``; scanned ones are left alone."""
    depth = sum(name.startswith("blocks_") for name in params)
    if not depth:
        return dict(params)
    layers = [params[f"blocks_{l}"] for l in range(depth)]
    rest = {name: p for name, p in params.items() if not name.startswith("blocks_")}
    return {**rest, "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Scanned parameters ``blocks`` as unrolled ``blocks_i``; unrolled ones are left alone."""
    if "blocks" not in params:
        return dict(params)
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    rest = {name: p for name, p in params.items() if name != "blocks"}
    layers = {
        f"blocks_{l}": jax.tree.map(lambda x, l=l: x[l], params["blocks"]) for l in range(depth)
    }
    return {**rest, **layers}
