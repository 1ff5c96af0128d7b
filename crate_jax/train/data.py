"""What the loop is given to train on, and how it gets onto the devices."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.sharding import place

HOST_ONLY = ("index", "skipped")
"""What a batch says about itself and the device does not need."""

Rows = Mapping[str, np.ndarray]
"""This process's rows of a batch."""


@dataclasses.dataclass
class Data:
    """The batches of a run.

    Attributes:
      train: from the first step wanted to an endless iterator of batches.
      evaluation: makes an iterator over the evaluation split, once through.
      measured: the fixed batch on which layers are measured, or None.
    """

    train: Callable[[int], Iterator[Rows]]
    evaluation: Callable[[], Iterator[Rows]]
    measured: Rows | None = None


def on_devices(mesh: Mesh, rows: Rows) -> dict[str, jax.Array]:
    """The global batch, split over the devices, of which every process gives its rows."""
    return place.place_batch(mesh, {k: x for k, x in rows.items() if k not in HOST_ONLY})


def abstract_batch(mesh: Mesh, rows: Rows) -> dict[str, Any]:
    """Shapes, dtypes and shardings of :func:`on_devices`."""
    sharding = place.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (place.global_batch_size(mesh, len(x)), *x.shape[1:]), x.dtype, sharding=sharding
        )
        for name, x in rows.items()
        if name not in HOST_ONLY
    }
