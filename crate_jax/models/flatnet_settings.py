"""How a FlatNet is built: the settings, the versions of the released code, and what cannot be."""

import dataclasses
import functools
import math
from collections.abc import Callable

import optax

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.models import flatnet_descent

TRANSFORMS: dict[str, Callable] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}
"""Inner rules besides Riemannian Adam, of the learning rate."""

INNER = ("riemannian_adam", *TRANSFORMS)
NORMALISE = ("unit_ball", "rms", "none")
STARTS = ("random", "frame")


@dataclasses.dataclass(frozen=True)
class Construction:
    """How a network is built; the defaults are those of the code's last version, preset ``head``.

    Attributes:
      n_iter: outer iterations at most.
      n_iter_inner: steps of a fit at most.
      n_stop: so many iterations that move nothing at the largest radius end it.
      thres_recon: the local loss that a patch may have.
      alpha_max: of a layer's alpha, below 1.
      r_dimcheck, r_min, r_max: radii, in units of the initial diameter.
      max_error_ratio: the residual that a dimension may have, over the radius r_d.
      n_iter_rsearch: secant steps.
      bracket: whether the second step and later ones take, of the two points before, the one on the
        other side of the threshold, rather than the newer one as the code does. The last two alone
        are often both above it, and log(loss), which is concave in r, then sends the secant to the
        least radius.
      r_step_min: they end where r changes by less, in units of the smallest distance.
      renormalise: whether a layer ends by centring the data and dividing by the largest norm.
      normalise: of the data before the first layer: ``unit_ball`` centres and divides by the
        largest norm, ``rms`` by the root mean square entry, ``none`` leaves them.
      d_max: columns of U at most.
      inner: rule of the inner descent, a key of :data:`INNER`.
      learning_rate: its own; None is 1 for ``riemannian_adam``, 0.1 for the others.
      retraction: one of ``models.flatnet_descent.RETRACTIONS``.
      start: of the dimension search: ``random`` orthonormal columns, or the local ``frame``.
      tolerance: root mean square change of U at which a fit ends.
      min_mass: where above 0, r_d grows until the kernel's mass is so many times the number of
        products; 0 is off. Below one neighbour per product every dimension fits.
      stop_energy: where above 0, ends when less of the energy is outside the first d directions.
      n_fit: points that a fit sees; 0 is all. The descent draws them by their weights.
      n_anchors: anchors an iteration, of which the layer that moves most is kept. Above 1 it is
        another algorithm than the paper's.
      chunk: points worked on at a time.
    """

    n_iter: int = 500
    n_iter_inner: int = 1000
    n_stop: int = 10
    thres_recon: float = 1e-5
    alpha_max: float = 0.5
    r_dimcheck: float = 0.15
    r_min: float = 0.15
    r_max: float = 1.1
    max_error_ratio: float = 0.3
    n_iter_rsearch: int = 1
    bracket: bool = False
    r_step_min: float = 1.0
    renormalise: bool = True
    normalise: str = "unit_ball"
    d_max: int = 32
    inner: str = "riemannian_adam"
    learning_rate: float | None = None
    retraction: str = "cayley"
    start: str = "random"
    tolerance: float = 1e-5
    min_mass: float = 0.0
    stop_energy: float = 0.0
    n_fit: int = 0
    n_anchors: int = 1
    chunk: int = 16_384


PRESETS = {
    "head": {},
    "v021": {"thres_recon": 1e-4, "renormalise": False},
    "arxiv": {"thres_recon": 1e-4, "renormalise": False, "n_stop": 5, "max_error_ratio": 0.2},
}
"""Versions of the released code: the last commit, PyPI's flatnet 0.2.1, and the preprint's time."""

RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        ("n_iter", "n_iter_inner", "n_stop", "n_iter_rsearch", "d_max", "n_anchors", "chunk"),
    ),
    ("at least 0", lambda x: x >= 0, ("r_step_min", "min_mass", "stop_energy", "n_fit")),
    (
        "above 0", lambda x: 0 < x < math.inf,
        ("thres_recon", "r_dimcheck", "r_min", "r_max", "max_error_ratio", "learning_rate",
         "tolerance"),
    ),
    ("above 0 and below 1", lambda x: 0 < x < 1, ("alpha_max",)),
)  # fmt: skip


def check(construction: Construction, path: str = "construction") -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    ranges = [(allowed, test, {"": names}) for allowed, test, names in RANGES]
    configs.check_ranges(construction, ranges, path)
    for name, words in (
        ("normalise", NORMALISE), ("inner", INNER), ("start", STARTS),
        ("retraction", flatnet_descent.RETRACTIONS),
    ):  # fmt: skip
        value = getattr(construction, name)
        if value not in words:
            raise ConfigError(f"{path}.{name}={value!r}{nearest(str(value), words)}")
    if construction.r_min > construction.r_max:
        raise ConfigError(
            f"{path}.r_min={construction.r_min:g} is above {path}.r_max={construction.r_max:g}."
        )
