r"""Regularised rate reduction of features that are themselves the variables, and its derivatives.

    F(Z) = R(Z) - R^c(Z|Pi) - lmbda/2 ||Z||_F^2

over ``Z: (N, d)``, rows in the order of their classes, ``sizes = (N_1, ...)``; nats. Value,
gradient and products with the Hessian all come from one batched Cholesky factorisation. Source: "A
Global Geometric Analysis of Maximal Coding Rate Reduction" (ICML 2024).
"""

import jax
import jax.numpy as jnp
from jax import Array

from crate_jax.ops.coding_rate import logdet_identity_plus

_HIGHEST = jax.lax.Precision.HIGHEST

DOUBLED = 32
"""Size of a triangular matrix from which its inverse is built from products. In float64, a batch of
some hundred on two cores: 5 us a matrix by solving and 10 by products at 20, 40 and 7 at 32."""


def split_classes(Z: Array, sizes: tuple[int, ...]) -> list[Array]:
    """The rows of every class, ``(..., N_k, d)`` each, of ``Z: (..., N, d)``."""
    if sum(sizes) != Z.shape[-2]:
        raise ValueError(f"class sizes {sizes} do not sum to the {Z.shape[-2]} rows of Z.")
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [Z[..., end - N_k : end, :] for N_k, end in zip(sizes, ends, strict=True)]


def regularised_rate_reduction(
    Z: Array, sizes: tuple[int, ...], *, eps_sq: float, lmbda: float
) -> Array:
    """``F(Z)``, to be maximised.

    Args:
      Z: ``(..., N, d)``, rows in the order of their classes.
      sizes: rows of every class; they sum to N. An empty class adds nothing.
      eps_sq: distortion squared.
      lmbda: weight of ``||Z||_F^2 / 2`` (the released code's ``lmb`` is half of it).

    Returns:
      ``(...)`` values in nats, float32 or better.
    """
    Z = _at_least_float32(Z)
    terms = _list_terms(Z, sizes, eps_sq)
    rates = 0.5 * logdet_identity_plus(_stack_grams(terms))
    return _combine(terms, rates) - lmbda / 2 * jnp.sum(Z * Z, axis=(-2, -1))


def value_and_gradient(
    Z: Array, sizes: tuple[int, ...], *, eps_sq: float, lmbda: float
) -> tuple[Array, Array]:
    """``F(Z)`` and its gradient, both from one Cholesky factor a rate.

    The gradient of the rows of class k is
    ``alpha Z_k [(I + alpha Z^T Z)^{-1} - (I + alpha_k Z_k^T Z_k)^{-1}] - lmbda Z_k``.

    Args:
      Z, sizes, eps_sq, lmbda: as in :func:`regularised_rate_reduction`.

    Returns:
      ``(...)`` and ``(..., N, d)``.
    """
    Z = _at_least_float32(Z)
    terms = _list_terms(Z, sizes, eps_sq)
    halves, inverses = _halves_and_inverses(terms)
    value = _combine(terms, halves) - lmbda / 2 * jnp.sum(Z * Z, axis=(-2, -1))
    slopes = [
        weight * a * _apply(inverse, X)
        for (weight, a, X), inverse in zip(terms, inverses, strict=True)
    ]
    return value, slopes[0] + jnp.concatenate(slopes[1:], axis=-2) - lmbda * Z


def hessian_product(
    Z: Array, V: Array, sizes: tuple[int, ...], *, eps_sq: float, lmbda: float
) -> Array:
    """The Hessian of F at ``Z`` times ``V``, which is what the gradient changes by along ``V``.

    Of ``a X P`` with ``P = (I + a X^T X)^{-1}`` it is ``a V P - a^2 X P (V^T X + X^T V) P``.

    Args:
      Z, sizes, eps_sq, lmbda: as in :func:`regularised_rate_reduction`.
      V: ``(..., N, d)``.

    Returns:
      ``(..., N, d)``.
    """
    Z = _at_least_float32(Z)
    terms = _list_terms(Z, sizes, eps_sq)
    moves = [V, *(V_k for V_k in split_classes(V, sizes) if V_k.shape[-2])]
    changes = []
    for (weight, a, X), P, move in zip(terms, _halves_and_inverses(terms)[1], moves, strict=True):
        cross = _product(move, X)
        bend = _matmul(P, _matmul(cross + jnp.swapaxes(cross, -1, -2), P))
        changes.append(weight * a * (_apply(P, move) - a * _apply(bend, X)))
    return changes[0] + jnp.concatenate(changes[1:], axis=-2) - lmbda * V


def _at_least_float32(Z: Array) -> Array:
    return Z.astype(jnp.promote_types(Z.dtype, jnp.float32))


def _list_terms(
    Z: Array, sizes: tuple[int, ...], eps_sq: float
) -> list[tuple[float, float, Array]]:
    """Every rate of F as its weight, its factor and its rows: the whole, then the classes."""
    N, d = Z.shape[-2:]
    classes = [
        (-N_k / N, d / (N_k * eps_sq), Z_k)
        for N_k, Z_k in zip(sizes, split_classes(Z, sizes), strict=True)
        if N_k
    ]
    return [(1.0, d / (N * eps_sq), Z), *classes]


def _matmul(A: Array, B: Array) -> Array:
    return jnp.matmul(A, B, precision=_HIGHEST)


def _product(A: Array, B: Array) -> Array:
    """``A^T B``, or ``A B^T`` where that is the smaller, of ``(..., n, d)``."""
    n, d = A.shape[-2:]
    pattern = "...ni,...nj->...ij" if d <= n else "...id,...jd->...ij"
    return jnp.einsum(pattern, A, B, precision=_HIGHEST)


def _apply(P: Array, X: Array) -> Array:
    """``X P`` or ``P X``, on the side of the smaller Gram matrix of ``X: (..., n, d)``."""
    n, d = X.shape[-2:]
    return _matmul(X, P) if d <= n else _matmul(P, X)


def _stack_grams(terms: list[tuple[float, float, Array]]) -> Array:
    """``a X^T X``, or ``a X X^T`` where that is smaller, of all terms: ``(..., K + 1, m, m)``.

    Zeros fill the smaller ones up, which changes no determinant of ``I + G``. They are stacked
    because on a CPU of two cores independent factorisations of large batches, which run at the same
    time, have been seen to wait for each other for ever.
    """
    m = max(min(X.shape[-2:]) for _, _, X in terms)
    grams = []
    for _, a, X in terms:
        gap = m - min(X.shape[-2:])
        pad = [(0, 0)] * (X.ndim - 2) + [(0, gap), (0, gap)]
        grams.append(jnp.pad(a * _product(X, X), pad))
    return jnp.stack(grams, axis=-3)


def _halves_and_inverses(
    terms: list[tuple[float, float, Array]],
) -> tuple[Array, list[Array]]:
    """``1/2 logdet(I + G)``, ``(..., K + 1)``, and every ``(I + G)^{-1}``."""
    grams = _stack_grams(terms)
    eye = jnp.broadcast_to(jnp.eye(grams.shape[-1], dtype=grams.dtype), grams.shape)
    L = jnp.linalg.cholesky(eye + grams, symmetrize_input=False)
    halves = jnp.sum(jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1)
    root = _invert_lower(L)
    inverse = jnp.einsum("...ki,...kj->...ij", root, root, precision=_HIGHEST)
    sizes = [min(X.shape[-2:]) for _, _, X in terms]
    return halves, [inverse[..., i, :s, :s] for i, s in enumerate(sizes)]


def _invert_lower(L: Array) -> Array:
    """Inverses of lower triangular ``(..., m, m)``; larger ones by doubling.

    ``[[A, 0], [B, C]]^{-1} = [[A^{-1}, 0], [-C^{-1} B A^{-1}, C^{-1}]]`` from blocks of one number
    up: all matrices of a batch go through the same few products. Triangular solves on a CPU take
    them one by one, and from :data:`DOUBLED` on with threads that cost more than they help.
    """
    m = L.shape[-1]
    if m < DOUBLED:
        eye = jnp.broadcast_to(jnp.eye(m, dtype=L.dtype), L.shape)
        return jax.lax.linalg.triangular_solve(L, eye, left_side=True, lower=True)
    full = 1 << (m - 1).bit_length()
    gap = [(0, 0)] * (L.ndim - 2) + [(0, full - m)] * 2
    diagonal = jnp.diagonal(L, axis1=-2, axis2=-1)
    L = jnp.pad(L, gap)
    diagonal = jnp.pad(diagonal, gap[:-1], constant_values=1)
    inverse, size = (1 / diagonal)[..., None, None], 1
    while size < full:
        count = full // (2 * size)
        blocks = L.reshape(*L.shape[:-2], count, 2 * size, count, 2 * size)
        blocks = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)
        A, C = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        corner = -_matmul(C, _matmul(blocks[..., size:, :size], A))
        upper = jnp.concatenate([A, jnp.zeros_like(A)], axis=-1)
        lower = jnp.concatenate([corner, C], axis=-1)
        inverse, size = jnp.concatenate([upper, lower], axis=-2), 2 * size
    return inverse[..., 0, :m, :m]


def _combine(terms: list[tuple[float, float, Array]], rates: Array) -> Array:
    """The weighted sum of ``(..., K + 1)`` rates."""
    return sum(weight * rates[..., i] for i, (weight, _, _) in enumerate(terms))
