"""The two passes over a checkpoint: statistics of every layer, and losses of changed networks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.convert.huggingface import Checkpoint
from crate_jax.models.decoder_interventions import Interventions
from crate_jax.studies.llm_report import layers

KINDS = ("zero_head", "to_first", "no_attention", "no_mlp", "zero_sinks", "sinks_to_first")
"""A head's attention set to zero, or all of it moved to the first token; a sublayer taken out; and
the first two for all heads of all layers that are sink heads on a text."""

EVERYWHERE = ("zero_sinks", "sinks_to_first")
"""Kinds that are of no single layer; they begin in layer 0."""


@dataclasses.dataclass(frozen=True, order=True)
class Variant:
    """A changed network; ``head`` is None where ``kind`` is of a sublayer."""

    layer: int
    kind: str
    head: int | None = None


@dataclasses.dataclass(frozen=True)
class Texts:
    """All texts in batches of one size, the last one filled up with its last text.

    Attributes:
      tokens: ``(N, T)``.
      domain: ``(N,)``, the number of each text's domain.
      batch_size: texts at once.
    """

    tokens: np.ndarray
    domain: np.ndarray
    batch_size: int

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        missing = -len(self.tokens) % self.batch_size
        filled = np.concatenate([self.tokens, np.repeat(self.tokens[-1:], missing, axis=0)])
        return np.split(filled, len(filled) // self.batch_size)


def measure(
    checkpoint: Checkpoint,
    texts: Texts,
    *,
    dtype,
    legacy: bool,
    mesh: Mesh,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Statistics of every layer and the loss of every text.

    Args:
      checkpoint: the model.
      texts: what it reads.
      dtype: of weights and computation.
      legacy: sink logits over all keys.
      mesh: of devices.
      advance: called after each layer.

    Returns:
      by the names of ``statistics.of_layer``, layers first: ``(L, N, H)``, but ``column_mass``,
      which is a mean over the texts of each domain, ``(L, domains, H, T)``, and the residual's,
      ``(L + 1, N)``, which begin with the embedding. ``loss`` is ``(N,)``.
    """
    streams = [layers.embed(checkpoint, batch, dtype, mesh) for batch in texts.batches]
    residual = [_together([layers.measure_residual(x, mesh=mesh) for x in streams], texts)]
    found = []
    for l, raw in enumerate(layers.place_layers(checkpoint, dtype, mesh)):
        seen = []
        for m, x_BTC in enumerate(streams):
            streams[m], part = layers.measure(
                raw, x_BTC, np.int32(l), arch=checkpoint.arch, legacy=legacy, mesh=mesh
            )
            seen.append(part)
        layer = _together(seen, texts)
        residual.append({name: layer.pop(name) for name in residual[0]})
        layer["column_mass"] = mean_by_domain(layer["column_mass"], texts.domain)
        found.append(layer)
        advance()
    raw = None  # the last layer makes room
    head = layers.place_head(checkpoint, dtype, mesh)
    losses = [
        {"loss": layers.measure_loss(head, x, batch, arch=checkpoint.arch, mesh=mesh)}
        for x, batch in zip(streams, texts.batches, strict=True)
    ]
    stacked = [_stack(found), _stack(residual), _together(losses, texts)]
    return {name: array for part in stacked for name, array in part.items()}


def change(
    checkpoint: Checkpoint,
    texts: Texts,
    variants: Sequence[Variant],
    *,
    at_once: int,
    watched: int,
    gate: tuple[float, float] | None,
    dtype,
    mesh: Mesh,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Losses and residual norms of changed networks.

    A variant's stream begins where its layer does; until then it is the model's own. Variants run
    together in order of their layers, ``at_once`` under one ``vmap``; what is left over is filled
    up with networks that nothing is changed in.

    Args:
      checkpoint: the model.
      texts: what it reads.
      variants: the changes.
      at_once: of them.
      watched: the layer after which the first token's residual is measured.
      gate: bounds of row and column entropy for kinds of ``EVERYWHERE``.
      dtype: of weights and computation.
      mesh: of devices.
      advance: called after each layer.

    Returns:
      ``(variants, N)``: ``loss``, and ``residual_first``, nan for what begins in a later layer than
      the one that is watched.
    """
    arch = checkpoint.arch
    order = sorted(range(len(variants)), key=lambda i: (variants[i].layer, i))
    chunks = [order[at : at + at_once] for at in range(0, len(order), at_once)]
    begins = [min(variants[i].layer for i in chunk) for chunk in chunks]
    streams = [layers.embed(checkpoint, batch, dtype, mesh) for batch in texts.batches]
    changed, norms = {}, {}
    for l, raw in enumerate(layers.place_layers(checkpoint, dtype, mesh)):
        for c, chunk in enumerate(chunks):
            if begins[c] > l:
                continue
            here = _interventions([variants[i] for i in chunk], l, at_once, arch.heads, gate)
            for m, x_BTC in enumerate(streams):
                if begins[c] == l:
                    changed[c, m] = layers.repeat(x_BTC, variants=at_once, mesh=mesh)
                changed[c, m] = layers.change(
                    raw, changed[c, m], np.int32(l), here, arch=arch, mesh=mesh
                )
                if l == watched:
                    norms[c, m] = layers.measure_first(changed[c, m], mesh=mesh)
        if l < max(begins):  # the model's own stream is needed where a later chunk begins
            for m, x_BTC in enumerate(streams):
                streams[m], _ = layers.measure(
                    raw, x_BTC, np.int32(l), arch=arch, legacy=False, mesh=mesh
                )
        jax.block_until_ready((streams, changed))  # or layers would pile up ahead of their use
        advance()
    raw = None  # the last layer makes room
    head = layers.place_head(checkpoint, dtype, mesh)
    N = len(texts.tokens)
    losses, first = np.zeros((len(variants), N)), np.full((len(variants), N), np.nan)
    for c, chunk in enumerate(chunks):
        for w, i in enumerate(chunk):
            parts = [
                layers.measure_loss(head, changed[c, m][w], batch, arch=arch, mesh=mesh)
                for m, batch in enumerate(texts.batches)
            ]
            losses[i] = np.concatenate([np.asarray(part) for part in parts])[:N]
            if variants[i].layer <= watched:
                parts = [np.asarray(norms[c, m])[w] for m in range(len(texts.batches))]
                first[i] = np.concatenate(parts)[:N]
    return {"loss": losses, "residual_first": first}


def _interventions(chunk, layer, at_once, heads, gate) -> Interventions:
    """The arrays of one layer for the variants of a chunk."""
    gain, moved = np.ones((at_once, heads), np.float32), np.zeros((at_once, heads), np.float32)
    attention, mlp = np.ones(at_once, np.float32), np.ones(at_once, np.float32)
    row, column = np.full_like(gain, np.inf), np.full_like(gain, -np.inf)
    for w, variant in enumerate(chunk):
        if variant.kind in EVERYWHERE:
            row[w], column[w] = gate
            gain[w], moved[w] = (0, 0) if variant.kind == "zero_sinks" else (1, 1)
        elif variant.layer != layer:
            continue
        elif variant.kind == "zero_head":
            gain[w, variant.head] = 0
        elif variant.kind == "to_first":
            moved[w, variant.head] = 1
        elif variant.kind == "no_attention":
            attention[w] = 0
        else:
            mlp[w] = 0
    bounds = () if gate is None else (row, column)  # without them no entropy is formed
    return Interventions(gain, moved, attention, mlp, *bounds)


def _together(parts, texts) -> dict[str, np.ndarray]:
    """Batches one after another, without what filled up the last."""
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(texts.tokens)]
        for name in parts[0]
    }


def _stack(found) -> dict[str, np.ndarray]:
    return {name: np.stack([layer[name] for layer in found]) for name in found[0]}


def mean_by_domain(x: np.ndarray, domain: np.ndarray, axis: int = 0) -> np.ndarray:
    """Means over the texts of each domain, which come first.

    Args:
      x: with N texts along ``axis``.
      domain: ``(N,)``.
      axis: of the texts.
    """
    parts = (np.compress(domain == d, x, axis) for d in range(domain.max() + 1))
    return np.stack([part.mean(axis=axis) for part in parts])
