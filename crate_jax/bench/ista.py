"""Formulations of CRATE-alpha's two proximal steps, with their gradient.

    python -m crate_jax.bench ista --tokens 788 --width 768

As published: ``z_2 = relu(z_1 - eta D^T (D z_1 - y) - eta lambda)``. Reusing ``p = eta D^T y`` of
the first step spares an addition, not a product. By the Gram matrix ``D^T D`` the second step is
one product of 4d x 4d where there were two of d x 4d: twice the FLOPs. Predicted: FLOPs alone.
"""

import argparse
import sys
from functools import partial

import jax

from crate_jax.bench import timing
from crate_jax.ops.sparse import ista_step, relu_threshold

ETA = LMBDA = 0.1
EXPANSION = 4


def published(y, D):
    """As the layer has it."""
    z = relu_threshold(ETA * (y @ D), ETA * LMBDA)
    return ista_step(z, y, D, eta=ETA, lmbda=LMBDA)


def reused(y, D):
    """``relu(z_1 - eta D^T D z_1 + p - eta lambda)``."""
    p = ETA * (y @ D)
    z = relu_threshold(p, ETA * LMBDA)
    return relu_threshold(z - ETA * ((z @ D.T) @ D) + p, ETA * LMBDA)


def gram(y, D):
    """The same, with ``D^T D`` formed first."""
    p = ETA * (y @ D)
    z = relu_threshold(p, ETA * LMBDA)
    return relu_threshold(z - ETA * (z @ (D.T @ D)) + p, ETA * LMBDA)


FORMULATIONS = {"published": published, "p reused": reused, "Gram matrix": gram}


def products(name: str, tokens: int, width: int) -> int:
    """FLOPs with the gradient: three times those of the forward pass."""
    atoms = EXPANSION * width
    second = tokens * atoms * atoms + width * atoms * atoms
    if name != "Gram matrix":
        second = 2 * tokens * width * atoms
    return 3 * 2 * (tokens * width * atoms + second)


def measure(args) -> dict[str, timing.Row]:
    """Rows of seconds and predicted seconds."""
    y = jax.random.normal(jax.random.key(0), (args.tokens, args.width))
    D = jax.random.normal(jax.random.key(1), (args.width, EXPANSION * args.width)) / args.width
    rate, rows, runs = timing.matmul_rate(), {}, {}
    for name, function in FORMULATIONS.items():
        gradient = jax.jit(jax.grad(lambda y, D, f=function: f(y, D).sum(), argnums=(0, 1)))
        runs[name] = partial(gradient, y, D)
        rows[name] = {"predicted": products(name, args.tokens, args.width) / rate}
    timing.race(rows, runs, args.rounds)
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench ista", description=__doc__)
    parser.add_argument("--tokens", type=int, default=788, help="of all images")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    if min(args.tokens, args.width, args.rounds) < 1:
        print("--tokens, --width and --rounds must be at least 1.", file=sys.stderr)
        return 2
    rows = measure(args)
    device = jax.devices()[0].device_kind
    timing.show(rows, f"sparse coding, {args.tokens} tokens of {args.width}, {device}")
    timing.write(args.json, rows)
    return 0
