"""Memory, traffic and collectives of a step by formula, traced and not compiled.

*Memory* of a chip: its shards of the state (exact), a gradient like the parameters, a copy of them
in the computation's dtype, what the backward pass keeps of its images, and, where a policy
recomputes, one layer in full. What is kept is read from the traced gradient: the residuals of
``jax.vjp`` at two batch sizes give bytes an image.

*HBM traffic*: the state read and written, the gradient written and read, and every activation of
the backward pass written and read, once more where it is recomputed.

*Collectives*, layer by layer: gradients summed over the axes that copy the parameters; over
``fsdp`` parameters gathered for either pass and gradients scattered; over ``tensor`` two sums of
activations a layer and pass.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from crate_jax.config import Config
from crate_jax.plan.collectives import Collective
from crate_jax.run import example_batch, step_flops, system_alone
from crate_jax.sharding import mesh as meshes
from crate_jax.sharding import rules
from crate_jax.train import flops

COPYING_AXES = ("slice", "data")
"""Axes of the mesh over which parameters are copied."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip, by formula.

    Attributes:
      state: parameters, moments, averages and counters, by name.
      batch: images and labels.
      gradient, compute_copy: of the parameters.
      kept: of the forward pass for the backward pass.
      working: one layer that is recomputed.
    """

    state: Mapping[str, int]
    batch: int
    gradient: int
    compute_copy: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.batch, self.gradient, self.compute_copy, self.kept, self.working)
        return sum(self.state.values()) + sum(parts)


@dataclasses.dataclass(frozen=True)
class Traced:
    """What is known of a config without its mesh.

    Attributes:
      model_flops, hardware_flops: of a step, all devices, the latter with what is done twice.
      kernel_flops: of matrix units in Pallas kernels, idle lanes included.
      kept: bytes an image that the backward pass keeps.
      kept_plain: the same without rematerialisation.
      state: shapes of the run's state.
      depth: layers.
      tokens: bytes of an image's tokens between two layers.
    """

    model_flops: int
    hardware_flops: int
    kernel_flops: int
    kept: float
    kept_plain: float
    state: Any
    depth: int
    tokens: int

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass forms again what the forward pass did not keep."""
        return self.kept < 0.99 * self.kept_plain


def traced(config: Config) -> Traced:
    """Traces a config's step and its gradient."""
    model = {k: v for k, v in config.model.items() if v is not None}
    return _traced(_Key(dataclasses.replace(config, model=model, mesh=type(config.mesh)())))


class _Key:
    """A config as the key of a cache."""

    def __init__(self, config: Config):
        self.config, self.text = config, repr(config)

    def __eq__(self, other):
        return self.text == other.text

    def __hash__(self):
        return hash(self.text)


@functools.lru_cache(maxsize=256)
def _traced(key: _Key) -> Traced:
    config = key.config
    system, batch, rng = system_alone(config), example_batch(config), jax.random.key(0)
    state = jax.eval_shape(system.init, rng, batch)
    plain = dataclasses.replace(config, model={**config.model, "remat": "none"})
    module = system.module
    patches = (config.data.image_size // module.patch) ** 2
    return Traced(
        step_flops(config),
        flops.matmul_flops(system.step, state, batch, rng),
        flops.kernel_flops(system.step, state, batch, rng),
        kept_per_image(config),
        kept_per_image(plain),
        state,
        module.depth,
        (patches + 1) * module.width * _width(config),
    )


def _width(config: Config) -> int:
    """Bytes of a number in the computation's dtype."""
    return 2 if config.model.get("dtype") in ("bfloat16", "float16") else 4


def kept_per_image(config: Config) -> float:
    """Bytes an image of what the forward pass keeps for the backward pass."""
    train = dataclasses.replace(config.train, batch_size=8, accumulate=1)
    return _kept_per_image(_Key(dataclasses.replace(config, train=train)))


@functools.lru_cache(maxsize=256)
def _kept_per_image(key: _Key) -> float:
    few, many = (_residual_bytes(key.config, images) for images in (8, 16))
    return (many - few) / 8


def _residual_bytes(config: Config, images: int) -> int:
    train = dataclasses.replace(config.train, batch_size=images)
    config = dataclasses.replace(config, train=train)
    system, batch = system_alone(config), example_batch(config)
    target = jax.ShapeDtypeStruct((images, system.module.num_classes), "float32")

    def residuals(params, image, target, label, rng):
        def loss(params):
            return system.loss(params, image, target, label, rng)

        return jax.vjp(loss, params, has_aux=True)[1]

    kept = jax.eval_shape(
        residuals, system.abstract_params, batch["image"], target, batch["label"],
        jax.random.key(0),
    )  # fmt: skip
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def memory(config: Config, mesh: Mesh | AbstractMesh, facts: Traced) -> Memory:
    """Bytes of a chip.

    Args:
      config: of the run.
      mesh: of its devices.
      facts: of :func:`traced`.
    """
    splits = rules.shardings(mesh, facts.state)
    parts = {
        name: shard_bytes(getattr(facts.state, name, None), getattr(splits, name, None))
        for name in ("params", "opt_state", "ema")
    }
    images = config.train.batch_size / meshes.batch_shards(mesh)
    at_once = images / config.train.accumulate
    params, side = parts["params"], config.data.image_size
    layer = facts.kept_plain / facts.depth
    return Memory(
        state=parts,
        batch=round(images * (side * side * config.data.channels + 1) * 4),
        gradient=params * (2 if config.train.accumulate > 1 else 1),
        compute_copy=params // 2 if _width(config) == 2 else 0,
        kept=round(facts.kept * at_once),
        working=round(layer * at_once) if facts.recomputes else 0,
    )


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of one device's shards of a tree of shapes."""
    sizes = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


def hbm_bytes(config: Config, mesh: Mesh | AbstractMesh, needs: Memory, facts: Traced) -> float:
    """Bytes that a chip reads and writes in a step."""
    images = config.train.batch_size / meshes.batch_shards(mesh)
    passes = 3 if facts.recomputes else 2
    state = 2 * sum(needs.state.values()) + 2 * needs.gradient + 3 * needs.compute_copy
    return state + passes * facts.kept_plain * images


def collectives(
    config: Config, mesh: Mesh | AbstractMesh, needs: Memory, facts: Traced
) -> list[Collective]:
    """What the chips of a mesh say to each other in a step, all of it hidden if it can be."""
    depth, parts = facts.depth, config.train.accumulate
    shard = needs.state["params"] // 4 * _width(config)  # one device's, as it is computed with
    found = []
    copying = tuple(a for a in COPYING_AXES if mesh.shape[a] > 1)
    fsdp = mesh.shape["fsdp"]
    if copying:
        found.append(_over(mesh, copying, "all-reduce", shard // depth, depth * parts))
    if fsdp > 1:
        layer = shard * fsdp // depth
        found.append(_over(mesh, ("fsdp",), "all-gather", layer, 2 * depth * parts))
        found.append(_over(mesh, ("fsdp",), "reduce-scatter", layer, depth * parts))
    if mesh.shape["tensor"] > 1:
        images = config.train.batch_size / meshes.batch_shards(mesh) / parts
        size = round(images * facts.tokens)
        found.append(_over(mesh, ("tensor",), "all-reduce", size, 4 * depth * parts))
    return found


def _over(
    mesh: Mesh | AbstractMesh, axes: tuple[str, ...], kind: str, size: int, count: int
) -> Collective:
    ids = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    first = ids[tuple(slice(None) if axis in axes else 0 for axis in mesh.shape)]
    return Collective(kind, tuple(map(int, first.ravel())), size, count, asynchronous=True)
