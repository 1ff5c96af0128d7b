"""Samples near one or several subspaces: the synthetic data of CTRL-SSP and CTRL-MSP.

The law is that of the released code of arXiv 2206.09120, drawn by numpy in float64. The classes of
several subspaces choose their directions from one pool of ``max_j d_j`` orthonormal ones and mix
them with noise, so they are correlated and, as a rule, independent: ``rank X = sum_j d_j``.
"""

import dataclasses

import numpy as np

from crate_jax.config import ConfigError

MIXINGS = ("blend", "perturb")


@dataclasses.dataclass(frozen=True)
class SubspaceLaw:
    """What is drawn.

    Attributes:
      sizes: samples n_j of each class; one entry for a single subspace.
      dims: dimensions d_j of the subspaces.
      ambient: dimension d_x of a sample.
      mixing: ``blend``, ``U_j' = (1 - a) U_j + a W`` with a Gaussian ``W (d_x, d_j)``, or
        ``perturb`` of the conference version, ``U_j' = (I + a W) U_j`` with ``W (d_x, d_x)``, whose
        columns are scaled to unit length too. A single subspace is not mixed.
      amount: a; for ``perturb`` 0.1 gives correlated subspaces and 1e6 incoherent ones.
      noise: expected squared norm of the noise of a sample (the paper's nu).
      outliers: fraction of the samples that are Gaussian noise instead.
      outlier_energy: their expected squared norm.
      label_corruption: fraction of the labels drawn anew, the right one possible.
    """

    sizes: tuple[int, ...] = (500, 500, 500)
    dims: tuple[int, ...] = (3, 4, 5)
    ambient: int = 50
    mixing: str = "blend"
    amount: float = 0.1
    noise: float = 0.0
    outliers: float = 0.0
    outlier_energy: float = 0.0
    label_corruption: float = 0.0


@dataclasses.dataclass(frozen=True)
class Samples:
    """Labelled rows.

    Attributes:
      X: ``(N, d_x)``.
      y: ``(N,)``, which class a row is said to belong to.
    """

    X: np.ndarray
    y: np.ndarray


def check(law: SubspaceLaw, path: str = "config.data.law") -> None:
    """Raises a ConfigError about the first entry that cannot be."""
    if not law.sizes or len(law.sizes) != len(law.dims):
        raise ConfigError(
            f"{path}.sizes and {path}.dims have an entry a class each; got {len(law.sizes)} and "
            f"{len(law.dims)}."
        )
    if min(law.sizes) < 1:
        raise ConfigError(f"{path}.sizes must be at least 1 each; got {law.sizes}.")
    if not all(1 <= d <= law.ambient for d in law.dims):
        raise ConfigError(f"{path}.dims must be from 1 to ambient={law.ambient}; got {law.dims}.")
    if law.mixing not in MIXINGS:
        raise ConfigError(f"{path}.mixing must be one of {', '.join(MIXINGS)}; got {law.mixing!r}.")
    for name in ("amount", "noise", "outlier_energy"):
        if not 0 <= getattr(law, name) < float("inf"):
            raise ConfigError(f"{path}.{name} must be at least 0; got {getattr(law, name)}.")
    for name in ("outliers", "label_corruption"):
        if not 0 <= getattr(law, name) <= 1:
            raise ConfigError(f"{path}.{name} must be from 0 to 1; got {getattr(law, name)}.")


def draw_bases(law: SubspaceLaw, rng: np.random.Generator) -> list[np.ndarray]:
    """What each class's samples are combinations of: ``(d_x, d_j)`` with unit columns.

    A single subspace has orthonormal columns.
    """
    pool = np.linalg.qr(rng.normal(size=(law.ambient, law.ambient)))[0][:, : max(law.dims)]
    if len(law.dims) == 1:
        return [pool]
    bases = []
    for d in law.dims:
        U = pool[:, rng.choice(pool.shape[1], d, replace=False)]
        if law.mixing == "blend":
            U = (1 - law.amount) * U + law.amount * rng.normal(size=U.shape)
        else:
            U = U + law.amount * rng.normal(size=(law.ambient, law.ambient)) @ U
        bases.append(U / np.linalg.norm(U, axis=0))
    return bases


def draw_samples(law: SubspaceLaw, bases: list[np.ndarray], rng: np.random.Generator) -> Samples:
    """Fresh samples of every class, in the order of the classes, then altered as the law says."""
    X = np.concatenate(
        [rng.normal(size=(n, U.shape[1])) @ U.T for n, U in zip(law.sizes, bases, strict=True)]
    )
    y = np.repeat(np.arange(len(law.sizes)), law.sizes)
    X = X + np.sqrt(law.noise / law.ambient) * rng.normal(size=X.shape)
    N = len(X)
    strays = rng.choice(N, int(N * law.outliers), replace=False)
    X[strays] = np.sqrt(law.outlier_energy / law.ambient) * rng.normal(
        size=(len(strays), X[0].size)
    )
    wrong = rng.choice(N, int(law.label_corruption * N), replace=False)
    y[wrong] = rng.integers(len(law.sizes), size=len(wrong))
    return Samples(X, y)


def draw(law: SubspaceLaw, seed: int) -> tuple[Samples, Samples]:
    """Training and test samples of the same subspaces; a function of the law and the seed."""
    rng = np.random.default_rng(seed)
    bases = draw_bases(law, rng)
    return draw_samples(law, bases, rng), draw_samples(law, bases, rng)
