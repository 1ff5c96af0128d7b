"""Points on manifolds, for FlatNet: curves, a lifted Swiss roll, Gaussian processes, moved images.

The data sets of arXiv 2305.01777 and of its code's notebooks. Images are seen by their Fourier
transform, real and imaginary parts side by side, of which the first principal coordinates are kept;
:meth:`Manifold.to_images` goes back.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from crate_jax.config import ConfigError, DataConfig, nearest
from crate_jax.data.sources import open_source

COMPONENTS = 100
"""Principal coordinates of an image's Fourier transform that are kept."""

EIGH_POINTS = 10_000
"""Up to so many points a Gaussian process is drawn exactly, as all of the paper's are; beyond by
random Fourier features."""

FEATURES = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Manifold:
    """A data set.

    Attributes:
      name: of the generator.
      X: float64 ``(N, D)``, to be flattened.
      X_test: float64 ``(M, D)``, of the same manifold; M may be 0.
      dim: its dimension; None where that is not known.
      parameters: ``(N, d)``, where on the manifold a point is; None where that is not known.
      colour: ``(N,)``, by which pictures tell the points apart.
      image_shape: (H, W) where points are images, else None.
      basis, mean: of the principal coordinates, ``(K, 2 H W)`` and ``(2 H W,)``.
      scale: what the coordinates were divided by.
    """

    name: str
    X: np.ndarray
    X_test: np.ndarray
    dim: int | None
    parameters: np.ndarray | None
    colour: np.ndarray
    image_shape: tuple[int, int] | None = None
    basis: np.ndarray | None = None
    mean: np.ndarray | None = None
    scale: float = 1.0

    def to_images(self, X: np.ndarray) -> np.ndarray:
        """``(N, D)`` coordinates as images ``(N, H, W)``."""
        H, W = self.image_shape
        parts = (np.asarray(X, np.float64) * self.scale @ self.basis + self.mean).reshape(
            -1, 2, H, W
        )
        return np.fft.ifft2(parts[:, 0] + 1j * parts[:, 1]).real


def load(
    name: str, *, points: int = 0, test: int = 0, ambient: int = 100, dim: int = 2, seed: int = 0,
    digit: int = 2, data_dir: str | None = None, source: str = "tfds:mnist", components: int = 0,
) -> Manifold:  # fmt: skip
    """A data set by name.

    Args:
      name: a key of :data:`MANIFOLDS`.
      points: N; 0 is the set's own number.
      test: M further points of the same manifold.
      ambient, dim: D and d of the Gaussian processes.
      seed: of what is random.
      digit: class of the MNIST sets.
      data_dir, source: where the MNIST sets come from, as in a run's ``config.data``.
      components: principal coordinates of images; 0 is 100.
    """
    if name not in MANIFOLDS:
        raise ConfigError(f"there is no manifold {name!r}{nearest(str(name), MANIFOLDS)}")
    generator, default = MANIFOLDS[name]
    settings = {
        "N": points or default, "M": test, "D": ambient, "d": dim, "digit": digit,
        "data_dir": data_dir, "source": source, "components": components or COMPONENTS,
        "rng": np.random.default_rng(seed),
    }  # fmt: skip
    return generator(settings)


def _sine(s: dict) -> Manifold:
    """``(x, sin x)`` at N points of one period; the test points lie between them."""
    N, M = s["N"], s["M"]
    x = 2 * np.pi * np.arange(N) / N
    x_test = s["rng"].uniform(0, x[-1], M)
    X, X_test = (np.stack([x, np.sin(x)], 1) for x in (x, x_test))
    return Manifold("sine", X, X_test, 1, x[:, None], x)


def _semicircle(s: dict) -> Manifold:
    """An arc of 3/2 pi of the unit circle."""
    N, M = s["N"], s["M"]
    angle = 1.5 * np.pi * np.arange(N) / N
    angle_test = s["rng"].uniform(0, angle[-1], M)
    X, X_test = (np.stack([np.cos(a), np.sin(a)], 1) for a in (angle, angle_test))
    return Manifold("semicircle", X, X_test, 1, angle[:, None], angle)


def _swiss_roll(s: dict) -> Manifold:
    """The Swiss roll with a fourth coordinate ``0.2 (x_1^2 + x_3^2)``, over its RMS entry.

    Flattening compresses: it cannot unroll the roll in three dimensions, where the sheets lie on
    one another. On the paraboloid above it they are apart.
    """
    rng, N, total = s["rng"], s["N"], s["N"] + s["M"]
    t = 1.5 * np.pi * (1 + 2 * rng.uniform(size=total))
    height = 21 * rng.uniform(size=total)
    x1, x3 = t * np.cos(t), t * np.sin(t)
    X = np.stack([x1, height, x3, 0.2 * (x1**2 + x3**2)], 1)
    X /= np.sqrt(np.mean(X[:N] ** 2))
    return Manifold("swiss_roll", X[:N], X[N:], 2, np.stack([t, height], 1)[:N], t[:N])


def gaussian_process(
    P: np.ndarray, D: int, rng: np.random.Generator, scale: float = 1.0
) -> np.ndarray:
    """D independent Gaussian processes over the points ``P: (N, d)``.

    Each has the covariance ``scale^2 / D exp(-|p - p'|^2 / 2)``, so that points have the norm
    ``scale`` on average. One eigendecomposition serves all D; for many points random Fourier
    features approximate the covariance.

    Returns:
      ``(N, D)``.
    """
    N, d = P.shape
    if N <= EIGH_POINTS:
        sq = np.sum(P**2, 1)
        K = np.exp(-np.maximum(sq[:, None] + sq[None] - 2 * P @ P.T, 0) / 2)
        values, vectors = np.linalg.eigh(K)
        root = vectors * np.sqrt(np.maximum(values, 0))
        return scale / np.sqrt(D) * root @ rng.normal(size=(N, D))
    frequencies = rng.normal(size=(d, FEATURES))
    phases = rng.uniform(0, 2 * np.pi, FEATURES)
    weights = scale * np.sqrt(2 / (FEATURES * D)) * rng.normal(size=(FEATURES, D))
    X = np.empty((N, D))
    for start in range(0, N, 8192):
        rows = slice(start, start + 8192)
        X[rows] = np.cos(P[rows] @ frequencies + phases) @ weights
    return X


def _gp(s: dict) -> Manifold:
    """A Gaussian process over the unit cube of d dimensions, in D."""
    P = s["rng"].uniform(size=(s["N"] + s["M"], s["d"]))
    X, N = gaussian_process(P, s["D"], s["rng"]), s["N"]
    return Manifold("gp", X[:N], X[N:], s["d"], P[:N], P[:N, 0])


def _gp_curves(s: dict) -> Manifold:
    """A process of scale 10 over the unit cube: N points of a curve in the plane, or a surface."""
    rng, N, M, d = s["rng"], s["N"], s["M"], s["d"]
    P = rng.uniform(size=(N + M, d))
    X = gaussian_process(P, s["D"], rng, scale=10.0)
    return Manifold("gp_curves", X[:N], X[N:], d, P[:N], P[:N, 0])


SQUARES = {"10/5": (10, 5), "20/10": (20, 10), "25/15": (25, 15)}
"""Image side and the square's side."""


def _squares(side: int, square: int) -> Callable[[dict], Manifold]:
    def make(s: dict) -> Manifold:
        """Every place of a square in a black image; there are no further ones to test on."""
        shifts = side - square
        places = np.stack(np.meshgrid(np.arange(shifts), np.arange(shifts), indexing="ij"), -1)
        places = places.reshape(-1, 2)
        images = np.zeros((len(places), side, side))
        for image, (y, x) in zip(images, places, strict=True):
            image[y : y + square, x : x + square] = 1
        return _of_images("squares", images, len(places), 2, places.astype(float), s["components"])

    return make


def _mnist(s: dict) -> Manifold:
    """Images of one digit; the last of the chosen ones are the test points."""
    images = _digits(s["source"], s["data_dir"], s["digit"], s["N"] + s["M"])
    N = len(images) - s["M"]
    if N < 2:
        raise ConfigError(
            f"there are {len(images)} images of the digit {s['digit']}; config.data.test="
            f"{s['M']} leaves {max(N, 0)} to flatten."
        )
    return _of_images("mnist", images, N, None, None, s["components"])


def _mnist_moves(s: dict) -> Manifold:
    """One digit in 32 x 32, at 20 heights and 30 angles from -45 to 42 degrees; or fewer.

    With N below 600 both are thinned out alike. The places left out are the test points.
    """
    image = _digits(s["source"], s["data_dir"], s["digit"], 1)[0]
    image = np.pad(image, (32 - len(image)) // 2)
    keep = max(1, round(np.sqrt(600 / max(1, min(s["N"], 600)))))
    images, places, chosen = [], [], []
    for a, angle in enumerate(np.arange(-45, 45, 3)):
        M = cv2.getRotationMatrix2D((15.5, 15.5), float(angle), 1.0)
        rotated = cv2.warpAffine(image, M, (32, 32), flags=cv2.INTER_LINEAR)
        for shift in range(20):
            images.append(np.roll(rotated, shift - 10, axis=0))
            places.append((shift - 10, angle))
            chosen.append(a % keep == 0 and shift % keep == 0)
    order = np.argsort(~np.array(chosen), kind="stable")
    N = int(np.sum(chosen))
    total = N + min(s["M"], len(order) - N)
    images, places = np.array(images)[order[:total]], np.array(places, float)[order[:N]]
    made = _of_images("mnist_moves", images, N, 2, places, s["components"])
    rms = float(np.sqrt(np.mean(made.X**2)))
    return dataclasses.replace(made, X=made.X / rms, X_test=made.X_test / rms, scale=rms)


def _digits(source: str, data_dir: str | None, digit: int, count: int) -> np.ndarray:
    """The first images ``(n, H, W)`` of a digit in the training split, from 0 to 1."""
    config = DataConfig(source=source, data_dir=data_dir, image_size=28, channels=1)
    records, images = open_source(config, "train"), []
    for i in range(len(records)):
        record = records[i]
        if int(record["label"]) == digit:
            image = np.asarray(record["image"], np.float64)
            images.append(image.reshape(image.shape[:2]) / 255)
            if len(images) == count:
                break
    if not images:
        raise ConfigError(f"{source} has no image of class {digit}.")
    return np.stack(images)


def _of_images(name, images, N, dim, parameters, components) -> Manifold:
    """Images by the principal coordinates of their Fourier transform; the basis is that of N."""
    H, W = images.shape[1:]
    transformed = np.fft.fft2(images)
    parts = np.stack([transformed.real, transformed.imag], 1).reshape(len(images), -1)
    mean = parts[:N].mean(axis=0)
    _, _, basis = np.linalg.svd(parts[:N] - mean, full_matrices=False)
    basis = basis[: min(components, N - 1)]
    X = (parts - mean) @ basis.T
    colour = np.arange(N) if parameters is None else parameters[:, 0]
    return Manifold(name, X[:N], X[N:], dim, parameters, colour, (H, W), basis, mean)


MANIFOLDS: dict[str, tuple[Callable[[dict], Manifold], int]] = {
    "sine": (_sine, 50),
    "semicircle": (_semicircle, 50),
    "gp_curves": (_gp_curves, 50),
    "swiss_roll": (_swiss_roll, 3000),
    "gp": (_gp, 2000),
    **{
        f"squares_{side}_{square}": (_squares(side, square), 0) for side, square in SQUARES.values()
    },
    "mnist": (_mnist, 10_000),
    "mnist_moves": (_mnist_moves, 600),
}
"""Name to its generator and its own number of points."""
