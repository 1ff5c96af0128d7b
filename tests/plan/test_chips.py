import dataclasses

import pytest

from crate_jax.plan.chips import CHIPS, Figure, peak_flops
from crate_jax.plan.topology import parse


@pytest.mark.parametrize("name", CHIPS)
def test_every_figure_has_a_source_and_every_chip_its_example(name):
    chip = CHIPS[name]
    figures = [
        v for f in dataclasses.fields(chip) if isinstance(v := getattr(chip, f.name), Figure)
    ]
    assert len(figures) == (6 if chip.kind == "tpu" else 5)
    for figure in figures:
        assert figure.value > 0 and len(figure.source) > 10
    assert parse(chip.example).chip == chip
    assert (chip.clock is None) == (chip.kind == "gpu")


def test_clocks_are_derived_and_say_so():
    clocks = {name: chip.clock for name, chip in CHIPS.items() if chip.clock}
    assert all(clock.estimated and "peak" in clock.source for clock in clocks.values())
    assert clocks["v4"].value == pytest.approx(1.05e9, rel=0.01)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(kind, name):
    assert peak_flops(kind, "bfloat16") == CHIPS[name].flops.value


@pytest.mark.parametrize(
    "kind, dtype", [("cpu", "bfloat16"), ("TPU v4", None), ("TPU v9", "bfloat16")]
)
def test_what_has_no_peak_in_the_table(kind, dtype):
    assert peak_flops(kind, dtype) is None
