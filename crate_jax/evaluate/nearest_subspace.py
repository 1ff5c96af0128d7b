"""Nearest-subspace classification: the class whose principal subspace leaves the least residual.

    k(z) = argmin_k || (I - V_k V_k^T) (z - mu_k) ||

V_k are the first right singular vectors of the class's training features. ``svd`` takes them as
they are (mu_k = 0), ``pca`` about the class's mean; MCR^2's released code gives both.
"""

import numpy as np

from crate_jax.evaluate.probe import Probe


def fit(
    Z: np.ndarray, labels: np.ndarray, num_classes: int, *, components: int, centered: bool
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Mean ``(d,)`` and basis ``(d, r)`` of each class; None for one without samples.

    Args:
      Z: ``(N, d)`` features.
      labels: integers ``(N,)``.
      num_classes: K.
      components: r, less where a class has fewer samples or dimensions.
      centered: take the mean off.
    """
    subspaces = []
    for k in range(num_classes):
        Z_k = np.asarray(Z[labels == k], np.float64)
        if not len(Z_k):
            subspaces.append(None)
            continue
        mean = Z_k.mean(axis=0) if centered else np.zeros(Z_k.shape[1])
        V = np.linalg.svd(Z_k - mean, full_matrices=False)[2][:components].T
        subspaces.append((mean, V))
    return subspaces


def residuals(Z: np.ndarray, subspaces) -> np.ndarray:
    """Distances ``(N, K)`` of the rows of Z from the affine subspaces; infinite where none is."""
    columns = []
    for subspace in subspaces:
        if subspace is None:
            columns.append(np.full(len(Z), np.inf))
            continue
        mean, V = subspace
        centered = np.asarray(Z, np.float64) - mean
        columns.append(np.linalg.norm(centered - (centered @ V) @ V.T, axis=1))
    return np.stack(columns, axis=1)


def accuracy(train, test, num_classes: int, *, components: int, centered: bool) -> float:
    """Fraction of the test samples nearest to their own class's subspace."""
    subspaces = fit(
        train.Z, train.labels, num_classes, components=components, centered=centered
    )  # fmt: skip
    return float(np.mean(residuals(test.Z, subspaces).argmin(axis=1) == test.labels))


def evaluate(probe: Probe) -> dict[str, float]:
    """Test accuracies of both versions."""
    settings = {
        "num_classes": probe.config.data.num_classes,
        "components": probe.config.evaluate.components,
    }
    return {
        f"{name}_accuracy": accuracy(probe.train, probe.test, centered=centered, **settings)
        for name, centered in (("svd", False), ("pca", True))
    }
