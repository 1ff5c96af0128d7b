"""Seconds until a step is compiled: with JAX's persistent cache empty, and with it filled.

    python -m crate_jax.bench cache --model crate_alpha --variant B/16

Every compilation is in a fresh process, as that of a run which is started again. A round is an
empty directory, then the same one filled. Predicted: filled, only tracing and lowering are left,
whose share is taken from one more compilation at the start.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import jax

from crate_jax.bench import timing
from crate_jax.bench.step import add_sizes, config_of
from crate_jax.config import ConfigError
from crate_jax.run import example_batch, system_alone

SIZES = ("model", "variant", "size", "batch", "dtype")


def compile_once(args, directory: str) -> dict[str, float]:
    """Seconds to trace and lower, and in all, with the cache in ``directory``."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = config_of(args, {"scan_layers": True})
    system, batch, key = system_alone(config), example_batch(config), jax.random.key(0)
    state = jax.eval_shape(system.init, key, batch)
    start = time.perf_counter()
    lowered = jax.jit(system.step, donate_argnums=0).lower(state, batch, key)
    lower_s = time.perf_counter() - start
    lowered.compile()
    return {"lower_s": lower_s, "seconds": time.perf_counter() - start}


def in_a_fresh_process(args, directory: str) -> dict[str, float]:
    """:func:`compile_once` of another process."""
    words = [f"--{name}={getattr(args, name)}" for name in SIZES]
    command = [sys.executable, "-m", "crate_jax.bench", "cache", *words, "--directory", directory]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def measure(args) -> dict[str, timing.Row]:
    """Seconds with a cache that is empty and one that is filled, predicted and measured."""
    timing.check_rounds(args.rounds)
    system_alone(config_of(args, {}))  # for its sentences
    with tempfile.TemporaryDirectory() as directory:
        first = in_a_fresh_process(args, directory)
    rows = {"empty": {"predicted": first["seconds"]}, "filled": {"predicted": first["lower_s"]}}
    timing.foretell(rows)
    found = {way: [] for way in rows}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as directory:
            for times in found.values():
                times.append(in_a_fresh_process(args, directory)["seconds"])
    return {way: row | timing.spread(found[way]) for way, row in rows.items()}


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench cache", description=__doc__)
    add_sizes(parser, variant="B/16", size=224, batch=4)
    parser.add_argument("--directory", help="compile once with the cache there; print JSON")
    args = parser.parse_args(argv)
    try:
        if args.directory:
            print(json.dumps(compile_once(args, args.directory)))
            return 0
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    timing.show(rows, f"compiling {args.model} {args.variant}")
    timing.write(args.json, rows)
    return 0
