"""Fits a quadratic patch to the data near a point: FlatNet's inner problem.

For an anchor ``z_c`` and a radius r, with weights ``k_i = exp(-gamma |z_i - mu|^2)`` about the
kernel mean mu, and ``C = z - z_c``, ``c = U^T C``:

    min over U^T U = I and V of   1/(2 n D) sum_i k_i^2 |C_i - U c_i - V q(c_i)|^2

over the n points with ``k > 1e-6`` (arXiv 2305.01777; the weights as in its code). For a given U
the best V solves a linear least-squares problem, and is orthogonal to U. A step of U needs the
gradient with V held, in which the sums over the points are

    G = sum w q q^T,   X = sum w q C^T,   A = sum w C C^T (once),   sum w C (S c)^T,    w = k^2

where S is the symmetric matrix of ``V^T R``, R the residual; ``V^T R = V^T C - V^T V q`` and
``sum w R c^T = A U - U U^T A U - V X U`` follow from the others. So a step reads the points twice,
whatever their number, and never makes the residuals themselves.

Points are columns here, in chunks: ``(B, D, n)``. A chunk is worked on at a time, and n may be
split over devices: every sum over points is one all-reduce. On a TPU the points then lie along the
lanes, of which d coordinates would fill few.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from crate_jax.models.flatnet_descent import Descent
from crate_jax.ops.flattening import products

SELECTED = 1e-6
"""Points of a smaller kernel do not count: beyond 4.46 r."""

RCOND = 1e-4
"""Singular values of the weighted products below this share of the largest are cut off."""

_HIGHEST = jax.lax.Precision.HIGHEST


class Points(NamedTuple):
    """Data in chunks.

    Attributes:
      Z: ``(B, D, n)``, points are columns; what fills up the last chunk is 0.
      valid: ``(B, n)``, 1 where there is a point, else 0.
    """

    Z: Array
    valid: Array


class Kernel(NamedTuple):
    """The Gaussian weights of one anchor and radius.

    Attributes:
      mu: ``(D,)``, the kernel mean.
      k: ``(B, n)``, weights about mu, 0 where they do not count.
      count: ``()``, how many count.
    """

    mu: Array
    k: Array
    count: Array


class Patch(NamedTuple):
    """A fitted patch.

    Attributes:
      U: ``(D, d)``, after the last step.
      V: ``(D, p)``, before it, like all that follows.
      loss: ``()``, at least 1e-20.
      error: ``()``, the largest ``k_i |R_i|``.
      spread: ``(d,)``, mean ``|c_j|`` over the points that count.
      mu: ``(D,)``, the kernel mean.
      mass: ``()``, sum of the kernel, which says how many neighbours there really are.
      steps: ``()``, of the descent.
    """

    U: Array
    V: Array
    loss: Array
    error: Array
    spread: Array
    mu: Array
    mass: Array
    steps: Array


def sum_chunks(f, *chunked: Array):
    """The sum over chunks of ``f``, which takes a chunk of each array; pytrees of arrays."""
    if chunked[0].shape[0] == 1:
        return f(*(x[0] for x in chunked))
    shapes = jax.eval_shape(f, *(x[0] for x in chunked))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(
        lambda total, chunk: (jax.tree.map(jnp.add, total, f(*chunk)), None), zeros, chunked
    )[0]


def gamma_of(r: Array) -> Array:
    """``ln 2 / r^2``: one half at the distance r."""
    return math.log(2) / jnp.square(r)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _outer(a: Array, b: Array) -> Array:
    """``sum_i a_i b_i^T`` over the columns."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=_HIGHEST)


def kernel_mean(points: Points, z_c: Array, gamma: Array) -> Array:
    """``sum k z / sum k`` with ``k = exp(-gamma |z - z_c|^2)``, ``(D,)``."""

    def sums(Z, valid):
        k = valid * jnp.exp(-gamma * jnp.sum(jnp.square(Z - z_c[:, None]), axis=0))
        return jnp.sum(k), jnp.sum(Z * k[None], axis=1)

    total, weighted = sum_chunks(sums, *points)
    return weighted / total


def kernel_about(points: Points, z_c: Array, r: Array) -> Kernel:
    """The weights of an anchor ``(D,)`` and a radius; see :class:`Kernel`."""
    gamma = gamma_of(r)
    mu = kernel_mean(points, z_c, gamma)
    k = points.valid * jnp.exp(-gamma * jnp.sum(jnp.square(points.Z - mu[None, :, None]), axis=1))
    k = jnp.where(k > SELECTED, k, 0)
    return Kernel(mu, k, jnp.sum(k > 0).astype(k.dtype))


def least_squares(G: Array, X: Array) -> Array:
    """``G^+ X`` for the Gram matrix of weighted products, with small singular values cut off.

    Cholesky where nothing is near the cut, which is nearly always; else by eigenvalues. The cut is
    ``RCOND`` of the largest singular value, and no less than what rounding leaves of G.

    Args:
      G: ``(p, p)``.
      X: ``(p, D)``.

    Returns:
      ``(p, D)``.
    """
    cut = max(RCOND**2, 8 * float(jnp.finfo(G.dtype).eps))
    L = jnp.linalg.cholesky(G)
    eye = jnp.eye(G.shape[0], dtype=G.dtype)
    inverse_root = jax.scipy.linalg.solve_triangular(L, eye, lower=True)
    # tr G^-1 >= 1 / lambda_min and tr G >= lambda_max: where this holds, nothing is cut off.
    clear = cut * jnp.trace(G) * jnp.sum(jnp.square(inverse_root)) < 1

    def by_eigenvalues():
        values, vectors = jnp.linalg.eigh(G)
        # Not above 0 where all points lie on one: there is nothing to fit then.
        keep = values > jnp.maximum(cut * values[-1], jnp.finfo(G.dtype).tiny)
        inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
        return _times(vectors, inverse[:, None] * _times(vectors.T, X))

    def by_cholesky():
        return _times(inverse_root.T, _times(inverse_root, X))

    return jax.lax.cond(clear, by_cholesky, by_eigenvalues)


def solve_patch(C: Array, w: Array, U: Array) -> tuple[Array, Array]:
    """The best V for a given U, and X U.

    Args:
      C: ``(B, D, n)``, points less the anchor.
      w: ``(B, n)``, squared weights.
      U: ``(D, d)``.

    Returns:
      ``(D, p)`` and ``(p, d)``.
    """

    def sums(C, w):
        q = products(_times(U.T, C), axis=0)
        weighted = q * w[None]
        return _outer(weighted, q), _outer(weighted, C)

    G, X = sum_chunks(sums, C, w)
    XU = _times(X, U)
    return least_squares(G, X - _times(XU, U.T)).T, XU


def patch_gradient(C: Array, w: Array, A: Array, U: Array, scale: Array) -> Array:
    """Gradient of the loss in U with V held at its best, ``(D, d)``.

    Args:
      C, w, U: see :func:`solve_patch`.
      A: ``(D, D)``, ``sum w C C^T``.
      scale: n D, what the loss is divided by.
    """
    V, XU = solve_patch(C, w, U)
    VtV = _times(V.T, V)

    def sums(C, w):
        q, pull = jax.vjp(lambda c: products(c, axis=0), _times(U.T, C))
        (Sc,) = pull(_times(V.T, C) - _times(VtV, q))
        return _outer(C, Sc * w[None])

    AU = _times(A, U)
    along = AU - _times(U, _times(U.T, AU)) - _times(V, XU)
    return -(along + sum_chunks(sums, C, w)) / scale


class Measures(NamedTuple):
    """What is known of a patch: see :class:`Patch`."""

    loss: Array
    error: Array
    spread: Array


def measure_patch(points: Points, kernel: Kernel, z_c: Array, U: Array, V: Array) -> Measures:
    """Loss, largest error and spread of a patch, from the residuals themselves."""
    D = U.shape[0]

    def chunk(Z, k):
        C = Z - z_c[:, None]
        c = _times(U.T, C)
        R = C - _times(U, c) - _times(V, products(c, axis=0))
        length_sq = jnp.square(k) * jnp.sum(jnp.square(R), axis=0)
        return (
            jnp.sum(length_sq),
            jnp.max(length_sq),
            jnp.sum(jnp.abs(c) * (k > 0)[None], axis=1),
        )

    if points.Z.shape[0] == 1:
        total, error_sq, spread = chunk(points.Z[0], kernel.k[0])
    else:
        totals, errors_sq, spreads = jax.lax.map(lambda x: chunk(*x), (points.Z, kernel.k))
        total, error_sq, spread = jnp.sum(totals), jnp.max(errors_sq), jnp.sum(spreads, axis=0)
    loss = jnp.maximum(total / (2 * kernel.count * D), 1e-20)  # its logarithm is taken
    return Measures(loss, jnp.sqrt(error_sq), spread / kernel.count)


def fit_patch(
    points: Points,
    z_c: Array,
    U: Array,
    r: Array,
    descent: Descent,
    *,
    max_steps: int = 1000,
    tolerance: float = 1e-5,
    sample: Array | None = None,
) -> Patch:
    """Descends on U, with V at its best throughout, until U stands still.

    Args:
      points: the data.
      z_c: ``(D,)``, the anchor.
      U: ``(D, d)``, where to start.
      r: ``()``, the radius.
      descent: of ``models.flatnet_descent``; its state is fresh here.
      max_steps: it gives up after.
      tolerance: root mean square change of the entries of U at which it stops.
      sample: ``(m,)`` uniform numbers; the descent then sees m points only, drawn with
        replacement in proportion to ``k^2``. The kernel, the loss and the error are of all points.

    Returns:
      The patch.
    """
    D = points.Z.shape[1]
    kernel = kernel_about(points, z_c, r)
    if sample is None:
        C, w = points.Z - z_c[None, :, None], jnp.square(kernel.k)
    else:
        C, w = _draw(points, kernel, z_c, sample)
    A = sum_chunks(lambda C, w: _outer(C * w[None], C), C, w)
    scale = kernel.count * D

    def step(carry):
        U, _, state, count, _ = carry
        new, state = descent.step(U, patch_gradient(C, w, A, U, scale), state)
        moved = jnp.sqrt(jnp.mean(jnp.square(new - U)))
        return new, U, state, count + 1, moved

    def goes_on(carry):
        return (carry[3] < max_steps) & (carry[4] >= tolerance)

    start = (U, U, descent.init(U), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, U.dtype))
    U, before, _, steps, _ = jax.lax.while_loop(goes_on, step, start)
    V, _ = solve_patch(C, w, before)
    measures = measure_patch(points, kernel, z_c, before, V)
    return Patch(U, V, *measures, kernel.mu, jnp.sum(kernel.k), steps)


def _draw(points: Points, kernel: Kernel, z_c: Array, sample: Array) -> tuple[Array, Array]:
    """``C: (1, D, m)`` and its weights ``(1, m)``, whose sum is that of all points."""
    B, D, n = points.Z.shape
    mass = jnp.cumsum(jnp.square(kernel.k).reshape(-1))
    index = jnp.searchsorted(mass, sample * mass[-1], side="right")
    index = jnp.minimum(index, B * n - 1)
    Z = points.Z[index // n, :, index % n].T
    w = jnp.full((1, sample.shape[0]), mass[-1] / sample.shape[0])
    return Z[None] - z_c[None, :, None], w


def local_frame(points: Points, z_c: Array, r: Array, d: int, refits: int = 3) -> Array:
    """A start for U: weighted PCA about mu, bettered by local quadratic regression.

    The linear part of a regression of C on ``(1, c, q(c))`` spans the tangent space at the anchor
    to one order more than PCA. The best of the PCA and its refits, by the loss, is kept: at large
    radii refits may run away. It is a start only: its loss may be many times the optimum's.

    Args:
      points, z_c, r: see :func:`fit_patch`.
      d: columns.
      refits: of the regression.

    Returns:
      ``(D, d)``, orthonormal.
    """
    kernel = kernel_about(points, z_c, r)
    C, w = points.Z - z_c[None, :, None], jnp.square(kernel.k)

    def spread(Z, w):
        centred = Z - kernel.mu[:, None]
        return _outer(centred * w[None], centred)

    best = jnp.linalg.eigh(sum_chunks(spread, points.Z, w))[1][:, ::-1][:, :d]
    least, U = measure_patch(points, kernel, z_c, best, solve_patch(C, w, best)[0]).loss, best
    for _ in range(refits):
        U = _refit(C, w, U)
        loss = measure_patch(points, kernel, z_c, U, solve_patch(C, w, U)[0]).loss
        best, least = jnp.where(loss < least, U, best), jnp.minimum(loss, least)
    return best


def _refit(C: Array, w: Array, U: Array) -> Array:
    """The orthonormalised linear part of the regression of C on ``(1, c, q(c))``."""
    d = U.shape[1]

    def sums(C, w):
        c = _times(U.T, C)
        features = jnp.concatenate([jnp.ones_like(c[:1]), c, products(c, axis=0)])
        weighted = features * w[None]
        return _outer(weighted, features), _outer(weighted, C)

    G, X = sum_chunks(sums, C, w)
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(G), jnp.finfo(G.dtype).tiny))
    B = least_squares(G / (length[:, None] * length[None]), X / length[:, None])
    return jnp.linalg.qr((B / length[:, None])[1 : 1 + d].T)[0]
