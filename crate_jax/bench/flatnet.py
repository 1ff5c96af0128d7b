"""FlatNet's construction beside the published algorithm in eager PyTorch, on the same data.

    python -m crate_jax.bench flatnet --torch-python PATH/TO/python
    python -m crate_jax.bench flatnet --points 100000 --fit-points 16384 --iterations 6 --rounds 1

Both carry out the first iterations of a construction on a Gaussian-process manifold: dimension
search, middle radius, secant step, layer. Anchors and starts are drawn by each on its own, so the
numbers of inner steps differ a little: a way's seconds are for so many *inner steps*, and
``ms_step`` is what to compare. PyTorch has the algorithm as the paper's code carries it out
(``bench/peers/pytorch_flatnet.py``): a least-squares call, the gradient by autograd and a D x D
solve a step. Predicted is its ratio to us by multiplications. ``hours`` is what 500 iterations
would take at the pace of these: later ones cost the same unless d changes.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

from crate_jax.bench import timing
from crate_jax.bench.peers import Torch
from crate_jax.config import ConfigError
from crate_jax.data.manifolds import gaussian_process
from crate_jax.models.flatnet_build import Builder
from crate_jax.models.flatnet_settings import Construction

OURS, PEER = "ours", "PyTorch eager"


class Peer(Torch):
    """The published algorithm in a process of its own."""

    SCRIPT = "pytorch_flatnet.py"


class _Way:
    """Repeats the first iterations of a construction, and keeps what they did."""

    def __init__(self, run):
        self._run, self.steps, self.dims = run, [], []

    def __call__(self) -> float:
        seconds, steps, dims = self._run()
        self.steps.append(steps)
        self.dims = dims
        return seconds


def _ours(X: np.ndarray, construction: Construction):
    def run():
        builder = Builder(X, construction, seed=1)
        start = time.perf_counter()
        for _ in range(construction.n_iter):
            builder.advance()
        seconds = time.perf_counter() - start
        iterations = builder.iterations
        return seconds, sum(it.steps for it in iterations), [it.d for it in iterations]

    return run


def _theirs(peer: Peer):
    def run():
        answer = peer.ask("step")
        return answer["step_s"], answer["steps"], answer["dims"]

    return run


def multiplications(N: int, D: int, d: int) -> tuple[float, float]:
    """Of an inner step: ours, and the published one's with a least-squares call by QR."""
    p = d * (d + 1) / 2
    ours = 2 * N * (D * p + D * d + p * p) + p**3 / 3
    theirs = N * (2 * p * p + 2 * D * p + 4 * D * p + 6 * D * d) + 2 * D**3 / 3 + D * D * d
    return ours, theirs


def measure(args) -> dict[str, timing.Row]:
    """Rows by way; see the top of the file."""
    timing.check_rounds(args.rounds)
    rng = np.random.default_rng(0)
    X = gaussian_process(rng.uniform(size=(args.points, args.dim)), args.ambient, rng)
    X = X.astype(np.float32)
    construction = Construction(
        n_iter=args.iterations, n_iter_inner=1000, n_fit=args.fit_points, d_max=args.d_max
    )
    ways = {OURS: _Way(_ours(X, construction))}
    ours, theirs = multiplications(args.points, args.ambient, args.dim)
    rows = {OURS: {"predicted": ours}}
    with contextlib.ExitStack() as stack:
        if args.torch_python:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            data = pathlib.Path(directory) / "data.npz"
            np.savez(data, X=X)
            settings = {"iterations": args.iterations, "d_max": args.d_max}
            peer = Peer(args.torch_python, data, settings)
            stack.callback(peer.close)
            ways[PEER], rows[PEER] = _Way(_theirs(peer)), {"predicted": theirs}
        timing.race(rows, ways, args.rounds)
    for name, way in ways.items():
        steps = np.median(way.steps[1:])  # the first round warms up
        rows[name]["steps"] = float(steps)
        rows[name]["ms_step"] = 1e3 * rows[name]["seconds"] / steps
        rows[name]["hours"] = rows[name]["seconds"] / args.iterations * 500 / 3600
        print(f"{name}: dimensions {way.dims}")
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench flatnet", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--ambient", type=int, default=50, help="D")
    parser.add_argument("--dim", type=int, default=5, help="d of the manifold")
    parser.add_argument("--d-max", type=int, default=32, help="columns of U at most")
    parser.add_argument("--fit-points", type=int, default=0, help="see Construction.n_fit")
    parser.add_argument("--iterations", type=int, default=3, help="of the construction, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch-python", help="an interpreter that has torch")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        for name in ("points", "ambient", "dim", "d_max", "iterations"):
            if getattr(args, name) < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} must be at least 1; got {getattr(args, name)}.")
        timing.check_interpreter(args.torch_python)
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    title = (
        f"FlatNet, N = {args.points:,}, D = {args.ambient}, d = {args.dim}, first "
        f"{args.iterations} iterations, {jax.devices()[0].device_kind}"
    )
    timing.show(rows, title, columns=("steps", "ms_step", "hours"))
    timing.write(args.json, rows)
    return 0
