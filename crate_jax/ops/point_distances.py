"""Extreme distances of a point cloud, without its N x N matrix."""

import jax
import jax.numpy as jnp
from jax import Array

BLOCK = 512
"""Rows whose distances to all points are held at once."""

EXACT = 20_000
"""Up to so many points the diameter is exact."""

SWEEPS = 6

_HIGHEST = jax.lax.Precision.HIGHEST


def _squared(x: Array, X: Array) -> Array:
    """``|x_i - X_j|^2`` by products, ``(n, N)``: good for the largest, noise for the smallest."""
    products = jnp.matmul(x, X.T, precision=_HIGHEST)
    lengths = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(X), axis=1)[None]
    return lengths - 2 * products


def _blocks(X: Array) -> tuple[Array, Array]:
    """Rows in blocks, the last filled up with the first row, and their numbers."""
    N = X.shape[0]
    index = jnp.arange(-(-N // BLOCK) * BLOCK)
    index = jnp.where(index < N, index, 0).reshape(-1, BLOCK)
    return X[index], index


def diameter(X: Array) -> Array:
    """The largest distance of two rows of ``X: (N, D)``; ``()``.

    Exact up to :data:`EXACT` points. Beyond, the best of some sweeps, each of which goes to the
    point that is farthest from the last one: a lower bound, at least half the diameter.
    """
    X = jnp.asarray(X)
    if X.shape[0] <= EXACT:
        far = jax.lax.map(lambda x: jnp.max(_squared(x, X)), _blocks(X)[0])
        return jnp.sqrt(jnp.maximum(jnp.max(far), 0))

    def sweep(_, carry):
        x, best = carry
        distance_sq = jnp.sum(jnp.square(X - x[None]), axis=1)
        far = jnp.argmax(distance_sq)
        return X[far], jnp.maximum(best, distance_sq[far])

    zero = jnp.zeros((), X.dtype)
    start, _ = sweep(0, (jnp.mean(X, axis=0), zero))  # a point, and no pair
    return jnp.sqrt(jax.lax.fori_loop(0, SWEEPS, sweep, (start, zero))[1])


def smallest_distance(X: Array) -> Array:
    """The least distance of two rows, ``()``; 0 where one occurs twice.

    A row's nearest is found by products, whose noise may take another that is as near; its
    distance is then taken of the difference.
    """

    X = jnp.asarray(X)

    def nearest(block):
        x, index = block
        own = index[:, None] == jnp.arange(X.shape[0])[None]
        other = jnp.argmin(jnp.where(own, jnp.inf, _squared(x, X)), axis=1)
        return jnp.min(jnp.sum(jnp.square(x - X[other]), axis=1))

    return jnp.sqrt(jnp.min(jax.lax.map(nearest, _blocks(X))))
