"""How much memory a report takes on each device, said before it starts."""

import dataclasses
import os

import jax
import numpy as np

from crate_jax.config import ConfigError
from crate_jax.models.decoder import Architecture, count_layer_parameters

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device; a sum of bounds, made without compiling.

    What the process and the compiler take themselves is not in it, nor the pages of the memory map,
    which the system drops when it needs them.

    Attributes:
      weights: of the layer at work, with its copy in the network's layout, and of the one being
        read, with what reading it takes; or of the head, likewise.
      streams: residual streams of all texts and all variants, and a layer's statistics.
      temporaries: of the largest computation on one batch.
    """

    weights: int
    streams: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.weights + self.streams + self.temporaries


def estimate(
    arch: Architecture,
    *,
    texts: int,
    length: int,
    batch_size: int,
    variants_at_once: int,
    variants: int,
    dtype: str,
    devices: int = 1,
    gated: bool = False,
) -> Estimate:
    """Memory of a report.

    Args:
      arch: the network.
      texts: of all domains together.
      length: tokens a text.
      batch_size: texts at once, over all devices.
      variants_at_once: changed networks that run together.
      variants: changed networks in all.
      dtype: of weights and streams.
      devices: that share batch and weights.
      gated: whether changed networks look at the entropies of their attention.
    """
    size = 2 if dtype == "bfloat16" else 4
    layer = count_layer_parameters(arch) * size
    head = (arch.vocab * arch.width + 2 * arch.width) * size
    gathered = 2 if devices > 1 else 1  # whole on each device, then in the network's layout
    weights = max(3 * layer // devices + gathered * layer, 4 * head)

    batches = -(-texts // batch_size)
    rows = -(-batch_size // devices)
    chunks = -(-variants // variants_at_once)
    stream = length * arch.width * size
    streams = rows * stream * (batches + 1) * (1 + chunks * variants_at_once)
    streams += batches * batch_size * arch.heads * (length + 16) * 4

    T, maps = length, arch.heads * length * length * 4
    flows = T * 4 * (2 * arch.heads * arch.head_dim + 2 * arch.hidden + 4 * arch.width)
    measured = rows * (5 * maps + flows)
    changed = rows * variants_at_once * ((7 if gated else 3) * maps + flows) if variants else 0
    logits = rows * T * arch.vocab * 4 * 3
    return Estimate(weights, streams, max(measured, changed, logits))


def device_limit() -> float:
    """Bytes that a device has; on CPU the memory of the machine, shared by its devices."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return physical / len(jax.local_devices())


def refuse(need: Estimate, limit: float | None) -> None:
    """Raises a sentence where a report would take more than it may.

    Args:
      need: see :func:`estimate`.
      limit: GiB; None is what the device has.
    """
    allowed = device_limit() if limit is None else limit * GIB
    if need.total <= allowed:
        return
    parts = {"weights": need.weights, "streams": need.streams, "temporaries": need.temporaries}
    largest = max(parts, key=parts.get)
    remedy = {
        "weights": "set config.dtype='bfloat16' or use more devices",
        "streams": "lower config.texts, config.length or config.max_heads",
        "temporaries": "lower config.batch_size, config.variants or config.length",
    }[largest]
    raise ConfigError(
        f"the report takes about {describe(need)} a device, and "
        f"{'the device has' if limit is None else 'config.memory_limit allows'} "
        f"{allowed / GIB:.2f} GiB: {remedy}."
    )


def describe(need: Estimate) -> str:
    """``3.10 GiB (weights 1.21, streams 0.50, temporaries 1.39)``."""
    parts = np.array([need.total, need.weights, need.streams, need.temporaries]) / GIB
    total, weights, streams, temporaries = (f"{part:.2f}" for part in parts)
    return f"{total} GiB (weights {weights}, streams {streams}, temporaries {temporaries})"
