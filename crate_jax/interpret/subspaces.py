"""How features lie in subspaces, a class each: spectra, ranks, angles.

Features are rows, ``Z: (N, d)``, of numpy or jax; what is returned is numpy in float64. These are
the numbers that rate reduction is about (MCR^2, Yu et al. 2020; its closed-loop games): each class
fills a subspace with equal singular values, and subspaces of different classes are orthogonal.
"""

from collections.abc import Sequence

import numpy as np


def singular_values(Z) -> np.ndarray:
    """Singular values of features ``Z: (N, d)``; ``(min(N, d),)``, descending."""
    return np.linalg.svd(_float64(Z), compute_uv=False)


def class_spectra(Z, labels, num_classes: int) -> list[np.ndarray]:
    """Singular values of the features of every class, by class.

    Args:
      Z: ``(N, d)``.
      labels: integers ``(N,)``; rows with a label outside [0, K) belong to no class.
      num_classes: K.

    Returns:
      K arrays ``(min(N_k, d),)``, descending; an empty one for a class without members.
    """
    Z, labels = _float64(Z), np.asarray(labels)
    return [singular_values(Z[labels == k]) for k in range(num_classes)]


def numerical_rank(s, rel: float = 1e-2, largest: float | None = None) -> int:
    """How many singular values ``s`` exceed ``rel`` times the largest of them.

    Args:
      s: ``(r,)``, in any order.
      rel: the threshold, as a fraction.
      largest: what it is a fraction of, instead of ``max(s)``: classes that are compared want one
        scale, or a class that has vanished would be measured against its own rounding.
    """
    s = _float64(s)
    if not s.size:
        return 0
    return int((s > rel * (s.max() if largest is None else largest)).sum())


def class_ranks(
    Z, labels, num_classes: int, rel: float = 1e-2, largest: float | None = None
) -> list[int]:
    """:func:`numerical_rank` of every class; arguments as there and in :func:`class_spectra`."""
    return [numerical_rank(s, rel, largest) for s in class_spectra(Z, labels, num_classes)]


def cosines(A, B=None) -> np.ndarray:
    """Cosine of every row of ``A: (n, d)`` with every row of ``B: (m, d)``, ``A`` itself if None.

    Returns:
      ``(n, m)``; a zero row has cosine 0 with all.
    """
    A = _unit_rows(A)
    return A @ (A if B is None else _unit_rows(B)).T


def max_cosine_between(Z, labels, num_classes: int) -> float:
    """Largest ``|cos|`` of two rows of different classes; 0 where there are no two classes.

    Args:
      Z: ``(N, d)``.
      labels: integers ``(N,)``; rows with a label outside [0, K) are left out.
      num_classes: K.
    """
    labels = np.asarray(labels)
    member = (labels >= 0) & (labels < num_classes)
    labels = labels[member]
    apart = labels[:, None] != labels[None, :]
    return float(np.abs(cosines(_float64(Z)[member])).max(initial=0.0, where=apart))


def principal_cosine(A, B, rank_a: int, rank_b: int) -> float:
    """Cosine of the smallest angle between the principal subspaces of two sets of rows.

    Args:
      A, B: ``(n, d)`` and ``(m, d)``.
      rank_a, rank_b: how many right singular vectors, of the largest singular values, span each.

    Returns:
      The largest singular value of ``V_A^T V_B``: 0 where the subspaces are orthogonal or one of
      them is empty, 1 where they share a direction.
    """
    basis_a = np.linalg.svd(_float64(A), full_matrices=False)[2][:rank_a]
    basis_b = np.linalg.svd(_float64(B), full_matrices=False)[2][:rank_b]
    if not len(basis_a) or not len(basis_b):
        return 0.0
    return float(np.linalg.norm(basis_a @ basis_b.T, ord=2))


def label_order(labels: Sequence[int]) -> np.ndarray:
    """The permutation that sorts rows by label and keeps the order within one."""
    return np.argsort(np.asarray(labels), kind="stable")


def _float64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def _unit_rows(Z) -> np.ndarray:
    Z = _float64(Z)
    norm = np.linalg.norm(Z, axis=1, keepdims=True)
    return Z / np.where(norm > 0, norm, 1.0)
