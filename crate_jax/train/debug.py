"""Where a step that is not finite goes wrong: the operation, and all that it was given."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from crate_jax.sharding.rules import named_leaves
from crate_jax.train.protocol import System
from crate_jax.train.reading import first_line
from crate_jax.train.readout import NonFiniteError

DUMP = "failing_step"


def explained(system: System, workdir: pathlib.Path, compiled: Callable) -> Callable:
    """A step that, where its loss or gradient is not finite, stops the run and says why.

    The step is taken again operation by operation under ``jax_debug_nans``, from the same state and
    batch; these are written to ``failing_step/`` first. It is compiled without donation, and every
    step is waited for.

    Args:
      system: whose step it is.
      workdir: where the dump goes.
      compiled: ``(state, batch, key) -> (state, metrics)`` that leaves its state alone.
    """

    def step(state, batch, key):
        after, metrics = compiled(state, batch, key)
        if not jax.device_get(metrics["bad_steps"]):
            return after, metrics
        with jax.transfer_guard("allow"):
            number = int(state.step)
            path = dump(workdir, number, state, batch)
            # One process alone would wait for the others at its first operation.
            why = "the operation is looked for where one process has all devices."
            if jax.process_count() == 1:
                why = find_operation(system, state, batch, key)
        raise NonFiniteError(
            f"step {number + 1} is not finite: {why}\n"
            f"The state before it and its batch are in {path}."
        )

    return step


def find_operation(system: System, state, batch, key) -> str:
    """The first operation of a step that gives nan, and where in the code it stands."""
    try:
        with jax.debug_nans(True), jax.disable_jit():
            system.step(state, batch, jax.random.fold_in(key, state.step))
    except FloatingPointError as error:
        return first_line(error)
    return "no operation gives nan by itself; look for an overflow to inf."


def dump(workdir: pathlib.Path, number: int, state, batch) -> pathlib.Path:
    """Writes the parts of a state and a batch that this process holds; returns the file."""
    directory = workdir / DUMP
    directory.mkdir(exist_ok=True)
    path = directory / f"step_{number}_process_{jax.process_index()}.npz"
    arrays = {}
    for name, x in named_leaves({"state": state, "batch": batch}).items():
        if x.is_fully_addressable:
            arrays[name] = np.asarray(x)
        else:
            arrays |= {f"{name}@{s.device.id}": np.asarray(s.data) for s in x.addressable_shards}
    np.savez(path, **arrays)
    return path
