"""The samples that a game is played on, and those that it is judged by."""

import dataclasses

import numpy as np

from crate_jax.config import ConfigError, DataConfig
from crate_jax.data import sources, subspaces
from crate_jax.data.subspaces import Samples

IMAGE_DIMS = 30
"""Principal directions of a class of images, where residuals ask for a dimension."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Samples of a study.

    Attributes:
      train: what is played on.
      test: fresh ones of the same law.
      dims: dimension of each class's subspace; ``IMAGE_DIMS`` for images, which have none.
      clean: whether the samples lie in their subspaces, all of them under their right labels.
    """

    train: Samples
    test: Samples
    dims: tuple[int, ...]
    clean: bool

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dims)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Training samples of each class."""
        return tuple(np.bincount(self.train.y, minlength=self.num_classes).tolist())


def load(settings) -> Task:
    """The samples of some settings.

    Raises:
      ConfigError: where images are not there, or fewer than a batch of them.
    """
    data = settings.data
    if data.source == "subspaces":
        law = data.law
        clean = not (law.noise or law.outliers or law.label_corruption)
        return Task(*subspaces.draw(law, settings.seed), law.dims, clean)
    config = DataConfig(source=data.source, data_dir=data.data_dir)
    train, test = (_images(sources.open_source(config, split)) for split in ("train", "test"))
    if settings.play.batch > len(train.y):
        raise ConfigError(
            f"config.play.batch={settings.play.batch} is more than the {len(train.y):,} samples of "
            f"{data.source}; write 0 for all."
        )
    if data.test:
        test = Samples(test.X[: data.test], test.y[: data.test])
    order = np.argsort(test.y, kind="stable")
    test = Samples(test.X[order], test.y[order])
    return Task(train, test, (IMAGE_DIMS,) * (int(train.y.max()) + 1), clean=False)


def _images(source) -> Samples:
    """All images of a source, flattened, in [0, 1]."""
    records = [source[i] for i in range(len(source))]
    X = np.stack([record["image"] for record in records]).reshape(len(records), -1)
    return Samples(X / np.float32(255), np.array([int(record["label"]) for record in records]))
