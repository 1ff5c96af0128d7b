"""The Stiefel manifold: tangents, retractions, polar projection, Riemannian SGD and Adam.

A point is ``X: (..., n, m)`` with ``n >= m`` and orthonormal columns, ``X^T X = I``. The metric is
the canonical one, ``<U, V>_X = tr U^T (I - X X^T / 2) V``, in which a Euclidean gradient ``G``
becomes ``G - X G^T X``. Gradients are of something to be minimised.

The optimizers make the steps of geoopt (Kochurov et al. 2020, arXiv 2005.02819), which the released
code of CTRL-SSP and FlatNet uses. Its retraction is the Cayley transform of ``U X^T - X U^T``. That
stays on the manifold and moves momentum isometrically, but it counts the part of ``U`` inside the
span of ``X`` twice: to first order ``X`` moves by ``U + X X^T U``. :func:`retract` has it as
``cayley`` and the transform without the double part as ``cayley_exact`` (Wen and Yin 2013).
"""

import jax
import jax.numpy as jnp
from jax import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def _product(A: Array, B: Array) -> Array:
    return jnp.matmul(A, B, precision=_HIGHEST)


def _transpose(X: Array) -> Array:
    return jnp.swapaxes(X, -1, -2)


def tangent(X: Array, G: Array) -> Array:
    """The Riemannian gradient ``G - X G^T X`` of the canonical metric.

    Args:
      X: ``(..., n, m)``, orthonormal columns.
      G: ``(..., n, m)``, Euclidean gradient.

    Returns:
      ``(..., n, m)``, with ``X^T U + U^T X = 0``.
    """
    return G - _product(_product(X, _transpose(G)), X)


def project_tangent(X: Array, V: Array) -> Array:
    """The nearest tangent vector in the Euclidean norm, ``V - X sym(X^T V)``; shapes as there."""
    XtV = _product(_transpose(X), V)
    return V - _product(X, 0.5 * (XtV + _transpose(XtV)))


def inner(X: Array, U: Array, V: Array) -> Array:
    """The canonical metric ``tr U^T V - 1/2 tr (X^T U)^T (X^T V)`` of tangents; ``(...)``."""
    XtU, XtV = _product(_transpose(X), U), _product(_transpose(X), V)
    return jnp.sum(U * V, axis=(-2, -1)) - 0.5 * jnp.sum(XtU * XtV, axis=(-2, -1))


def polar(X: Array) -> Array:
    """The nearest point of the manifold: ``U V^T`` of the thin SVD ``X = U S V^T``.

    A wide ``X`` (n < m) gets orthonormal rows. Where a singular value is 0 it is one of several.
    """
    U, _, Vt = jnp.linalg.svd(X, full_matrices=False)
    return _product(U, Vt)


def polar_newton(X: Array, iterations: int = 6) -> Array:
    """:func:`polar` by Newton-Schulz, ``X <- X (3 I - X^T X) / 2``: products alone.

    The error of a singular value s is squared in each iteration, ``1.5 (s - 1)^2`` remains. From
    within 0.3 of the manifold six iterations reach float64, from within 1e-3 two; singular values
    of sqrt(3) and more do not converge to 1. So it serves after a small step, where an SVD in a
    loop would take most of the time.

    Args:
      X: ``(..., n, m)``; wide ones get orthonormal rows.
      iterations: how many.

    Returns:
      ``(..., n, m)``.
    """
    if X.shape[-2] < X.shape[-1]:
        return _transpose(polar_newton(_transpose(X), iterations))
    for _ in range(iterations):
        X = 1.5 * X - 0.5 * _product(X, _product(_transpose(X), X))
    return X


def random_point(key: Array, n: int, m: int, dtype=jnp.float32) -> Array:
    """A point ``(n, m)`` of the uniform law: Q of a Gaussian matrix, its signs fixed by R."""
    return _signed_q(jax.random.normal(key, (n, m), dtype))


def _signed_q(X: Array) -> Array:
    """Q of the QR decomposition in which R has a positive diagonal."""
    Q, R = jnp.linalg.qr(X)
    sign = jnp.where(jnp.diagonal(R, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(X.dtype)
    return Q * sign[..., None, :]


def cayley_transport(X: Array, U: Array, V: Array) -> Array:
    """``(I - A/2)^{-1} (I + A/2) V`` with ``A = U X^T - X U^T``, an orthogonal map.

    ``A = [U, -X] [X, U]^T`` has rank 2m, so the system solved is n x n or 2m x 2m, the smaller.

    Args:
      X: ``(..., n, m)``, the point that is left.
      U: ``(..., n, m)``, along which.
      V: ``(..., n, p)``, what is carried: X itself for the new point, tangents at X.

    Returns:
      ``(..., n, p)``.
    """
    n, m = X.shape[-2:]
    left = jnp.concatenate([U, -X], axis=-1)
    right = _transpose(jnp.concatenate([X, U], axis=-1))
    if 2 * m < n:
        system = jnp.eye(2 * m, dtype=X.dtype) - 0.5 * _product(right, left)
        return V + _product(left, jnp.linalg.solve(system, _product(right, V)))
    A = _product(left, right)
    return jnp.linalg.solve(jnp.eye(n, dtype=X.dtype) - 0.5 * A, V + 0.5 * _product(A, V))


def retract(X: Array, U: Array, kind: str = "cayley") -> Array:
    """The point reached from ``X`` along the tangent ``U``.

    Args:
      X: ``(..., n, m)``.
      U: ``(..., n, m)``, a tangent, its step length included.
      kind: ``cayley`` (geoopt's, which is no exact retraction, see the top of the file),
        ``cayley_exact``, ``qr`` or ``polar``; the last three agree with ``X + U`` to first order.

    Returns:
      ``(..., n, m)``, on the manifold.
    """
    if kind == "cayley":
        return cayley_transport(X, U, X)
    if kind == "cayley_exact":
        inside = _product(X, _product(_transpose(X), U))
        return cayley_transport(X, U - 0.5 * inside, X)
    if kind == "qr":
        return _signed_q(X + U)
    if kind == "polar":
        return polar(X + U)
    raise ValueError(f"kind must be 'cayley', 'cayley_exact', 'qr' or 'polar'; got {kind!r}.")


def sgd_step(X: Array, G: Array, learning_rate: float, kind: str = "cayley") -> Array:
    """A step of geoopt's RiemannianSGD without momentum, against the Euclidean gradient ``G``."""
    return retract(X, -learning_rate * tangent(X, G), kind)


def adam_init(X: Array) -> dict[str, Array]:
    """State of :func:`adam_step`: ``count``, ``m`` like X, ``v`` a scalar a matrix."""
    return {
        "count": jnp.zeros([], jnp.int32),
        "m": jnp.zeros_like(X),
        "v": jnp.zeros((*X.shape[:-2], 1, 1), X.dtype),
    }


def adam_step(
    X: Array,
    G: Array,
    state: dict[str, Array],
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Array, dict[str, Array]]:
    """A step of geoopt's RiemannianAdam.

    The second moment is one number a matrix, the mean of ``<g, g>_X``, and the first moment is
    carried to the new point by the transform that carries the point.

    Args:
      X: ``(..., n, m)``.
      G: ``(..., n, m)``, Euclidean gradient.
      state: of :func:`adam_init`.
      learning_rate: length of the step.
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to its root.

    Returns:
      the new point and state.
    """
    g = tangent(X, G)
    count = state["count"] + 1
    m = b1 * state["m"] + (1 - b1) * g
    v = b2 * state["v"] + (1 - b2) * inner(X, g, g)[..., None, None]
    t = count.astype(X.dtype)
    direction = (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + eps)
    moved = cayley_transport(X, -learning_rate * direction, jnp.concatenate([X, m], axis=-1))
    X, m = jnp.split(moved, 2, axis=-1)
    return X, {"count": count, "m": m, "v": v}
