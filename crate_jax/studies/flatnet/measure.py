"""How well a network flattens and rebuilds, in numbers.

An error of the reconstruction says nothing alone: layers that do nothing rebuild perfectly. So it
is measured from the first d principal coordinates of the features, beside the energy outside them
and PCA's error with as many coordinates. All errors are mean squares over points and coordinates,
in the data's own units.
"""

import dataclasses

import jax
import numpy as np

from crate_jax.models.flatnet import DECODER_ORDERS, Stack, decode, encode

BLOCK = 16_384
PAIRS = 1000
"""Points whose pairs the injectivity is measured on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """The first d principal directions of a point cloud.

    Attributes:
      mean: ``(D,)``.
      axes: ``(d, D)``.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, d: int) -> "Projection":
        X = np.asarray(X, np.float64)
        mean = X.mean(axis=0)
        _, vectors = np.linalg.eigh((X - mean).T @ (X - mean))
        return cls(mean, vectors[:, ::-1][:, :d].T)

    def coordinates(self, X: np.ndarray) -> np.ndarray:
        """``(N, d)``."""
        return (X - self.mean) @ self.axes.T

    def lift(self, t: np.ndarray) -> np.ndarray:
        """``(N, D)`` of ``(N, d)``."""
        return t @ self.axes + self.mean

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return self.lift(self.coordinates(X))


class Network:
    """A stack as functions of numpy rows, a block at a time.

    Args:
      stack: the layers.
    """

    def __init__(self, stack: Stack):
        self.stack = stack
        self._encode = jax.jit(lambda X: encode(stack, X))
        self._decode = {
            order: jax.jit(lambda Z, order=order: decode(stack, Z, order))
            for order in DECODER_ORDERS
        }
        self._dtype = np.asarray(stack.centre).dtype

    def encode(self, X: np.ndarray) -> np.ndarray:
        return self._over_blocks(self._encode, X)

    def decode(self, Z: np.ndarray, order: str = "reverse") -> np.ndarray:
        return self._over_blocks(self._decode[order], Z)

    def _over_blocks(self, f, X):
        X = np.asarray(X, self._dtype)
        blocks = [np.asarray(f(X[i : i + BLOCK])) for i in range(0, len(X), BLOCK)]
        return np.concatenate(blocks) if blocks else X


def mean_square(A: np.ndarray, B: np.ndarray) -> float | None:
    """Over all entries; None where there is none."""
    return float(np.mean((A - np.asarray(B, np.float64)) ** 2)) if A.size else None


def injectivity(X: np.ndarray, Z: np.ndarray, rng: np.random.Generator) -> float:
    """The least ``|z_i - z_j| / |x_i - x_j|`` over pairs of different points, of a part of them."""
    chosen = rng.permutation(len(X))[:PAIRS]
    X, Z = np.asarray(X[chosen], np.float64), np.asarray(Z[chosen], np.float64)
    least = np.inf
    for i in range(len(X) - 1):
        far = np.linalg.norm(X[i + 1 :] - X[i], axis=1)
        apart = far > 0
        if apart.any():
            ratio = np.linalg.norm(Z[i + 1 :] - Z[i], axis=1)[apart] / far[apart]
            least = min(least, float(ratio.min()))
    return least


def measure(network: Network, X: np.ndarray, X_test: np.ndarray, d: int, seed: int) -> dict:
    """Everything about a network and d features, JSON-ready.

    Returns:
      ``d``, ``mse_reverse``, ``mse_as_shipped`` (from d features), ``mse_full`` (from all D),
      ``mse_test``, ``mse_pca``, ``mse_pca_test``, ``variance`` (of the data, a mean over entries),
      ``outside`` (energy of the features outside d directions, over all), ``injectivity``, and
      ``singular_values`` of the centred features.
    """
    Z, Z_test = network.encode(X), network.encode(X_test)
    flat, pca = Projection.of(Z, d), Projection.of(X, d)
    centred = np.asarray(Z, np.float64) - flat.mean
    energy = np.sum(centred**2)
    return {
        "d": d,
        **{
            f"mse_{order}": mean_square(network.decode(flat(Z), order), X)
            for order in DECODER_ORDERS
        },
        "mse_full": mean_square(network.decode(Z), X),
        "mse_test": mean_square(network.decode(flat(Z_test)), X_test),
        "mse_pca": mean_square(pca(X), X),
        "mse_pca_test": mean_square(pca(X_test), X_test),
        "variance": mean_square(X, X.mean(axis=0)),
        "outside": float(np.sum((Z - flat(Z)) ** 2) / max(energy, 1e-300)),
        "injectivity": injectivity(X, Z * 1.0, np.random.default_rng(seed)),
        "singular_values": np.linalg.svd(centred, compute_uv=False).tolist()[:50],
    }
