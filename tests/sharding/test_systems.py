"""Every task takes the step of one device on every preset of the mesh, whatever its objective.

A shipped config of each task is taken at its smallest size; the batch is the first of its training.
The optimizer is SGD, whose step is as close as the gradient: Adam's first one is nearly a sign.
"""

import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest

from crate_jax import data, run
from crate_jax.config import MeshConfig, OptimizerConfig, ScheduleConfig, resolve
from crate_jax.sharding import place, rules
from crate_jax.sharding.mesh import create_mesh
from crate_jax.train import loop

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ONE = "one device"
LAYOUTS = {
    ONE: MeshConfig("dp"),
    "dp": MeshConfig("dp"),
    "fsdp": MeshConfig("fsdp"),
    "fsdp_tp": MeshConfig("fsdp_tp"),
    "hybrid": MeshConfig("hybrid", slice=2),
}


def _configs():
    """The first config file of every task that has one; studies have none."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.py")):
        raw = runpy.run_path(str(path))["get_config"]("smoke")
        if "study" not in raw:
            found.setdefault(raw.system, raw)
    plain = {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.1),
        "schedule": ScheduleConfig(name="constant"),
    }
    out = {}
    for name, raw in found.items():
        config = resolve(raw)
        model = {key: value for key, value in config.model.items() if key != "dtype"}  # float32
        out[name] = dataclasses.replace(config, model=model, **plain)
    return out


TASKS = _configs()


@pytest.mark.parametrize("name", TASKS)
def test_no_parameter_of_a_task_escapes_the_rules(name):
    system = run.system_alone(TASKS[name])
    params = rules.named_leaves(system.abstract_params)
    assert params and [path for path in params if rules.rule(path) is None] == []


def _step(config, layout):
    """Parameters before and after the first step, and its metrics."""
    devices = jax.devices()[: 1 if layout == ONE else None]
    mesh = create_mesh(LAYOUTS[layout], devices)
    system = run.system_alone(config)
    init_key, key = place.replicated_keys(mesh, config.seed, 2)
    rows = next(data.train_batches(config.data, seed=0, batch_size=config.train.batch_size))
    with jax.set_mesh(mesh):
        batch = place.place_batch(mesh, {k: x for k, x in rows.items() if np.ndim(x)})
        like = loop.abstract_state(system, mesh, batch)
        state = loop.fresh_state(system, like, batch, init_key)
        before = jax.device_get(state.params)
        step = loop.compile_step(system, mesh, like, batch, key)
        state, metrics = step(state, batch, key)
        return before, jax.device_get(state.params), jax.device_get(metrics)


@pytest.fixture(scope="module", params=TASKS)
def alone(request):
    config = TASKS[request.param]
    return config, _step(config, ONE)


def _norm(a, b):
    parts = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.sum(np.square(x - y)) for x, y in parts)))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != ONE])
def test_the_step_of_one_device_is_taken_on_every_preset(alone, layout):
    config, (before, after, metrics) = alone
    got_before, got_after, got = _step(config, layout)
    assert _norm(got_before, before) < 1e-5 * _norm(before, jax.tree.map(np.zeros_like, before))
    for name, value in metrics.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    moved = _norm(after, before)
    assert moved > 0 and _norm(got_after, after) < 1e-3 * moved
