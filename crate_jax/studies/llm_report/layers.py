"""One layer at a time: weights from the memory map to the devices, and what is run with them.

The compiled functions take a layer's tensors as arguments, as they lie in the checkpoint, so each
is compiled once for all layers and all revisions of a model. Weights and batch are split over all
devices; a layer's weights are gathered where they are used.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax.convert import huggingface
from crate_jax.convert.huggingface import Checkpoint, Leaf
from crate_jax.models.decoder import (
    Architecture,
    DecoderBlock,
    Head,
    next_token_loss,
)
from crate_jax.models.decoder_interventions import Interventions
from crate_jax.sharding.mesh import BATCH_AXES
from crate_jax.sharding.place import batch_sharding, replicated
from crate_jax.studies.llm_report import statistics

Raw = dict[str, jax.Array]
"""Tensors by the name of their :class:`Leaf`, in the shape of the checkpoint."""


def place_layers(checkpoint: Checkpoint, dtype, mesh: Mesh) -> Iterator[Raw]:
    """The tensors of each layer in turn; the next layer is read while one is in use."""

    def place(layer):
        return _place(checkpoint, checkpoint.layer_leaves, dtype, mesh, layer)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(place, 0)
        for layer in range(checkpoint.arch.depth):
            now = ahead.result()
            if layer + 1 < checkpoint.arch.depth:
                ahead = pool.submit(place, layer + 1)
            yield now


def place_head(checkpoint: Checkpoint, dtype, mesh: Mesh) -> Raw:
    """The tensors of the final norm and the head."""
    return _place(checkpoint, _head_leaves(checkpoint.arch), dtype, mesh)


def embed(checkpoint: Checkpoint, tokens_BT: np.ndarray, dtype, mesh: Mesh) -> jax.Array:
    """The stream before the first layer; of the embedding only the rows in use are read."""
    arch, outer = checkpoint.arch, checkpoint.outer_leaves
    shape = (*tokens_BT.shape, arch.width)
    name = checkpoint.tensor_name(outer["tokens"])

    def part(index):
        ids, where = np.unique(tokens_BT[index[0]], return_inverse=True)
        rows = [checkpoint.files.read(name, (slice(i, i + 1),)) for i in ids.tolist()]
        x_BTC = np.concatenate(rows).astype(dtype)[where.reshape(-1, shape[1])]
        if "positions" in outer:
            table = checkpoint.tensor_name(outer["positions"])
            x_BTC = x_BTC + checkpoint.files.read(table, (slice(shape[1]),)).astype(dtype)
        return x_BTC

    return jax.make_array_from_callback(shape, batch_sharding(mesh), part)


@functools.partial(jax.jit, static_argnames=("arch", "legacy", "mesh"))
def measure(
    raw: Raw, x_BTC: jax.Array, layer: np.int32, *, arch: Architecture, legacy: bool, mesh: Mesh
):
    """A layer's output and :func:`statistics.of_layer`."""
    params = _arrange(raw, huggingface.leaves(arch)[0], mesh)
    y_BTC, seen = DecoderBlock(arch).apply(
        {"params": params}, x_BTC, None, statistics.CAPTURE, layer
    )
    found = statistics.of_layer(seen, legacy)
    return _pin(y_BTC, batch_sharding(mesh)), _pin(found, replicated(mesh))


@functools.partial(jax.jit, static_argnames=("mesh",))
def measure_residual(x_BTC: jax.Array, *, mesh: Mesh):
    """:func:`statistics.of_residual` of the stream before the first layer."""
    return _pin(statistics.of_residual(x_BTC), replicated(mesh))


@functools.partial(jax.jit, static_argnames=("arch", "mesh"), donate_argnames="x_WBTC")
def change(
    raw: Raw,
    x_WBTC: jax.Array,
    layer: np.int32,
    interventions: Interventions,
    *,
    arch: Architecture,
    mesh: Mesh,
) -> jax.Array:
    """A layer of W changed networks, each on its own stream.

    Args:
      raw: the layer's tensors.
      x_WBTC: a stream a variant; donated.
      layer: its number.
      interventions: of this layer, with a leading axis W.
    """
    params = _arrange(raw, huggingface.leaves(arch)[0], mesh)
    block = DecoderBlock(arch)

    def run(x_BTC, intervention):
        return block.apply({"params": params}, x_BTC, intervention, (), layer)[0]

    y_WBTC = jax.vmap(run)(x_WBTC, interventions)
    return _pin(y_WBTC, _variants_sharding(mesh))


@functools.partial(jax.jit, static_argnames=("variants", "mesh"))
def repeat(x_BTC: jax.Array, *, variants: int, mesh: Mesh) -> jax.Array:
    """The same stream for each of W variants."""
    x_WBTC = jnp.broadcast_to(x_BTC[None], (variants, *x_BTC.shape))
    return _pin(x_WBTC, _variants_sharding(mesh))


@functools.partial(jax.jit, static_argnames=("mesh",))
def measure_first(x_WBTC: jax.Array, *, mesh: Mesh) -> jax.Array:
    """Norm of the first token's residual, ``(W, B)``."""
    first_WBC = x_WBTC[:, :, 0].astype(jnp.promote_types(x_WBTC.dtype, jnp.float32))
    return _pin(jnp.linalg.norm(first_WBC, axis=-1), replicated(mesh))


@functools.partial(jax.jit, static_argnames=("arch", "mesh"))
def measure_loss(
    raw: Raw, x_BTC: jax.Array, tokens_BT: jax.Array, *, arch: Architecture, mesh: Mesh
) -> jax.Array:
    """Mean cross-entropy of the next token of each text, ``(B,)``, in nats."""
    params = _arrange(raw, _head_leaves(arch), mesh)
    tied = params.pop("tokens", None)
    logits_BTV, _ = Head(arch).apply({"params": params.get("head", {})}, x_BTC, tied)
    return _pin(next_token_loss(logits_BTV, tokens_BT), replicated(mesh))


def _head_leaves(arch: Architecture) -> dict[str, Leaf]:
    outer = huggingface.leaves(arch)[1]
    names = [path for path in outer if path.startswith("head/")] + ["tokens"] * arch.tied
    return {name: outer[name] for name in names}


def _arrange(raw: Raw, table: dict[str, Leaf], mesh: Mesh) -> dict:
    """A module's parameters from the checkpoint's tensors, whole on every device."""
    whole = _pin(raw, replicated(mesh))
    arranged = {path: leaf.arrange(whole[leaf.name]) for path, leaf in table.items()}
    return traverse_util.unflatten_dict(arranged, sep="/")


def _place(checkpoint, table, dtype, mesh, layer=None) -> Raw:
    def put(leaf):
        name = checkpoint.tensor_name(leaf, layer)

        def part(index):
            return checkpoint.files.read(name, index).astype(dtype, copy=False)

        return jax.make_array_from_callback(leaf.shape, _split(leaf.shape, mesh), part)

    leaves = {leaf.name: leaf for leaf in table.values()}
    return {name: put(leaf) for name, leaf in leaves.items()}


def _split(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Split along the first axis that divides over all devices."""
    axis = next((i for i, n in enumerate(shape) if n % mesh.size == 0), None)
    if axis is None or len(shape) < 2:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names))


def _variants_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def _pin(tree, sharding: NamedSharding):
    return jax.lax.with_sharding_constraint(tree, sharding)
