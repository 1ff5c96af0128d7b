"""Settings of the inspection of a closed loop, and what in them can be wrong."""

import dataclasses

from crate_jax.config import ConfigError, beyond_digest, check_ranges, nearest
from crate_jax.evaluate.corruption import LEVELS

DIGITS = "digits"
"""The run that is trained first, on scikit-learn's digits."""

_RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        {"": ("train_images", "test_images", "batch_size", "components", "spectrum", "shown",
              "walks", "lambdas", "digits_steps")},
    ),
    ("at least 0", lambda x: x >= 0, {"": ("noisy_images", "levels")}),
    ("above 0", lambda x: x > 0, {"": ("reach", "lambda_low", "lambda_high")}),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which run, and how much of what.

    Attributes:
      seed: of noise and samples.
      run: workdir of a run of system ``ctrl``; ``digits`` trains a small one first.
      checkpoint: ``latest``, ``best`` or a step.
      data_dir: root of the TFDS files, instead of the run's.
      train_images, test_images: first so many of a split.
      batch_size: images at once.
      components: dimensions of each class's subspace in classification.
      spectrum: principal components a class, at most.
      shown: images a row of a grid.
      walks: components walked along, from the first; one where there are classes.
      reach: of a walk to either side, in standard deviations.
      transfer: sources the run has not seen, with commas: ``tfds:cifar100,tfds:svhn_cropped``.
      noises: kinds of noise, with commas; see ``evaluate.corruption``.
      levels: of each kind, evenly among those of the protocol; 0 takes all.
      noisy_images: test images that get noise; 0 leaves noise out.
      lambda_low, lambda_high, lambdas: the sweep of the first stage's lambda.
      digits_steps: length of the run on digits.
    """

    study: str = "transcription"
    seed: int = 0
    run: str = DIGITS
    checkpoint: str = "latest"
    data_dir: str | None = beyond_digest(None)
    train_images: int = 20_000
    test_images: int = 10_000
    batch_size: int = beyond_digest(500)
    components: int = 10
    spectrum: int = 30
    shown: int = 10
    walks: int = 3
    reach: float = 3.0
    transfer: str = ""
    noises: str = "gaussian,shot,speckle,impulse"
    levels: int = 0
    noisy_images: int = 500
    lambda_low: float = 0.1
    lambda_high: float = 1.4
    lambdas: int = 14
    digits_steps: int = 600


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that is wrong in itself."""
    check_ranges(settings, _RANGES)
    if not settings.run:
        raise ConfigError("config.run is not set; write the workdir of a run, or digits.")
    for noise in words(settings.noises):
        if noise not in LEVELS:
            raise ConfigError(f"config.noises: {noise!r}{nearest(noise, LEVELS)}")
    if settings.lambda_low > settings.lambda_high:
        raise ConfigError("config.lambda_low is above config.lambda_high.")


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
