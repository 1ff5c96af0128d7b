"""Nearest-neighbour estimates of the dimension of a point cloud, to compare with."""

import numpy as np

NEIGHBOURS = 20
"""Of the maximum-likelihood estimate."""

KEPT = 0.9
"""Share of the ratios that TwoNN fits; the largest are left out."""

BLOCK = 512


def nearest_distances(X: np.ndarray, k: int) -> np.ndarray:
    """Distances to the k nearest other points, rising; ``(N, k)`` of ``X: (N, D)``."""
    X = np.asarray(X, np.float64)
    sq, out = np.sum(X**2, axis=1), np.empty((len(X), k))
    for start in range(0, len(X), BLOCK):
        x = X[start : start + BLOCK]
        far = sq[start : start + BLOCK, None] + sq[None] - 2 * x @ X.T
        far[np.arange(len(x)), start + np.arange(len(x))] = np.inf
        near = np.argpartition(far, k - 1, axis=1)[:, :k]
        exact = np.linalg.norm(x[:, None] - X[near], axis=-1)
        out[start : start + BLOCK] = np.sort(exact, axis=1)
    return out


def maximum_likelihood(X: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Levina and Bickel's estimate (NIPS 2004), averaged as MacKay and Ghahramani propose.

    The inverse of the mean over points and neighbours of ``log(T_k / T_j)``, j < k. Each logarithm
    is 1 / d on average. The factor (k - 2) / (k - 1) is for a mean of the points' own estimates:
    a mean of their inverses has no bias to take away.
    """
    T = nearest_distances(X, min(k, len(X) - 1))
    T = T[T[:, 0] > 0]
    if len(T) == 0 or T.shape[1] < 2:
        return float("nan")
    logs = np.log(T[:, -1:] / T[:, :-1])
    return float(1 / np.mean(logs)) if logs.any() else float("nan")


def two_nearest(X: np.ndarray) -> float:
    """TwoNN (Facco et al., Sci. Rep. 7, 2017): ``-log(1 - F)`` is linear in ``log(T_2 / T_1)``.

    The slope of the line through the origin over the lower :data:`KEPT` of the ratios.
    """
    T = nearest_distances(X, 2)
    T = T[T[:, 0] > 0]
    if len(T) < 10:
        return float("nan")
    x = np.sort(np.log(T[:, 1] / T[:, 0]))
    F = np.arange(len(x)) / len(x)
    kept = slice(0, int(KEPT * len(x)))
    x, y = x[kept], -np.log(1 - F[kept])
    return float(x @ y / (x @ x)) if x @ x > 0 else float("nan")
