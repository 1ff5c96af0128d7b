"""What is evaluated during a run: metrics over the evaluation split, and the layers."""

import collections
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from crate_jax.sharding import place
from crate_jax.train.data import Data, on_devices
from crate_jax.train.protocol import System


def mean_over(
    evaluate: Callable[[Mapping], dict[str, Array]],
    batches: Iterable[Mapping],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The mean of every metric over all examples, added up in float64.

    Args:
      evaluate: compiled; a batch to sums and their ``count``.
      batches: on the devices.
      stop: asked before each batch; True gives the evaluation up.

    Returns:
      Means by name, or None when given up.
    """
    total, pending = collections.Counter(), {}

    def add(sums):
        for name, value in jax.device_get(sums).items():
            total[name] += np.float64(value)

    for batch in batches:
        if stop():
            return None
        sums = evaluate(batch)
        add(pending)  # read only now: the device never waits, and runs one batch ahead at most
        pending = sums
    add(pending)
    count = total.pop("count")
    return {name: float(value / count) for name, value in total.items()}


class Evaluator:
    """Evaluates parameters; each function is compiled once.

    Attributes:
      metrics: the last evaluation, by name, ``eval/`` and ``layers/``.
      layers: the last curves over depth by name, each ``(layers,)``; empty where none are measured.
    """

    def __init__(self, system: System, mesh: Mesh, data: Data):
        self._data, self._mesh = data, mesh
        replicated = place.replicated(mesh)
        self._evaluate = jax.jit(system.evaluate, out_shardings=replicated)
        self._measure = jax.jit(system.measure, out_shardings=replicated)
        self.metrics: dict[str, float] = {}
        self.layers: dict[str, np.ndarray] = {}

    def run(self, params, *, stop: Callable[[], bool] = lambda: False) -> dict | None:
        """All scalars of an evaluation of parameters, or None when ``stop`` gave it up.

        Layers count from 1: ``layers/coding_rate/1`` is the first.
        """
        skipped = 0

        def batches():
            nonlocal skipped
            for rows in self._data.evaluation():
                skipped += int(rows["skipped"])
                yield on_devices(self._mesh, rows)

        means = mean_over(lambda batch: self._evaluate(params, batch), batches(), stop=stop)
        if means is None:
            return None
        scalars = {f"eval/{name}": value for name, value in means.items()}
        if skipped:
            scalars["eval/skipped_images"] = float(skipped)
        if self._data.measured is not None:
            measured = on_devices(self._mesh, self._data.measured)
            self.layers = jax.device_get(self._measure(params, measured))
            scalars |= {
                f"layers/{name}/{l}": float(value)
                for name, curve in self.layers.items()
                for l, value in enumerate(curve, start=1)
            }
        self.metrics = scalars
        return scalars
