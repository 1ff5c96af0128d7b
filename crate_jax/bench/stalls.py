"""What it costs a host to wait for each step's metrics before it makes the next batch.

    python -m crate_jax.bench stalls --model crate --variant T/16 --steps 10

``read behind`` is the training loop: a step is dispatched, then the metrics of the one before are
read. ``read at once`` waits for its own. Between steps the host makes a batch. The step and the
batch are timed alone first. Predicted: at once, they come one after the other; behind, the longer
hides the shorter, on a CPU as far as a core is free for the host, else nothing is hidden.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.bench import timing
from crate_jax.bench.step import add_sizes, config_of, make_step
from crate_jax.bench.step import title as describe
from crate_jax.config import ConfigError

BEHIND, ONCE = "read behind", "read at once"


class Loop:
    """Some steps, each on a batch that the host has just made."""

    def __init__(self, step, state, data, steps: int, behind: bool):
        self._step, self._state, self._steps, self._behind = step, state, steps, behind
        self._label, self._shape = data["label"], data["image"].shape
        self._random = np.random.default_rng(0)

    def make_batch(self):
        image = self._random.standard_normal(self._shape, np.float32)
        return {"image": jax.device_put(image), "label": self._label}

    def __call__(self) -> float:
        """Seconds a step."""
        start, before = time.perf_counter(), None
        for _ in range(self._steps):
            batch = self.make_batch()
            self._state, metrics = self._step(self._state, batch, jax.random.key(0))
            jax.device_get(before if self._behind else metrics)
            before = metrics
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / self._steps


def predict(step_s: float, batch_s: float, on_cpu: bool) -> dict[str, float]:
    """Seconds a step of both loops from those of the step and of the batch alone.

    A step on a CPU uses every core, so the batch made meanwhile takes from it what it needs.
    """
    in_turn = step_s + batch_s
    return {BEHIND: in_turn if on_cpu else max(step_s, batch_s), ONCE: in_turn}


def measure(args) -> dict[str, timing.Row]:
    """Seconds a step of both loops, predicted and measured; of the step and the batch alone."""
    timing.check_rounds(args.rounds)
    if args.steps < 1:
        raise ConfigError(f"--steps must be at least 1; got {args.steps}.")
    _, step, state, data, _ = make_step(config_of(args, {}))
    loops = {
        way: Loop(step, jax.tree.map(jnp.copy, state), data, args.steps, way == BEHIND)
        for way in (BEHIND, ONCE)
    }
    parts = {
        "step alone": timing.Stepping(step, state, data, jax.random.key(0)),
        "batch alone": loops[BEHIND].make_batch,
    }
    alone = timing.alternate(parts, args.rounds)
    on_cpu = jax.default_backend() == "cpu"
    predicted = predict(*(row["seconds"] for row in alone.values()), on_cpu)
    rows = {way: {"predicted": seconds} for way, seconds in predicted.items()}
    timing.race(rows, loops, args.rounds)
    return rows | alone


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench stalls", description=__doc__)
    add_sizes(parser, variant="Ti/16", size=64, batch=8)
    parser.add_argument("--steps", type=int, default=10, help="of each loop and round")
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    behind, once = (rows[way]["seconds"] for way in (BEHIND, ONCE))
    note = f"Reading at once takes {100 * (once / behind - 1):.1f} % longer than reading behind."
    timing.show(rows, describe(args), note)
    timing.write(args.json, rows)
    return 0
