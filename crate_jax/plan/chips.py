"""Chips and what their vendors publish of them, each figure with where it was read.

Rates are of one chip. ``link`` is one direction of one link to a neighbour; a GPU's ``link`` is all
that it sends into its node's switch. ``estimated`` marks what nobody publishes and was derived.
"""

import dataclasses

GB, TB, TFLOP = 1e9, 1e12, 1e12

V4_PAGE = "docs.cloud.google.com/tpu/docs/v4"
V5E_PAGE = "docs.cloud.google.com/tpu/docs/v5e"
V5P_PAGE = "docs.cloud.google.com/tpu/docs/v5p-training"
V6E_PAGE = "docs.cloud.google.com/tpu/docs/v6e"
SCALING_BOOK = "jax-ml.github.io/scaling-book/tpus"
SCALING_BOOK_GPUS = "jax-ml.github.io/scaling-book/gpus"
AMPERE_BLOG = "developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth"
A100_NOTES = "glennklockwood.com/garden/processors/A100 (cites NVIDIA's A100 datasheet)"
DGX_A100 = "NVIDIA DGX A100 system architecture white paper"
H100_NOTES = "glennklockwood.com/garden/processors/h100 (cites NVIDIA's H100 white paper)"
H200_NOTES = "aiwiki.ai/wiki/nvidia_h200 (cites NVIDIA's H200 datasheet)"
H200_MLPERF = "github.com/mlcommons/inference_results_v4.1, H200-SXM-141GBx8"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number in SI units, and where it is from."""

    value: float
    source: str
    estimated: bool = False


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of the table.

    Attributes:
      name, kind: ``v5e``; ``tpu`` or ``gpu``.
      flops: multiply-adds counted twice, bfloat16 without sparsity, a second.
      memory: bytes.
      bandwidth: of that memory, bytes a second.
      link: bytes a second, see above.
      network: bytes a second of the data-centre network (between slices or nodes) for one chip.
      clock: cycles a second, for the compiler's estimate; None where it makes none.
      torus: dimensions of the interconnect; 1 for a switch.
      wraps: a dimension closes to a ring where it is a multiple of this; 0 for a switch.
      node: chips behind one switch; 0 for a torus.
      example: a topology to write.
    """

    name: str
    kind: str
    flops: Figure
    memory: Figure
    bandwidth: Figure
    link: Figure
    network: Figure
    clock: Figure | None
    torus: int
    wraps: int
    node: int
    example: str


def _clock(flops: float, units: int, side: int, page: str) -> Figure:
    """Peak over what the matrix units do in a cycle, two operations a multiply-add."""
    said = f"peak / (2 x {units} units of {side}x{side}, {page})"
    return Figure(flops / (2 * units * side**2), said, estimated=True)


def _hopper(name: str, memory: Figure, bandwidth: Figure, link_source: str) -> Chip:
    return Chip(
        name, "gpu",
        flops=Figure(989.4 * TFLOP, H100_NOTES),
        memory=memory, bandwidth=bandwidth,
        link=Figure(450 * GB, f"half of NVLink's 900 GB/s both ways; {link_source}"),
        network=Figure(50 * GB, f"400 GB/s out of a node of 8; {SCALING_BOOK_GPUS}"),
        clock=None, torus=1, wraps=0, node=8, example=f"{name}:8",
    )  # fmt: skip


def _ampere(name: str, memory: Figure, bandwidth: Figure) -> Chip:
    return Chip(
        name, "gpu",
        flops=Figure(312 * TFLOP, AMPERE_BLOG),
        memory=memory, bandwidth=bandwidth,
        link=Figure(300 * GB, f"NVLink, each way; {A100_NOTES}"),
        network=Figure(25 * GB, f"eight 200 Gb/s ports for eight GPUs; {DGX_A100}"),
        clock=None, torus=1, wraps=0, node=8, example=f"{name}:8",
    )  # fmt: skip


_A100_40 = _ampere("a100-40", Figure(40 * GB, AMPERE_BLOG), Figure(1555 * GB, AMPERE_BLOG))
_A100_80 = _ampere("a100-80", Figure(80 * GB, A100_NOTES), Figure(2039 * GB, A100_NOTES))

CHIPS = {
    "v4": Chip(
        "v4", "tpu",
        flops=Figure(275 * TFLOP, V4_PAGE),
        memory=Figure(32 * 2**30, V4_PAGE),
        bandwidth=Figure(1200 * GB, V4_PAGE),
        link=Figure(45 * GB, SCALING_BOOK),
        network=Figure(6.25 * GB, SCALING_BOOK),
        clock=_clock(275 * TFLOP, 8, 128, V4_PAGE),
        torus=3, wraps=4, node=0, example="v4:4x4x4",
    ),
    "v5e": Chip(
        "v5e", "tpu",
        flops=Figure(197 * TFLOP, V5E_PAGE),
        memory=Figure(16 * GB, V5E_PAGE),
        bandwidth=Figure(819 * GB, V5E_PAGE),
        link=Figure(50 * GB, f"400 GB/s a chip both ways, over 4 ports; {V5E_PAGE}"),
        network=Figure(3.125 * GB, f"6.4 Tb/s a pod of 256; {V5E_PAGE}"),
        clock=_clock(197 * TFLOP, 4, 128, V5E_PAGE),
        torus=2, wraps=16, node=0, example="v5e:16x16",
    ),
    "v5p": Chip(
        "v5p", "tpu",
        flops=Figure(459 * TFLOP, V5P_PAGE),
        memory=Figure(95 * GB, V5P_PAGE),
        bandwidth=Figure(2765 * GB, V5P_PAGE),
        link=Figure(100 * GB, f"1200 GB/s a chip both ways, over 6 neighbours; {V5P_PAGE}"),
        network=Figure(6.25 * GB, f"50 Gb/s a chip; {V5P_PAGE}"),
        clock=_clock(459 * TFLOP, 8, 128, V5P_PAGE),
        torus=3, wraps=4, node=0, example="v5p:4x4x4",
    ),
    "v6e": Chip(
        "v6e", "tpu",
        flops=Figure(918 * TFLOP, V6E_PAGE),
        memory=Figure(32 * GB, V6E_PAGE),
        bandwidth=Figure(1638 * GB, V6E_PAGE),
        link=Figure(100 * GB, f"800 GB/s a chip both ways, over 4 ports; {V6E_PAGE}"),
        network=Figure(12.5 * GB, f"25.6 Tb/s a pod of 256; {V6E_PAGE}"),
        clock=_clock(918 * TFLOP, 4, 256, V6E_PAGE + ", whose revisions say 2 or 4 units"),
        torus=2, wraps=16, node=0, example="v6e:8x8",
    ),
    "a100": _A100_80,
    "a100-40": _A100_40,
    "a100-80": _A100_80,
    "h100": _hopper(
        "h100", Figure(80 * GB, H100_NOTES), Figure(3350 * GB, H100_NOTES), H100_NOTES
    ),
    "h200": _hopper(
        "h200", Figure(141 * GB, H200_MLPERF), Figure(4800 * GB, H200_NOTES), H200_MLPERF
    ),
}  # fmt: skip
"""Chips by the name that ``--topology`` takes; ``a100`` is the one of 80 GB."""

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "A100-SXM4-40GB": "a100-40",
    "A100": "a100-80",
    "H100": "h100",
    "H200": "h200",
}
"""What a device calls itself, or for GPUs a part of it, longer ones first, to its name here."""


def peak_flops(device_kind: str, dtype: str | None) -> float | None:
    """The FLOP/s that a device of this kind could do, or None where the table does not know.

    Args:
      device_kind: as ``jax.Device.device_kind``.
      dtype: what the model computes in; only bfloat16 has a peak here.
    """
    if dtype != "bfloat16":
        return None
    for kind, name in KINDS.items():
        if kind == device_kind or (CHIPS[name].kind == "gpu" and kind in device_kind):
            return CHIPS[name].flops.value
    return None
