"""Numbers about samples, features and what is made of them, in float64."""

import numpy as np

from crate_jax.interpret import subspaces

PAIRS = 200_000
"""Most pairs of samples whose distances are compared."""


def top_directions(Z: np.ndarray, dim: int) -> np.ndarray:
    """The first right singular vectors of rows ``Z: (N, d)``, as columns ``(d, dim)``."""
    return np.linalg.svd(np.asarray(Z, np.float64), full_matrices=False)[2][:dim].T


def column_space(Z: np.ndarray) -> np.ndarray:
    """The released code's basis of the span of rows: QR without pivoting, as many as the rank.

    With any noise the span is everything and residuals from it are 0; and where the first rows are
    dependent it misses directions.
    """
    Q = np.linalg.qr(np.asarray(Z, np.float64).T)[0]
    return Q[:, : np.linalg.matrix_rank(np.asarray(Z, np.float64))]


def residuals(X: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """``||x - P x||`` of every row, P the projector on orthonormal columns ``basis``; ``(N,)``."""
    return np.linalg.norm(X - (X @ basis) @ basis.T, axis=1)


def class_residuals(X, Z, y, dims, kind: str = "top") -> list[np.ndarray]:
    """Residuals of each class of X from the span of the same class of Z.

    Args:
      X: ``(N, d)``.
      Z: ``(N, d)``.
      y: ``(N,)``.
      dims: dimension of each class.
      kind: ``top`` (the first ``dims[j]`` principal directions) or ``published``
        (:func:`column_space`).
    """
    out = []
    for j, dim in enumerate(dims):
        Zj = Z[y == j]
        basis = top_directions(Zj, dim) if kind == "top" else column_space(Zj)
        out.append(residuals(X[y == j], basis))
    return out


def relative_residual(X, Z, y, dims) -> float:
    """Root mean square of the ``top`` residuals over that of the samples; 0 to 1."""
    parts = np.concatenate(class_residuals(X, Z, y, dims))
    kept = np.concatenate([X[y == j] for j in range(len(dims))])
    return float(np.linalg.norm(parts) / np.linalg.norm(kept))


def mean_cosine_between(Z, y) -> float:
    """Mean ``|cos|`` of two rows of different classes; nan where there are none."""
    apart = y[:, None] != y[None, :]
    return float(np.abs(subspaces.cosines(Z))[apart].mean()) if apart.any() else float("nan")


def largest_principal_cosine(Z, y, dims) -> float:
    """Largest cosine between the top principal subspaces of two classes; 0 is orthogonal."""
    bases = [top_directions(Z[y == j], dim) for j, dim in enumerate(dims)]
    return max(
        (
            float(np.linalg.norm(bases[i].T @ bases[j], ord=2))
            for i in range(len(dims))
            for j in range(i)
        ),
        default=0.0,
    )


def largest_span_sine(A, B, y, dims) -> float:
    """Sine of the largest angle between the spans of the same class in A and B; 0 is equal."""
    sines = [0.0]
    for j, dim in enumerate(dims):
        a, b = top_directions(A[y == j], dim), top_directions(B[y == j], dim)
        sines.append(float(np.linalg.norm(a - b @ (b.T @ a), ord=2)))
    return max(sines)


def anisotropy(Z, y, dims) -> float:
    """Largest ``|sigma / sqrt(||Z_j||^2 / d_j) - 1|`` over the top ``d_j`` singular values."""
    worst = 0.0
    for s, dim in zip(subspaces.class_spectra(Z, y, len(dims)), dims, strict=True):
        level = np.sqrt((s**2).sum() / dim)
        worst = max(worst, float(np.abs(s[:dim] / level - 1).max()))
    return worst


def renormalised(Z, y, num_classes: int) -> np.ndarray:
    """Features scaled so that ``||Z_j||_F^2 = n_j`` in every class."""
    Z = np.array(Z, np.float64)
    for j in range(num_classes):
        energy = (Z[y == j] ** 2).sum()
        if energy > 0:
            Z[y == j] *= np.sqrt((y == j).sum() / energy)
    return Z


def rate(Z, eps_sq: float) -> float:
    """``R(Z) = 1/2 logdet(I + d/(N eps^2) Z^T Z)``, from the singular values."""
    s = subspaces.singular_values(Z)
    N, d = Z.shape
    return float(0.5 * np.log1p(d / (N * eps_sq) * s**2).sum())


def rate_reduction(Z, y, num_classes: int, eps_sq: float) -> float:
    """``Delta R(Z | Pi)``, from the singular values."""
    shares = [(y == j).mean() for j in range(num_classes)]
    parts = [p * rate(Z[y == j], eps_sq) for j, p in enumerate(shares) if p]
    return rate(Z, eps_sq) - sum(parts)


def isometry_ratios(X, Z, seed: int = 0) -> np.ndarray:
    """``||z - z'|| / ||x - x'||`` over all pairs of rows, or :data:`PAIRS` random ones."""
    i, j = np.triu_indices(len(X), 1)
    if len(i) > PAIRS:
        chosen = np.random.default_rng(seed).choice(len(i), PAIRS, replace=False)
        i, j = i[chosen], j[chosen]
    before = np.linalg.norm(X[i] - X[j], axis=1)
    after = np.linalg.norm(Z[i] - Z[j], axis=1)
    return after[before > 0] / before[before > 0]
