"""Layers alone, and ``random_params``: weights that no initialiser gives, so each one shows."""

import jax
import numpy as np


def random_params(module, *args, seed=0, scale=0.4):
    """Float64 parameters ``N(0, scale^2)`` in numpy, LayerNorm's scales around one."""
    shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return rng.normal(path[-1].key == "scale", scale, leaf.shape)

    return jax.tree.map_with_path(draw, shapes)
