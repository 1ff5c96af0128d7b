"""What a game is played on: batches of labelled samples, or what linear players see of them.

A linear player sees a class of a batch only through its second moment ``S_j = X_j^T X_j / n_j``. So
the class is replaced by as many rows as it has dimensions, with the same second moment: exact, and
for five-dimensional classes the log-determinants shrink from 40 x 40 to 10 x 10.
"""

from typing import NamedTuple

import jax
import numpy as np

RELATIVE_EIGENVALUE = 1e-13
"""Eigenvalues of a second moment below this fraction of the largest are rounding."""


class Moments(NamedTuple):
    """Classes as linear players see them; leading axes may be those of several batches.

    Attributes:
      rows: ``(..., K, r, d_x)`` with ``rows_j^T rows_j / r = S_j``; zero for an absent class.
      share: ``(..., K)``, ``n_j / n``.
    """

    rows: jax.Array | np.ndarray
    share: jax.Array | np.ndarray


class Labelled(NamedTuple):
    """Samples with their classes; leading axes may be those of several batches.

    Attributes:
      X: ``(..., N, d_x)``.
      y: ``(..., N)``.
    """

    X: jax.Array | np.ndarray
    y: jax.Array | np.ndarray


def batch_order(
    N: int, batch: int, epochs: int, shuffle: bool, rng: np.random.Generator
) -> np.ndarray:
    """Indices ``(T, B)`` of the samples of every batch; what fills no batch is left out.

    Args:
      N: samples.
      batch: samples a batch, 0 for all; then the order does not matter and is kept.
      epochs: passes over the samples.
      shuffle: whether every epoch permutes them.
      rng: draws the permutations.
    """
    whole = not batch
    batch = batch or N
    each = N // batch
    orders = [rng.permutation(N) if shuffle and not whole else np.arange(N) for _ in range(epochs)]
    return np.stack([order[: each * batch].reshape(each, batch) for order in orders]).reshape(
        -1, batch
    )


def class_rows(X: np.ndarray, y: np.ndarray, num_classes: int, order: np.ndarray) -> int:
    """How many rows a class needs in any batch: its dimension, or its samples where these are less.

    Args:
      X: ``(N, d_x)``, all samples.
      y: ``(N,)``.
      num_classes: K.
      order: of :func:`batch_order`.
    """
    needed = 1
    for j in range(num_classes):
        members = X[y == j]
        most = int((y[order] == j).sum(axis=1).max(initial=0))
        if most > needed:
            side = members if len(members) < members.shape[1] else members.T
            eigenvalues = np.linalg.eigvalsh(side @ side.T)
            rank = int((eigenvalues > RELATIVE_EIGENVALUE * eigenvalues[-1]).sum())
            needed = max(needed, min(most, rank))
    return needed


def moments(X: np.ndarray, y: np.ndarray, num_classes: int, rows: int) -> Moments:
    """The classes of one batch.

    Args:
      X: ``(N, d_x)``.
      y: ``(N,)``.
      num_classes: K.
      rows: r, of :func:`class_rows`.
    """
    out = np.zeros((num_classes, rows, X.shape[1]))
    for j in range(num_classes):
        members = X[y == j]
        if not len(members):
            continue
        if len(members) > rows:
            if len(members) > members.shape[1]:
                members = np.linalg.qr(members, mode="r")
            _, s, Vt = np.linalg.svd(members, full_matrices=False)
            members = s[:rows, None] * Vt[:rows]
        out[j, : len(members)] = members * np.sqrt(rows / (y == j).sum())
    return Moments(out, np.bincount(y, minlength=num_classes)[:num_classes] / len(y))


def take(X, y, num_classes: int, chosen: np.ndarray, rows: int | None, dtype):
    """One batch of an order: :class:`Moments`, or :class:`Labelled` without ``rows``."""
    if rows is None:
        return Labelled(X[chosen].astype(dtype), y[chosen].astype(np.int32))
    batch = moments(X[chosen], y[chosen], num_classes, rows)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), batch)
