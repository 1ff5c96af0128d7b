"""Softmax cross-entropy against soft targets."""

import jax
import jax.numpy as jnp
from jax import Array


def targets(label_B: Array, num_classes: int, *, on: float, off: float) -> Array:
    """``(B, C)`` float32 targets: ``on`` at the label, ``off`` elsewhere."""
    return jax.nn.one_hot(label_B, num_classes) * (on - off) + off


def smoothed(label_smoothing: float, num_classes: int) -> dict[str, float]:
    """The ``on`` and ``off`` of label smoothing s: ``1 - s + s/C`` and ``s/C`` (torch's rule)."""
    off = label_smoothing / num_classes
    return {"on": 1.0 - label_smoothing + off, "off": off}


def cross_entropy(logits_BC: Array, target_BC: Array) -> Array:
    """``-sum_c t_c log softmax(logits)_c`` for each example, ``(B,)``, in float32 or better."""
    logits_BC = logits_BC.astype(jnp.promote_types(logits_BC.dtype, jnp.float32))
    return -jnp.sum(target_BC * jax.nn.log_softmax(logits_BC, axis=-1), axis=-1)
