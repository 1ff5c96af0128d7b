"""What the study builds and compares; its cells."""

import dataclasses

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.data.manifolds import MANIFOLDS
from crate_jax.models import flatnet_settings
from crate_jax.models.flatnet_settings import Construction
from crate_jax.studies.flatnet.autoencoders import KINDS

DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class Data:
    """The manifold; see ``data.manifolds.load``.

    Attributes:
      name: a key of ``data.manifolds.MANIFOLDS``.
      points: to flatten; 0 is the set's own number.
      test: further points of the same manifold.
      ambient: D of the Gaussian processes.
      dims: their d, a cell each; other sets take no notice.
      digit: class of the MNIST sets.
      source, data_dir: where their images come from.
      components: principal coordinates of images; 0 is 100.
    """

    name: str = "sine"
    points: int = 0
    test: int = 0
    ambient: int = 100
    dims: tuple[int, ...] = (2,)
    digit: int = 2
    source: str = "tfds:mnist"
    data_dir: str | None = configs.beyond_digest(None)
    components: int = 0


@dataclasses.dataclass(frozen=True)
class Compare:
    """What FlatNet is held against.

    Attributes:
      autoencoders: some of ``vae``, ``beta_vae``, ``factor_vae``, ``fair_vae``.
      epochs, batch: of their training.
      code: their code's width; 0 is the dimension found.
      dimension: whether nearest-neighbour estimates of the dimension are made.
      distances: whether the map of distances is drawn.
      interpolations: pairs of points between which pictures are made.
    """

    autoencoders: tuple[str, ...] = ()
    epochs: int = 100
    batch: int = 32
    code: int = 0
    dimension: bool = True
    distances: bool = False
    interpolations: int = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """The study.

    Attributes:
      study: the name of this study.
      seed: of the data, the anchors and the baselines; trial t has seed + t.
      data: the manifold.
      build: how the networks are built.
      compare: with what.
      trials: networks for each dimension, each on data of its own.
      dtype: ``float32`` or ``float64``.
      devices: over which the points are split; 0 is all of this process.
      checkpoint_seconds: between two checkpoints.
    """

    study: str = "flatnet"
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    build: Construction = dataclasses.field(default_factory=Construction)
    compare: Compare = dataclasses.field(default_factory=Compare)
    trials: int = 1
    dtype: str = "float32"
    devices: int = 1
    checkpoint_seconds: float = configs.beyond_digest(30.0)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network.

    Attributes:
      name: of its directory.
      dim: d of the data, where it is ours to say.
      trial: from 0 on.
    """

    name: str
    dim: int
    trial: int


def list_cells(settings: Settings) -> list[Cell]:
    """The networks of the study, in their order."""
    dims = settings.data.dims if settings.data.name.startswith("gp") else settings.data.dims[:1]
    cells = []
    for d in dims:
        for trial in range(settings.trials):
            words = [settings.data.name]
            words += [f"d{d}"] if settings.data.name.startswith("gp") else []
            words += [f"trial{trial}"] if settings.trials > 1 else []
            cells.append(Cell("_".join(words), d, trial))
    return cells


_RANGES = (
    ("at least 1", lambda x: x >= 1, {"": ("trials",), "compare": ("epochs", "batch")}),
    (
        "at least 0", lambda x: x >= 0,
        {"": ("devices", "checkpoint_seconds"), "data": ("points", "test", "components"),
         "compare": ("code", "interpolations")},
    ),
    ("at least 2", lambda x: x >= 2, {"data": ("ambient",)}),
    ("from 0 to 9", lambda x: 0 <= x <= 9, {"data": ("digit",)}),
    (" or ".join(DTYPES), lambda x: x in DTYPES, {"": ("dtype",)}),
)  # fmt: skip
"""See ``config.check_ranges``."""


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    configs.check_ranges(settings, _RANGES)
    data = settings.data
    if data.name not in MANIFOLDS:
        raise ConfigError(f"config.data.name={data.name!r}{nearest(data.name, MANIFOLDS)}")
    if not data.dims or not all(1 <= d <= data.ambient for d in data.dims):
        raise ConfigError(
            f"config.data.dims must be one or more numbers from 1 to config.data.ambient="
            f"{data.ambient}; got {data.dims}."
        )
    for kind in settings.compare.autoencoders:
        if kind not in KINDS:
            raise ConfigError(f"config.compare.autoencoders: {kind!r}{nearest(kind, KINDS)}")
    flatnet_settings.check(settings.build, "config.build")
