"""What the landscape study is asked to do."""

import dataclasses

from crate_jax import config as configs
from crate_jax.config import ConfigError
from crate_jax.ops import rate_landscape as forms
from crate_jax.studies.landscape.problem import Problem


@dataclasses.dataclass(frozen=True)
class Settings:
    """One landscape and what is done on it.

    Attributes:
      study: the name of this study.
      seed: of the points and the starts.
      sizes: rows of every class.
      d: dimension of the features.
      eps_sq: distortion squared.
      fraction: lmbda over the theorem's bound ``lambda_max``.
      lmbda: lmbda itself, instead; ``||Z||_F^2`` weighs half of it.
      points: random critical points of each kind.
      starts: random starts of either ascent.
      std: of the entries of a start.
      steps: of gradient ascent at most; L-BFGS may take as many.
      tolerance: norm of the gradient at which a start has arrived.
      scales: standard deviations of the basin study.
      scale_starts: starts from each of them.
    """

    study: str = "landscape"
    seed: int = 0
    sizes: tuple[int, ...] = (12, 18, 30)
    d: int = 20
    eps_sq: float = 0.25
    fraction: float = 0.2
    lmbda: float | None = None
    points: int = 4
    starts: int = 64
    std: float = 1.0
    steps: int = 10_000
    tolerance: float = 1e-11
    scales: int = 9
    scale_starts: int = 8


_RANGES = (
    ("at least 1", lambda x: x >= 1, {"": ("d", "points", "starts", "scale_starts")}),
    ("at least 2", lambda x: x >= 2, {"": ("scales",)}),
    ("at least 0", lambda x: x >= 0, {"": ("seed",)}),
    ("at least 100", lambda x: x >= 100, {"": ("steps",)}),
    ("above 0", lambda x: 0 < x < float("inf"), {"": ("eps_sq", "std", "lmbda")}),
    ("above 0 and below 1", lambda x: 0 < x < 1, {"": ("fraction",)}),
    ("from 1e-13 to 1e-6", lambda x: 1e-13 <= x <= 1e-6, {"": ("tolerance",)}),
)
"""See ``config.check_ranges``."""


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    configs.check_ranges(settings, _RANGES)
    sizes = settings.sizes
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(
            f"config.sizes must be two or more class sizes of at least 1; got {sizes}."
        )
    bound = forms.lambda_max(sizes, settings.d, eps_sq=settings.eps_sq)
    if settings.lmbda is not None and settings.lmbda >= bound:
        raise ConfigError(
            f"config.lmbda must be below lambda_max, which is {bound:g} for these sizes, dimension "
            f"and eps_sq; got {settings.lmbda!r}. Or set config.fraction and leave it None."
        )


def problem_of(settings: Settings) -> Problem:
    """The landscape that the settings name."""
    lmbda = settings.lmbda
    if lmbda is None:
        bound = forms.lambda_max(settings.sizes, settings.d, eps_sq=settings.eps_sq)
        lmbda = settings.fraction * bound
    return Problem(settings.sizes, settings.d, settings.eps_sq, lmbda)
