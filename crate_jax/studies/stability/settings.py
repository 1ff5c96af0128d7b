"""Settings of the grid, and its runs."""

import dataclasses

from crate_jax.config import ConfigError, beyond_digest, check_ranges, nearest
from crate_jax.models.dcgan import ENCODERS
from crate_jax.objectives.closed_loop import OBJECTIVES
from crate_jax.systems.ctrl import NORMALISE_BY

_RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        {"": ("steps", "points", "batch", "width", "features", "repeats")},
    ),
    ("above 0", lambda x: x > 0, {"": ("rate",)}),
    ("at least 0", lambda x: x >= 0, {"": ("consistency",)}),
    (
        "at least 1 in every entry", lambda xs: all(x >= 1 for x in xs),
        {"": ("batches", "widths", "feature_counts")},
    ),
    ("above 0 in every entry", lambda xs: all(x > 0 for x in xs), {"": ("rates",)}),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base run, and what is changed in it one at a time.

    Attributes:
      seed: of the first of each run's seeds.
      source: of the images; ``digits``, or a TFDS name of 32 x 32 pixels.
      data_dir: root of the TFDS files.
      encoders: with commas, ``csc,conv``.
      objective: of the game.
      consistency, normalise_by: see ``config.CTRLConfig``; without them so few steps all end below
        the mean image. 0 and ``own`` are the released game.
      steps: of each run.
      points: evaluations along it.
      batch, rate, width, features: of the base run; width is of the first stage, and doubles.
      batches, rates, widths, feature_counts: what takes their places.
      repeats: runs of each setting, of one seed after another.
    """

    study: str = "stability"
    seed: int = 0
    source: str = "digits"
    data_dir: str | None = beyond_digest(None)
    encoders: str = "csc,conv"
    objective: str = "multi"
    consistency: float = 20.0
    normalise_by: str = "image"
    steps: int = 300
    points: int = 6
    batch: int = 256
    rate: float = 3e-3
    width: int = 32
    features: int = 32
    batches: tuple[int, ...] = (32, 128)
    rates: tuple[float, ...] = (1e-3, 1e-2)
    widths: tuple[int, ...] = (8, 64)
    feature_counts: tuple[int, ...] = (16, 64)
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of the grid.

    Attributes:
      encoder, seed, batch, rate, width, features: its settings.
      changed: the one that is not the base's, ``base`` where none is.
    """

    encoder: str
    seed: int
    changed: str
    batch: int
    rate: float
    width: int
    features: int

    @property
    def name(self) -> str:
        """The run's folder."""
        value = "" if self.changed == "base" else f"_{getattr(self, self.changed):g}"
        return f"{self.encoder}_{self.changed}{value}_seed{self.seed}"


def members(settings: Settings) -> list[Member]:
    """The runs: the base, then each setting's other values, for each encoder and seed."""
    base = {name: getattr(settings, name) for name in ("batch", "rate", "width", "features")}
    others = {
        "batch": settings.batches, "rate": settings.rates, "width": settings.widths,
        "features": settings.feature_counts,
    }  # fmt: skip
    changes = [("base", {}), *((k, {k: v}) for k, values in others.items() for v in values)]
    return [
        Member(encoder, settings.seed + i, changed, **base | change)
        for changed, change in changes
        for encoder in encoders(settings)
        for i in range(settings.repeats)
    ]


def encoders(settings: Settings) -> list[str]:
    """The encoders, in the order in which they are shown."""
    return [word.strip() for word in settings.encoders.split(",") if word.strip()]


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that is wrong in itself."""
    check_ranges(settings, _RANGES)
    for encoder in encoders(settings):
        if encoder not in ENCODERS:
            raise ConfigError(f"config.encoders: {encoder!r}{nearest(encoder, ENCODERS)}")
    if settings.objective not in OBJECTIVES:
        raise ConfigError(
            f"config.objective={settings.objective!r}{nearest(settings.objective, OBJECTIVES)}"
        )
    if settings.normalise_by not in NORMALISE_BY:
        raise ConfigError(
            f"config.normalise_by={settings.normalise_by!r}"
            f"{nearest(settings.normalise_by, NORMALISE_BY)}"
        )
