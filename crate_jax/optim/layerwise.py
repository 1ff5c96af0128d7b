"""Optimizers that look at a leaf's shape or norm, under stacked layers.

A scanned stack keeps all its layers in one leaf. Lamb, Lars, Adafactor and Muon would take that
for one big tensor; :func:`per_layer` gives every layer to them by itself.
"""

import jax
import optax
from flax import traverse_util

STACK = "blocks"
"""The path component under which leaves have a leading layer axis."""


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx``, mapped over the layer axis of every leaf under a path component ``blocks``."""

    def init(params):
        rest, layers = _split(params)
        return {"rest": tx.init(rest), "layers": jax.vmap(tx.init)(layers) if layers else ()}

    def update(updates, state, params=None):
        (rest, layers), (rest_p, layers_p) = _split(updates), _split(params)
        rest, rest_state = tx.update(rest, state["rest"], rest_p)
        layers_state = state["layers"]
        if layers:
            layers, layers_state = jax.vmap(tx.update)(layers, layers_state, layers_p)
        return _join(rest, layers), {"rest": rest_state, "layers": layers_state}

    return optax.GradientTransformation(init, update)


def _split(tree):
    """The leaves outside stacks and those inside, each a flat dict by ``a/b/c``."""
    flat = traverse_util.flatten_dict(tree, sep="/", keep_empty_nodes=True)
    parts = {True: {}, False: {}}
    for path, leaf in flat.items():
        parts[STACK in path.split("/")][path] = leaf
    return parts[False], parts[True]


def _join(rest, layers):
    return traverse_util.unflatten_dict({**rest, **layers}, sep="/")
