"""Formulas against what the CPU compiler allots and against arithmetic."""

import dataclasses

import jax
import pytest

from crate_jax import config as configs
from crate_jax import models, run
from crate_jax.plan import compile as compiling
from crate_jax.plan import estimate
from crate_jax.sharding import mesh as meshes

TOLERANCE = 0.5
"""Share by which the formula may miss what the CPU compiler allots for temporaries."""


def make_config(remat="none", batch=64, **mesh):
    raw = configs.default()
    raw.model = models.settings(
        "crate_alpha", width=64, depth=4, heads=4, patch=8, scan_layers=True, remat=remat
    )
    raw.data.update(source="synthetic", image_size=32, channels=3, num_classes=10)
    raw.train.update(batch_size=batch, eval_batch_size=64, steps=10, ema_decay=0.9)
    raw.optimizer.name = "adamw"
    raw.mesh.update(mesh)
    return configs.resolve(raw)


def plan(config):
    mesh = meshes.create_mesh(config.mesh)
    facts = estimate.traced(config)
    return mesh, facts, estimate.memory(config, mesh, facts)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_memory_of_a_chip_is_about_what_the_compiler_allots(remat):
    config = make_config(remat)
    mesh, _, needs = plan(config)
    prepared = dataclasses.replace(run.prepare(config, 640), mesh=mesh)
    compiled = compiling.compile_step(prepared)
    state = sum(needs.state.values())
    # Counters and the padding of small leaves are all that the formula leaves out.
    assert state + needs.batch == pytest.approx(compiled.arguments, rel=0.01)
    assert compiled.alias >= 0.9 * state
    temporaries = needs.total - state - needs.batch
    assert temporaries == pytest.approx(compiled.temporaries, rel=TOLERANCE)
    assert compiled.module is not None and not compiled.note


def test_rematerialisation_keeps_less_and_computes_more():
    plain, full = estimate.traced(make_config("none")), estimate.traced(make_config("full"))
    assert plain.kept == plain.kept_plain == full.kept_plain > 5 * full.kept
    assert plain.hardware_flops == plain.model_flops == full.model_flops < full.hardware_flops
    # A scanned block that is recomputed keeps its input: tokens x width x bytes x layers.
    assert full.kept > 17 * 64 * 4 * 4


def test_state_is_split_as_the_mesh_says():
    whole, split = plan(make_config(fsdp=1))[2], plan(make_config(fsdp=8))[2]
    ratio = sum(whole.state.values()) / sum(split.state.values())
    assert 7 < ratio <= 8
    assert whole.kept == split.kept  # both split the batch over eight devices


def test_collectives_by_arithmetic():
    config = make_config(data=2, fsdp=4)
    mesh, facts, needs = plan(config)
    total = 4 * needs.state["params"]
    by_kind = {c.kind: c for c in estimate.collectives(config, mesh, needs, facts)}
    for kind, share, count in (
        ("all-reduce", total / 4, 4), ("all-gather", total, 8), ("reduce-scatter", total, 4),
    ):  # fmt: skip
        assert by_kind[kind].count == count
        assert by_kind[kind].bytes * 4 == pytest.approx(share, rel=1e-3)
    assert by_kind["all-reduce"].devices == (0, 4)
    assert by_kind["all-gather"].devices == (0, 1, 2, 3)

    config = make_config(data=4, tensor=2)
    mesh, facts, needs = plan(config)
    gradients, activations = estimate.collectives(config, mesh, needs, facts)
    assert activations.bytes == 64 / 4 * 17 * 64 * 4 and activations.count == 4 * 4
    assert gradients.devices == (0, 2, 4, 6)


def test_microbatches_keep_less_and_ask_for_a_second_gradient():
    config = make_config(batch=64)
    parts = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=4))
    whole, quarter = plan(config)[2], plan(parts)[2]
    assert quarter.kept == whole.kept // 4 and quarter.gradient == 2 * whole.gradient
    assert jax.device_count() == 8
