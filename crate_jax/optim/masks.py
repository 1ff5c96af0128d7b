"""Which parameters decay, by path: shapes mislead where layers are stacked."""

from collections.abc import Mapping

from flax import traverse_util

RULES = ("all", "matrices", "kernels")

_MATRICES = ("kernel", "embedding", "D", "D1")


def decay_mask(params: Mapping, rule: str):
    """A tree of booleans like ``params``.

    Args:
      params: nested dict.
      rule: ``all``; ``matrices`` (kernels, dictionaries D and D1, embedding tables; never biases,
        norms, class token, positions); or ``kernels`` (names that end in ``kernel``:
        CRATE-alpha's rule, by which dictionaries do not decay).
    """
    names = {"matrices": _MATRICES, "kernels": ("kernel",)}.get(rule)
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: names is None or path[-1] in names for path in flat})
