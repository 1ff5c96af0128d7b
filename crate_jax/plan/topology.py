"""Machines by name: ``v5e:16x16``, ``2xv5e:16x16``, ``h100:8``; a TPU's devices come from libtpu.

Nothing here touches an accelerator. libtpu describes a slice that is not there well enough to
compile for it.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from crate_jax.config import ConfigError, nearest
from crate_jax.plan.chips import CHIPS, Chip

_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
"""How a chip presents itself: v4 as one device with two cores, which is what JAX sees on a pod."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are joined.

    Attributes:
      name: as written.
      chip: its row of the table.
      shape: of a slice's torus; for GPUs their number.
      slices: joined by the data-centre network; for GPUs the nodes.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        """All of them."""
        if self.chip.kind == "gpu":
            return self.shape[0]
        return self.slices * math.prod(self.shape)

    def devices(self) -> Sequence[Any]:
        """The devices to compile for.

        Raises:
          ConfigError: where libtpu is not installed, or knows no such slice.
        """
        options = dict(_OPTIONS.get(self.chip.name, {}))
        if math.prod(self.shape) < 4:
            options["chips_per_host_bounds"] = [*self.shape, 1, 1][:3]
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        except jax.errors.JaxRuntimeError as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"--topology {self.name}: the TPU compiler knows no such slice ({why}). Write one "
                f"that can be rented, as {self.chip.example}."
            ) from error
        except (ImportError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--topology {self.name}: planning for a TPU needs its compiler, libtpu, and it "
                f"does not load ({error}). Install it with pip install 'crate-jax[plan]'; GPUs "
                f"(--topology h100:8) are estimated without."
            ) from error
        return described.devices


def parse(name: str) -> Topology:
    """The topology that a name says.

    Raises:
      ConfigError: on an unknown chip or a shape that is none.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][\w-]*):(\d+(?:x\d+)*)", name.strip().lower())
    if not match:
        raise ConfigError(
            f"--topology {name!r} is no topology. Write CHIP:SHAPE, as v5e:16x16, v4:4x4x4, two "
            f"slices as 2xv5e:16x16, or GPUs by number, as h100:8."
        )
    slices, chip_name, sizes = int(match[1] or 1), match[2], match[3]
    if chip_name not in CHIPS:
        raise ConfigError(
            f"--topology {name}: unknown chip {chip_name!r}{nearest(chip_name, CHIPS)}"
        )
    chip = CHIPS[chip_name]
    shape = tuple(int(n) for n in sizes.split("x"))
    if len(shape) != chip.torus or min(shape) < 1 or slices < 1:
        raise ConfigError(
            f"--topology {name}: {chip_name} comes in shapes of {chip.torus} "
            f"{'size' if chip.torus == 1 else 'sizes'}, as {chip.example}."
        )
    if chip.kind == "gpu":
        if slices > 1:
            raise ConfigError(
                f"--topology {name}: GPUs are given by their number, as {chip_name}:"
                f"{slices * shape[0]}; nodes of {chip.node} are assumed."
            )
        slices = -(-shape[0] // chip.node)
    return Topology(name, chip, shape, slices)
