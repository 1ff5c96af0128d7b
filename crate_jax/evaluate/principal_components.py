"""Class-wise principal components of features on the sphere: spectra, walks, and samples."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Components:
    """Principal components of one class.

    Attributes:
      mean: ``(d,)``.
      basis: ``(r, d)``, orthonormal rows.
      deviations: ``(r,)``, standard deviations along them, descending.
    """

    mean: np.ndarray
    basis: np.ndarray
    deviations: np.ndarray


def fit(Z: np.ndarray, count: int) -> Components:
    """Components of features ``(N, d)``, at most ``count``, or as many as there are."""
    Z = np.asarray(Z, np.float64)
    mean = Z.mean(axis=0)
    _, s, basis = np.linalg.svd(Z - mean, full_matrices=False)
    return Components(mean, basis[:count], s[:count] / np.sqrt(max(len(Z) - 1, 1)))


def walk(components: Components, index: int, reach: float, steps: int) -> np.ndarray:
    """Unit features from ``-reach`` to ``reach`` deviations along a component, ``(steps, d)``."""
    t = np.linspace(-reach, reach, steps)[:, None] * components.deviations[index]
    return _unit(components.mean + t * components.basis[index])


def sample(components: Components, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit features ``(count, d)`` from the Gaussian of the class's mean and components."""
    coordinates = rng.normal(size=(count, len(components.deviations))) * components.deviations
    return _unit(components.mean + coordinates @ components.basis)


def _unit(Z: np.ndarray) -> np.ndarray:
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
