"""The samples of each class side by side, for many classes.

A one-hot contraction spends ``K N d^2`` operations on the Gram matrices of K classes, of which all
but one part in K multiply zeros. Here the rows of a class are moved next to each other, into blocks
of a fixed size whose empty rows are zero, and every row is multiplied once: ``(N + K d) d^2``.
Classes are integers; everything is differentiable any number of times, forwards and backwards.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_HIGHEST = jax.lax.Precision.HIGHEST

FEW_CLASSES = 16
"""Up to so many classes the one-hot contraction is as fast."""

SMALL_WORK = 2**26
"""Below so many multiplications, ``K N d^2``, the one-hot contraction is as fast."""


def worth_it(Z: ArrayLike, labels: ArrayLike, num_classes: int) -> bool:
    """Whether to sort the samples: one set of many samples ``(N, d)`` in many integer classes."""
    if jnp.ndim(Z) != 2 or jnp.shape(labels) != jnp.shape(Z)[:1]:
        return False
    if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        return False
    N, d = jnp.shape(Z)
    return num_classes > FEW_CLASSES and num_classes * N * d * d >= SMALL_WORK


def room(N: int, num_classes: int) -> int:
    """Twice the mean size of a class, in whole eights."""
    return -(-2 * N // (8 * num_classes)) * 8


def counts(labels: ArrayLike, num_classes: int) -> Array:
    """Integer sizes ``(K,)`` of the classes; a label outside [0, K) is of none."""
    return jnp.bincount(_in_range(labels, num_classes), length=num_classes + 1)[:-1]


def stacked(Z: Array, labels: ArrayLike, num_classes: int, rows: int) -> tuple[Array, Array]:
    """Sizes ``(K,)``, in Z's dtype, and samples ``(K, rows, d)`` of the classes, zeros behind them.

    A class with more samples than ``rows`` loses the rest.
    """
    labels, rank, sizes = _ranked(labels, num_classes)
    slot = jnp.where(rank < rows, labels * rows + rank, num_classes * rows)
    flat = jnp.zeros((num_classes * rows, Z.shape[-1]), Z.dtype).at[slot].set(Z, mode="drop")
    return sizes.astype(Z.dtype), flat.reshape(num_classes, rows, Z.shape[-1])


def grams(Z: Array, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Sizes ``(K,)``, in Z's dtype, and Gram matrices ``Z_k^T Z_k (K, d, d)`` of the classes."""
    N, d = Z.shape
    labels, rank, sizes = _ranked(labels, num_classes)
    blocks = -(-sizes // d)
    last = jnp.cumsum(blocks)
    most = -(-N // d) + num_classes
    first = jnp.concatenate([last - blocks, jnp.array([most], last.dtype)])
    slot = first[labels] * d + rank  # beyond the end for a label of no class
    Z_blocks = jnp.zeros((most * d, d), Z.dtype).at[slot].set(Z, mode="drop").reshape(most, d, d)
    block_grams = jnp.einsum("bni,bnj->bij", Z_blocks, Z_blocks, precision=_HIGHEST)
    owner = jnp.searchsorted(last, jnp.arange(most), side="right")
    sums = jax.ops.segment_sum(block_grams, owner, num_classes + 1, indices_are_sorted=True)
    return sizes.astype(Z.dtype), sums[:-1]


def _in_range(labels, num_classes):
    labels = jnp.asarray(labels)
    return jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)


def _ranked(labels, num_classes):
    """Labels with K for none, the rank of each sample in its class, and the sizes ``(K,)``."""
    labels = _in_range(labels, num_classes)
    sizes = jnp.bincount(labels, length=num_classes + 1)
    order = jnp.argsort(labels, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    return labels, place - (jnp.cumsum(sizes) - sizes)[labels], sizes[:-1]
