"""The distinct eigenvalues of a large symmetric operator from a few products with it.

A Hessian here has a handful of distinct eigenvalues, each of large multiplicity. The Krylov space
of a random start holds one vector of each eigenspace, so Lanczos' method finds them all, and the
squared weight of the Ritz vectors of an eigenvalue in the start is its multiplicity over the
dimension, up to chance (Golub & Meurant, Matrices, Moments and Quadrature, chapter 4). Where the
space should end rounding takes over, in all eigenspaces anew: the eigenvalues come again and are
joined.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEPS = 60
"""At most."""

SETTLED, JOINED = 1e-7, 1e-8
"""Of the operator's size: the residual of a Ritz pair that is one of the operator, whose value is
then good to its square over the distance of the next; the distance of two values that are one."""

REST, ALLOWED = 1e-12, 1e-6
"""Squared weight in the start of pairs that have not settled: at which to stop, and at most."""


class Spectrum(NamedTuple):
    """Distinct eigenvalues in descending order.

    Attributes:
      values: ``(m,)``.
      counts: ``(m,)`` estimates of their multiplicities.
    """

    values: np.ndarray
    counts: np.ndarray


def distinct_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray], size: int, rng: np.random.Generator
) -> Spectrum:
    """Lanczos' method, orthogonalised twice against all that came before.

    Args:
      product: of a symmetric operator with a vector ``(size,)``.
      size: the dimension.
      rng: of the start, which is normal.

    Raises:
      ArithmeticError: if they have not settled after :data:`STEPS`.
    """
    q = rng.standard_normal(size)
    basis, diagonal, off = [q / np.linalg.norm(q)], [], []
    for _ in range(min(STEPS, size)):
        v = np.asarray(product(basis[-1]), np.float64)
        diagonal.append(float(basis[-1] @ v))
        Q = np.stack(basis)
        for _ in range(2):
            v = v - Q.T @ (Q @ v)
        left = float(np.linalg.norm(v))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        scale, weights = np.abs(values).max(), vectors[0] ** 2
        settled = left * np.abs(vectors[-1]) <= SETTLED * scale
        rest = 1 - weights[settled].sum()
        if rest <= REST or len(basis) == size:
            break
        off.append(left)
        basis.append(v / left)
    if rest > ALLOWED:
        raise ArithmeticError(f"the eigenvalues have not settled after {STEPS} products.")
    return _join(values[settled][::-1], size * weights[settled][::-1], JOINED * scale)


def _join(values: np.ndarray, counts: np.ndarray, gap: float) -> Spectrum:
    """Descending values of which no two are closer than ``gap``."""
    starts = np.flatnonzero(np.append(True, values[:-1] - values[1:] > gap))
    total = np.add.reduceat(counts, starts)
    return Spectrum(np.add.reduceat(values * counts, starts) / total, total)
