"""Which axis of which parameter is split over which axis of the mesh, by the parameter's path.

A rule gives the last axes of a leaf names (``embed`` for the width, ``heads``, ``atoms``,
``classes``), and :data:`MESH_AXES` says where a name goes. Leading axes (stacked layers) stay
whole, and so does an axis that its mesh axis does not divide.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = {"embed": "fsdp", "heads": "tensor", "atoms": "tensor", "classes": "tensor", None: None}

RULES = {
    "subspaces/kernel": ("embed", "heads", None),
    "query/kernel": ("embed", "heads", None),
    "key/kernel": ("embed", "heads", None),
    "value/kernel": ("embed", "heads", None),
    "query/bias": ("heads", None),
    "key/bias": ("heads", None),
    "value/bias": ("heads", None),
    "out/kernel": ("heads", None, "embed"),
    "out/bias": (None,),
    "D": ("embed", "atoms"),
    "D1": ("embed", "atoms"),
    "up/kernel": ("embed", "atoms"),
    "up/bias": ("atoms",),
    "down/kernel": ("atoms", "embed"),
    "down/bias": (None,),
    "embed/kernel": ("embed",),
    "embed/bias": (None,),
    "head/kernel": ("embed", "classes"),
    "head/bias": ("classes",),
    "cls_token": (None,),
    "pos_embedding": ("embed",),
    "scale": (None,),
    "norm/bias": (None,),
    "norm_attention/bias": (None,),
    "norm_ista/bias": (None,),
    "norm_mlp/bias": (None,),
    "norm_pixels/bias": (None,),
    "norm_tokens/bias": (None,),
    "stem/kernel": ("embed",),
    "conv1/kernel": ("embed",),
    "conv2/kernel": ("embed",),
    "shortcut/kernel": ("embed",),
    "hidden/kernel": ("embed",),
    "features/kernel": ("embed", None),
    "features/bias": (None,),
    "norm1/bias": (None,),
    "norm2/bias": (None,),
    "norm_stem/bias": (None,),
    "norm_shortcut/bias": (None,),
    "norm_hidden/bias": (None,),
    "mean": (None,),
    "var": (None,),
    **{f"stage_{i}/kernel": ("embed",) for i in range(6)},
    **{f"stage_{i}/atoms": ("embed",) for i in range(6)},
    **{f"norm_{i}/bias": (None,) for i in range(6)},
    "step_size": (),
    "vector": (None,),
    "u": (None,),
    "conv1/bias": (None,),
    "conv2/bias": (None,),
    "shortcut/bias": (None,),
    "expand/kernel": ("embed",),
    "expand/bias": (None,),
    "to_image/kernel": (None,),
    "to_image/bias": (None,),
    "layer_scale_attention": (None,),
    "layer_scale_ista": (None,),
}
"""Path endings to the names of the last axes."""


_FACTORS = frozenset({"v_row", "v_col"})  # Adafactor's, with fewer axes than their parameter


def rule(path: str) -> tuple[str | None, ...] | None:
    """The names of the last axes of the leaf at ``a/b/c``, or None where no rule speaks of it."""
    *_, parent, name = ("", *path.split("/"))
    return RULES.get(f"{parent}/{name}", RULES.get(name))


def name_of(path: tuple) -> str:
    """The place of a leaf in a pytree as ``a/b/c``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree) -> dict[str, Any]:
    """The leaves of a pytree by their places, ``{"a/b/c": leaf}``."""
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def shardings(mesh: Mesh, tree):
    """The sharding of every leaf of a state, its optimizer's moments and averages included.

    A leaf of the optimizer goes by the parameter at the end of its path where it has the axes of
    the rule; Adafactor's factors have fewer and stay whole.

    Args:
      mesh: see ``mesh.create_mesh``.
      tree: arrays or their shapes.
    """

    def of(path, leaf):
        name = name_of(path)
        names = rule(name) or ()
        parts = name.split("/")
        axes = leaf.ndim - ("blocks" in parts)  # without that of stacked layers
        if len(names) > axes or _FACTORS.intersection(parts):
            names = ()
        first = leaf.ndim - len(names)
        spec = [None] * first
        for size, axis_name in zip(leaf.shape[first:], names, strict=True):
            axis = MESH_AXES[axis_name]
            divides = axis is not None and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1
            spec.append(axis if divides else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(of, tree)
