"""What an evaluator is given: a trained system, and what it makes of the data."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from crate_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Samples:
    """Features and labels of a split.

    Attributes:
      Z: float64 ``(N, d)``.
      labels: integers ``(N,)``.
    """

    Z: np.ndarray
    labels: np.ndarray

    def first(self, count: int) -> "Samples":
        """The first ``count`` of them, or all."""
        return Samples(self.Z[:count], self.labels[:count])


@dataclasses.dataclass
class Probe:
    """A trained system in front of its data.

    Attributes:
      config: of the run.
      system: its task.
      apply: ``(function, split) -> (outputs, labels)``: a function ``(params, batch) -> arrays`` of
        every example of a split in order, each array with a leading axis of examples.
    """

    config: Config
    system: Any
    apply: Callable

    @functools.cached_property
    def train(self) -> Samples:
        """The training split, without augmentation."""
        return self._samples(self.config.data.train_split)

    @functools.cached_property
    def test(self) -> Samples:
        """The evaluation split."""
        return self._samples(self.config.data.eval_split)

    def _samples(self, split: str) -> Samples:
        Z, labels = self.apply(self.system.features, split)
        return Samples(np.asarray(Z, np.float64), np.asarray(labels))
