"""Gradient ascent on a landscape of rate reduction: all starts under one vmap, or one by one.

    python -m crate_jax.bench landscape --sizes 12 18 30 --dimension 20 --starts 64

All ways take the same number of steps from the same starts, in float64, in turn round after round:
``mapped`` in one compiled call, ``in blocks`` a block of starts a call, ``one by one`` a call a
start, ``a call a step`` one by one from Python. Predicted: arithmetic is the same, so mapping gains
what it costs to start the many small operations of a step.
"""

import argparse
import sys
from collections.abc import Callable

import jax

from crate_jax.bench import timing
from crate_jax.config import ConfigError
from crate_jax.studies.landscape.ascent import draw
from crate_jax.studies.landscape.problem import Problem
from crate_jax.studies.landscape.settings import Settings, check, problem_of


def measure(args) -> dict[str, timing.Row]:
    """Seconds for ``steps`` steps from every start, and starts a second, by way."""
    settings = Settings(
        sizes=tuple(args.sizes), d=args.dimension, eps_sq=args.eps_sq, fraction=args.fraction
    )
    check(settings)
    with jax.enable_x64(True):
        rows = timing.alternate(_ways(problem_of(settings), args), args.rounds)
    for row in rows.values():
        row["starts_per_s"] = args.starts / row["seconds"]
    return rows


def _ways(problem: Problem, args) -> dict[str, Callable]:
    starts = draw(problem, args.starts, 1.0, 0)
    climb = _climb(problem, args.steps)
    mapped, alone, step = jax.jit(jax.vmap(climb)), jax.jit(climb), jax.jit(_climb(problem, 1))

    def by_steps():
        ends = []
        for Z in starts:
            for _ in range(args.steps):
                Z = step(Z)
            ends.append(jax.block_until_ready(Z))
        return ends

    return {
        "mapped": lambda: mapped(starts),
        f"in blocks of {args.block}": lambda: [
            jax.block_until_ready(mapped(starts[i : i + args.block]))
            for i in range(0, args.starts, args.block)
        ],
        "one by one": lambda: [jax.block_until_ready(alone(Z)) for Z in starts],
        "one by one, a call a step": by_steps,
    }


def _climb(problem: Problem, steps: int) -> Callable:
    """So many steps of gradient ascent of the safe size from one start."""

    def climb(Z):
        def advance(Z, _):
            return Z + problem.gradient(Z) / problem.alpha, None

        return jax.lax.scan(advance, Z, length=steps)[0]

    return climb


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench landscape", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 18, 30], help="of the classes")
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--eps-sq", type=float, default=0.25)
    parser.add_argument("--fraction", type=float, default=0.2, help="lmbda over lambda_max")
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--block", type=int, default=8, help="starts of one call, in blocks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        timing.check_rounds(args.rounds)
        if min(args.starts, args.steps, args.block) < 1:
            raise ConfigError("--starts, --steps and --block must be at least 1.")
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    title = (
        f"{args.starts} starts, {args.steps} steps each: classes of {args.sizes} in "
        f"{args.dimension} dimensions, float64, {jax.devices()[0].device_kind}"
    )
    timing.show(rows, title, columns=("starts_per_s",))
    timing.write(args.json, rows)
    return 0
