"""Images a second that a training step consumes on each chip, and the cores that feed it."""

from collections.abc import Iterator, Mapping

from crate_jax.bench.step import make_config
from crate_jax.plan.chips import CHIPS
from crate_jax.run import step_flops

NAMES = ("v4", "v5e", "v5p", "v6e", "h100", "h200")
STEPS = (
    ("crate", "B/16"),
    ("crate_alpha", "B/16"),
    ("crate_alpha", "L/14"),
    ("crate_alpha", "H/14"),
)
HOST_CORES, HOST_CHIPS = 16, 4
VCPUS = {"v5e": (112, 4), "v6e": (180, 4), "h100": (208, 8)}
"""vCPUs (two are a core) and chips of a host: ct5lp-hightpu-4t and ct6e-standard-4t
(docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), a3-highgpu-8g
(docs.cloud.google.com/compute/docs/gpus)."""


def flops_an_image(model: str, variant: str, size: int) -> float:
    """FLOPs of a training step of one image."""
    return step_flops(make_config(model, variant, size, 1, {"scan_layers": True}))


def appetite(flops: float, peak: float, mfu: float, images_per_core_s: float) -> dict[str, float]:
    """What a chip consumes, and the cores that feed it.

    Args:
      flops: of a step an image.
      peak: FLOP/s of the chip.
      mfu: share of the peak that the step is assumed to reach.
      images_per_core_s: of the pipeline.
    """
    images = peak * mfu / flops
    return {"images_per_s": images, "cores": images / images_per_core_s}


def appetites(flops: Mapping[str, float], mfu: float, images_per_core_s: float) -> dict[str, dict]:
    """:func:`appetite` of steps of so many FLOPs an image, by name, on every chip."""
    return {
        step: {"flops": operations}
        | {
            name: appetite(operations, CHIPS[name].flops.value, mfu, images_per_core_s)
            for name in NAMES
        }
        for step, operations in flops.items()
    }


def verdicts(found: dict[str, dict]) -> Iterator[str]:
    """For whom some cores a host are enough, and what hosts have."""
    cores = f"{HOST_CORES} cores for {HOST_CHIPS} chips"
    for step, row in found.items():
        needed = {chip: HOST_CHIPS * row[chip]["cores"] for chip in NAMES}
        short = [f"{chip} ({n:.0f})" for chip, n in needed.items() if n > HOST_CORES]
        if not short:
            yield f"{step}: {cores} feed every chip."
        elif len(short) == len(needed):
            yield f"{step}: {cores} are too few for every chip: {', '.join(short)}."
        else:
            yield f"{step}: {cores} feed all but {', '.join(short)}."
    hosts = (f"{chip} {vcpus} for {chips}" for chip, (vcpus, chips) in VCPUS.items())
    yield f"vCPUs of a rented host and its chips, two vCPUs a core: {', '.join(hosts)}."
