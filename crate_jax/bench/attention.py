"""Implementations of shared attention, forward and with its gradient.

    python -m crate_jax.bench attention --batch 8 --tokens 197 --heads 12 --head-size 64

Predicted: products at the measured rate of a matrix product, plus N x N arrays through memory at
the measured rate of a copy: the einsum writes and reads logits and weights (forward four passes,
with the gradient twelve), rematerialised it forms them twice, and a fused kernel keeps them on the
chip. ``cudnn`` runs on NVIDIA GPUs and ``pallas`` on TPUs.
"""

import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp

from crate_jax.bench import timing
from crate_jax.ops.attention import IMPLEMENTATIONS, attend

NEEDS = {"cudnn": "gpu", "pallas": "tpu"}


def ways() -> dict[str, dict]:
    """Arguments of ``attend`` by name, of what runs here."""
    names = [
        n for n in IMPLEMENTATIONS if NEEDS.get(n, jax.default_backend()) == jax.default_backend()
    ]
    return {name: {"implementation": name} for name in names} | {
        "einsum, remat": {"implementation": "einsum", "remat": True}
    }


def predict(args, name: str, gradient: bool, flop_rate: float, byte_rate: float) -> float:
    """Seconds by the counts at the top."""
    products, passes = (6, 12) if gradient else (2, 4)
    if "remat" in name and gradient:
        products, passes = products + 1, passes + 4
    square = args.batch * args.heads * args.tokens**2
    flops = products * 2 * square * args.head_size
    moved = 0 if name in NEEDS else passes * square * jnp.dtype(args.dtype).itemsize
    return flops / flop_rate + moved / byte_rate


def measure(args) -> dict[str, timing.Row]:
    """Rows of seconds and predicted seconds."""
    shape = (args.batch, args.tokens, args.heads, args.head_size)
    w = jax.random.normal(jax.random.key(0), shape, args.dtype)
    rates = timing.matmul_rate(dtype=args.dtype), timing.copy_rate()
    runs, rows = {}, {}
    for name, how in ways().items():
        forward = partial(
            lambda w, how: attend(w, w, w, scale=args.head_size**-0.5, **how)[0], how=how
        )
        both = jax.jit(jax.grad(lambda w, forward=forward: forward(w).astype(jnp.float32).sum()))
        forward = jax.jit(forward)
        for gradient, function in ((False, forward), (True, both)):
            label = f"{name}, gradient" if gradient else name
            runs[label] = partial(function, w)
            rows[label] = {"predicted": predict(args, name, gradient, *rates)}
    timing.race(rows, runs, args.rounds)
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench attention", description=__doc__
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    if min(args.batch, args.tokens, args.heads, args.head_size, args.rounds) < 1:
        print("sizes and --rounds must be at least 1.", file=sys.stderr)
        return 2
    rows = measure(args)
    device = jax.devices()[0].device_kind
    timing.show(
        rows, f"attention, {args.batch} x {args.tokens} tokens, {args.heads} heads, {device}"
    )
    timing.write(args.json, rows)
    return 0
