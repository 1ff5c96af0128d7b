"""Formulations of the rate reduction of many classes, with the gradient.

    python -m crate_jax.bench coding_rates --features 512 --samples 4096 --classes 100

``loop`` goes through the classes as the released code does, one d x d Gram and one log-determinant
each, here compiled once and by Cholesky. ``ours`` puts the samples of a class side by side and
takes the smaller Gram, all classes at once. ``d x d`` is that with the Gram of the features;
``slogdet`` factors it by LU. ``svd``, with ``--svd``, takes singular values, as MCR^2's package
does. ``one-hot``, with ``--one-hot``, is the contraction over samples and classes, K times the
products. Predicted: FLOPs of Grams, factors and inverses.
"""

import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.bench import timing
from crate_jax.ops import class_blocks
from crate_jax.ops.coding_rate import (
    class_coding_rate,
    class_grams,
    coding_rate,
    logdet_identity_plus,
)

EPS_SQ = 0.5


def ours(Z, labels, K):
    """``R - R^c`` by the package."""
    return coding_rate(Z, eps_sq=EPS_SQ) - class_coding_rate(Z, labels, K, eps_sq=EPS_SQ)


def by_features(Z, labels, K, logdet=logdet_identity_plus):
    """``R - R^c`` by the d x d Grams of all classes at once."""
    N, d = Z.shape
    N_k, grams = class_grams(Z, labels, K)
    scale = d / (jnp.maximum(N_k, 1) * EPS_SQ)
    rates = N_k / (2 * N) * logdet(scale[:, None, None] * grams)
    whole = logdet(d / (N * EPS_SQ) * jnp.matmul(Z.T, Z, precision="highest"))
    return 0.5 * whole - rates.sum()


def slogdet(G):
    """``logdet(I + G)`` by LU."""
    return jnp.linalg.slogdet(jnp.broadcast_to(jnp.eye(G.shape[-1]), G.shape) + G)[1]


def by_singular_values(Z, labels, K):
    """``R - R^c`` by the singular values of the samples, class by class side by side."""
    N, d = Z.shape
    N_k, Z_k = class_blocks.stacked(Z, labels, K, class_blocks.room(N, K))

    def rate(X, n):
        s = jnp.linalg.svd(X, compute_uv=False)
        return 0.5 * jnp.sum(jnp.log1p(d / (n * EPS_SQ) * s**2), axis=-1)

    return rate(Z, N) - jnp.sum(N_k / N * jax.vmap(rate)(Z_k, jnp.maximum(N_k, 1)))


def one_hot(Z, labels, K):
    """``R - R^c`` by a contraction over samples and classes."""
    Pi = jax.nn.one_hot(labels, K)
    N, d = Z.shape
    grams = jnp.einsum("nk,ni,nj->kij", Pi, Z, Z, precision="highest")
    N_k = Pi.sum(0)
    scale = d / (jnp.maximum(N_k, 1) * EPS_SQ)
    rates = N_k / (2 * N) * logdet_identity_plus(scale[:, None, None] * grams)
    return coding_rate(Z, eps_sq=EPS_SQ) - rates.sum()


def make_loop(labels, K: int):
    """A function of Z that goes through the classes, each by a call of one compiled function."""
    rows = [np.flatnonzero(labels == k) for k in range(K)]
    room, N = max(map(len, rows)), len(labels)
    rows = [jnp.asarray(np.pad(r, (0, room - len(r)), constant_values=N)) for r in rows]
    sizes = [jnp.asarray(np.sum(labels == k), jnp.float32) for k in range(K)]

    def part(Z_k, n):
        d = Z_k.shape[1]
        gram = jnp.matmul(Z_k.T, Z_k, precision="highest")
        return -n / (2 * N) * logdet_identity_plus(d / (n * EPS_SQ) * gram)

    @partial(jax.jit, donate_argnums=1)
    def add(Z, gradient, rows, n):
        Z_k = Z.at[rows].get(mode="fill", fill_value=0.0)
        value, slope = jax.value_and_grad(part)(Z_k, n)
        return value, gradient.at[rows].add(slope, mode="drop")

    whole = jax.jit(jax.value_and_grad(partial(coding_rate, eps_sq=EPS_SQ)))

    def run(Z):
        value, gradient = whole(Z)
        for r, n in zip(rows, sizes, strict=True):
            if n:
                term, gradient = add(Z, gradient, r, n)
                value += term
        return value, gradient

    return run


def flops(name: str, N: int, d: int, K: int) -> float:
    """Products of Grams (thrice, with the gradient), factors and inverses, times two."""

    def factor(m):
        return m**3 / 3 + 2 * m**3

    whole = 3 * N * d * d + factor(d)
    room = min(class_blocks.room(N, K), N)
    classes = {
        "loop": 3 * N * d * d + K * factor(d),
        "ours": 3 * K * room * room * d + K * factor(room),
        "d x d": 3 * (N + K * d) * d * d + K * factor(d),
        "one-hot": 3 * K * N * d * d + K * factor(d),
    }
    if name == "ours" and room >= d:
        name = "d x d"
    return 2 * (whole + classes[name])


def measure(args) -> dict[str, timing.Row]:
    """Rows of seconds and predicted seconds; all ways agree on the value and the gradient."""
    N, d, K = args.samples, args.features, args.classes
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(N) % K)
    Z = rng.normal(size=(N, d)).astype(np.float32)
    Z = jnp.asarray(Z / np.linalg.norm(Z, axis=1, keepdims=True))
    ways = {"ours": ours, "d x d": by_features, "slogdet": partial(by_features, logdet=slogdet)}
    if args.svd:
        ways["svd"] = by_singular_values
    if args.one_hot:
        ways["one-hot"] = one_hot
    runs = {"loop": partial(make_loop(labels, K), Z)}
    place = jnp.asarray(labels, jnp.int32)
    for name, way in ways.items():
        runs[name] = partial(
            jax.jit(jax.value_and_grad(lambda Z, labels, f=way: f(Z, labels, K))), Z, place
        )
    value, gradient = runs["loop"]()
    for name, run in runs.items():
        other, slope = run()
        np.testing.assert_allclose(other, value, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(slope, gradient, atol=2e-3 * float(abs(gradient).max()))
    rate, rows = timing.matmul_rate(), {}
    for name in runs:
        known = name in ("loop", "ours", "d x d", "one-hot")
        rows[name] = {"predicted": flops(name, N, d, K) / rate} if known else {}
    timing.race(rows, runs, args.rounds)
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench coding_rates", description=__doc__
    )
    parser.add_argument("--features", type=int, default=512, help="d")
    parser.add_argument("--samples", type=int, default=4096, help="N")
    parser.add_argument("--classes", type=int, default=100, help="K")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--svd", action="store_true", help="the singular values too")
    parser.add_argument("--one-hot", action="store_true", help="the contraction too, far slower")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    if min(args.features, args.samples, args.classes, args.rounds) < 1:
        print("--features, --samples, --classes and --rounds must be at least 1.", file=sys.stderr)
        return 2
    if args.samples < args.classes:
        print(
            f"--samples={args.samples} leaves some of --classes={args.classes} empty; raise it.",
            file=sys.stderr,
        )
        return 2
    rows = measure(args)
    title = f"rate reduction and gradient, {args.samples} samples of {args.features}"
    device = jax.devices()[0].device_kind
    timing.show(rows, f"{title}, {args.classes} classes, {device}")
    timing.write(args.json, rows)
    return 0
