"""Muon for the matrices inside layers, AdamW for everything else."""

import math

import optax
from flax import traverse_util
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from crate_jax.optim.layerwise import STACK, per_layer

_HEADS_LAST = ("subspaces", "query", "key", "value")


def muon(*, momentum: float, ns_steps: int, b1: float, b2: float, eps: float):
    """Orthogonalised momentum (Jordan et al. 2024), before decay and learning rate.

    The kernel ``(d, K, p)`` of all subspaces is one matrix ``d x Kp``, an output map ``(K, p, d)``
    one ``Kp x d``. An update is scaled by ``sqrt(max(1, columns / rows))``. Embeddings, heads,
    norms and biases go by Adam.
    """

    def labels(params):
        flat = traverse_util.flatten_dict(params)
        return traverse_util.unflatten_dict(
            {path: "muon" if _is_hidden_matrix(path) else "adam" for path in flat}
        )

    orthogonal = optax.chain(
        scale_by_muon(ns_steps=ns_steps, beta=momentum, weight_dimension_numbers=_dimensions),
        optax.stateless(_scale_by_shape),
    )
    return optax.partition(
        {"muon": per_layer(orthogonal), "adam": optax.scale_by_adam(b1, b2, eps)}, labels
    )


def _is_hidden_matrix(path) -> bool:
    inside = any(name == STACK or name.startswith(f"{STACK}_") for name in path)
    return inside and path[-1] in ("kernel", "D", "D1")


def _axes(name: str, ndim: int) -> MuonDimensionNumbers:
    """Rows and columns of a leaf by its path ``a/b/c``."""
    split = 1 if ndim == 2 or name.split("/")[-2] in _HEADS_LAST else ndim - 1
    return MuonDimensionNumbers(tuple(range(split)), tuple(range(split, ndim)))


def _is_empty(leaf) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _dimensions(params):
    return {
        name: leaf if _is_empty(leaf) else _axes(name, leaf.ndim) for name, leaf in params.items()
    }


def _scale_by_shape(updates, params):
    del params

    def scaled(name, update):
        if _is_empty(update):
            return update
        axes = _axes(name, update.ndim)
        rows, columns = (
            math.prod(update.shape[a] for a in group)
            for group in (axes.reduction_axis, axes.output_axis)
        )
        return update * max(1.0, columns / rows) ** 0.5

    return {name: scaled(name, update) for name, update in updates.items()}
