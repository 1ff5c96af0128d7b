"""The step that takes over its state's memory beside one that keeps it.

    python -m crate_jax.bench donation --model crate_alpha --variant B/16 --batch 4

Predicted: the same time, and without donation the state's bytes more, since the old one and the new
one are there at once.
"""

import argparse
import sys

import jax

from crate_jax.bench import timing
from crate_jax.bench.step import add_sizes, config_of, make_step, measure_rates, peak_gib, predict
from crate_jax.bench.step import title as describe
from crate_jax.config import ConfigError

WAYS = {"donated": True, "kept": False}


def measure(args) -> dict[str, timing.Row]:
    """Seconds a step and GiB at its peak, predicted and measured."""
    timing.check_rounds(args.rounds)
    config, key, rates = config_of(args, {}), jax.random.key(0), measure_rates(args.dtype)
    rows, runs = {}, {}
    for way, donate in WAYS.items():
        system, step, state, data, _ = make_step(config, donate)
        seconds = predict(system.step, state, data, key, rates=rates)
        rows[way] = {"predicted": seconds, "peak_gib": peak_gib(step)}
        runs[way] = timing.Stepping(step, state, data, key)
    state_gib = sum(x.nbytes for x in jax.tree.leaves(state)) / 2**30
    rows["donated"]["predicted_gib"] = rows["donated"]["peak_gib"]
    rows["kept"]["predicted_gib"] = rows["donated"]["peak_gib"] + state_gib
    timing.race(rows, runs, args.rounds)
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench donation", description=__doc__)
    add_sizes(parser, variant="B/16", size=224, batch=4)
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    timing.show(rows, describe(args), columns=("predicted_gib", "peak_gib"))
    timing.write(args.json, rows)
    return 0
