"""What a network under construction leaves on disk beside its checkpoints.

``cells/NAME/network.npz`` has its layers and the table of its iterations, and is written before a
checkpoint is, so that a checkpoint finds all that it speaks of; ``cells/NAME/result.json`` says
that the network is finished and measured.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

import numpy as np

from crate_jax.config import ConfigError
from crate_jax.models.flatnet import Layer, Stack
from crate_jax.models.flatnet_build import Iteration
from crate_jax.studies.metrics_file import MetricsFile
from crate_jax.train import whole

NETWORK, RESULT = "network.npz", "result.json"
_ITERATION = "iteration/"


def write_network(path: pathlib.Path, stack: Stack, iterations: list[Iteration]) -> None:
    """Writes a stack and its iterations; an earlier file stays whole until the new one is."""
    arrays = {name: np.asarray(value) for name, value in stack.layers._asdict().items()}
    arrays |= {"dims": stack.dims, "centre": stack.centre, "scale": stack.scale}
    for field in dataclasses.fields(Iteration):
        values = [getattr(iteration, field.name) for iteration in iterations]
        arrays[_ITERATION + field.name] = np.array(values, field.type)
    whole.write_npz(path, arrays)


def read_network(path: pathlib.Path) -> tuple[Stack, list[Iteration]]:
    """What :func:`write_network` wrote.

    Raises:
      ConfigError: if it is not there, or damaged.
    """
    arrays = whole.read_npz(path)
    if arrays is None:
        raise ConfigError(
            f"{path} is missing or damaged; remove the directory {path.parent} to build this "
            f"network anew."
        )
    stack = Stack(
        Layer(*(arrays[name] for name in Layer._fields)),
        arrays["dims"], arrays["centre"], arrays["scale"],
    )  # fmt: skip
    columns = [arrays[_ITERATION + field.name].tolist() for field in dataclasses.fields(Iteration)]
    return stack, [Iteration(*row) for row in zip(*columns, strict=True)]


def read_result(path: pathlib.Path) -> dict | None:
    """A finished network's numbers; None where it is not finished."""
    return json.loads(path.read_text()) if path.is_file() else None


class IterationMetrics(MetricsFile):
    """Lines of every iteration."""

    def write(self, cell: str, iterations: Iterable[Iteration]) -> None:
        """A line an iteration."""
        self.write_lines(
            json.dumps({"step": it.index + 1, "cell": cell, **dataclasses.asdict(it)})
            for it in iterations
        )
