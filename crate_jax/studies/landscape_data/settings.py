"""What a network is trained on, and how."""

import dataclasses

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.ops import rate_landscape as forms

AUGMENTATIONS = ("none", "crop_flip")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One network, one full batch; the defaults are the released code's but for the data.

    Attributes:
      study: the name of this study.
      seed: of the samples, the weights and the augmentation.
      source: of ``data.sources``: ``digits``, ``tfds:NAME``, ``folder:PATH``.
      data_dir: root of the TFDS files; None means TFDS's own default.
      split: of the source.
      channels: of an image, 1 or 3.
      classes: how many, the first ones.
      per_class: samples of each.
      augment: ``none``, or ``crop_flip``: every epoch another crop of 32 x 32 after a zero padding
        of 8, and a flip with probability 1/2.
      hidden: width of the perceptron.
      d: dimension of the features.
      unit_norm: features of unit length; else the regulariser alone holds them.
      eps_sq: distortion squared.
      lmbda: weight of ``||Z||_F^2 / 2``: twice the released code's ``lmb``.
      learning_rate, b1, b2, weight_decay: of AdamW; everything decays.
      epochs: each one step on the full batch.
      warmup: epochs of the linear warm-up, which multiplies the cosine from the first epoch on.
    """

    study: str = "landscape_data"
    seed: int = 0
    source: str = "digits"
    data_dir: str | None = configs.beyond_digest(None)
    split: str = "train"
    channels: int = 1
    classes: int = 3
    per_class: int = 100
    augment: str = "none"
    hidden: int = 2048
    d: int = 128
    unit_norm: bool = False
    eps_sq: float = 0.5
    lmbda: float = 2e-3
    learning_rate: float = 5e-3
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 5e-4
    epochs: int = 805
    warmup: int = 200

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of every class."""
        return (self.per_class,) * self.classes


SOURCES = ("digits", "tfds", "folder")

_RANGES = (
    ("at least 2", lambda x: x >= 2, {"": ("classes",)}),
    ("at least 1", lambda x: x >= 1, {"": ("per_class", "hidden", "d", "epochs")}),
    ("at least 0", lambda x: x >= 0, {"": ("seed", "warmup")}),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, {"": ("b1", "b2")}),
    ("at least 0", lambda x: 0 <= x < float("inf"), {"": ("weight_decay",)}),
    ("above 0", lambda x: 0 < x < float("inf"), {"": ("eps_sq", "lmbda", "learning_rate")}),
    ("1 or 3", lambda x: x in (1, 3), {"": ("channels",)}),
)
"""See ``config.check_ranges``."""


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    configs.check_ranges(settings, _RANGES)
    kind = settings.source.partition(":")[0]
    if kind not in SOURCES:
        raise ConfigError(f"config.source={settings.source!r}{nearest(kind, SOURCES)}")
    if settings.augment not in AUGMENTATIONS:
        raise ConfigError(
            f"config.augment={settings.augment!r}{nearest(settings.augment, AUGMENTATIONS)}"
        )
    bound = forms.lambda_max(settings.sizes, settings.d, eps_sq=settings.eps_sq)
    if settings.lmbda >= bound:
        raise ConfigError(
            f"config.lmbda must be below lambda_max, which is {bound:g} for these classes, "
            f"dimension and eps_sq; got {settings.lmbda!r}."
        )
