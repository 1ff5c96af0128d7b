"""A step that is not finite is explained: the operation, and what it was given."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from crate_jax.train import debug
from crate_jax.train.readout import NonFiniteError


class State(struct.PyTreeNode):
    step: jax.Array


def _explained(operation, tmp_path):
    """The explained step of a task that applies one operation to its images."""

    def step(state, batch, rng):
        del rng
        bad = ~jnp.isfinite(operation(batch["image"]).sum())
        return State(state.step + 1), {"bad_steps": bad.astype(jnp.int32)}

    return debug.explained(types.SimpleNamespace(step=step), tmp_path, jax.jit(step))


def _take(step, image):
    batch = {"image": jnp.asarray(image, jnp.float32)}
    return step(State(jnp.int32(4)), batch, jax.random.key(0))


def test_a_good_step_passes_and_writes_nothing(tmp_path):
    state, metrics = _take(_explained(jnp.sqrt, tmp_path), [1, 4])
    assert int(state.step) == 5 and int(metrics["bad_steps"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_nan_is_told_by_its_operation_and_what_it_was_given_is_kept(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 5 is not finite: .*\(nan\).* sqrt") as error:
        _take(_explained(jnp.sqrt, tmp_path), [1, -4])
    kept = tmp_path / "failing_step" / "step_4_process_0.npz"
    assert str(kept) in str(error.value)
    with np.load(kept) as arrays:
        assert arrays["state/step"] == 4
        np.testing.assert_array_equal(arrays["batch/image"], [1, -4])


def test_an_infinity_without_a_nan_is_told_as_such(tmp_path):
    with pytest.raises(NonFiniteError, match="no operation gives nan by itself; .* inf"):
        _take(_explained(jnp.exp, tmp_path), [1, 1000])
