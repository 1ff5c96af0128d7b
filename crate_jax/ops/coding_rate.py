"""Coding rates and rate reduction, in nats.

Everything here takes tokens (or samples) as rows, ``Z: (..., N, d)``, the transpose of the papers'
columns, and ``eps_sq``, which is the papers' epsilon *squared* and is never squared again.

    R(Z)        = 1/2 logdet(I + d/(N eps^2) Z^T Z)
    R^c(Z|U)    = 1/2 sum_k logdet(I + p/(N eps^2) (Z U_k)^T (Z U_k))
    R^c(Z|Pi)   = sum_k N_k/(2N) logdet(I + d/(N_k eps^2) Z^T Pi_k Z),   N_k = tr Pi_k

Each log-determinant is taken of the smaller Gram matrix, by Cholesky, in float32 or better whatever
the dtype of the input. Sources: MCR^2 (Yu et al. 2020), CRATE (Yu et al. 2023, 2306.01129).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_HIGHEST = jax.lax.Precision.HIGHEST


def _at_least_float32(Z: ArrayLike) -> Array:
    Z = jnp.asarray(Z)
    return Z.astype(jnp.promote_types(Z.dtype, jnp.float32))


@jax.custom_jvp
def logdet_identity_plus(G: Array) -> Array:
    """``logdet(I + G)`` for symmetric positive semi-definite ``G: (..., m, m)``.

    One Cholesky factor gives the value, and the same factor gives the gradient ``(I + G)^{-1}``.
    """
    return _logdet_and_factor(G)[0]


def _logdet_and_factor(G):
    eye = jnp.broadcast_to(jnp.eye(G.shape[-1], dtype=G.dtype), G.shape)
    L = jnp.linalg.cholesky(G + eye, symmetrize_input=False)
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1), L


@logdet_identity_plus.defjvp
def _logdet_identity_plus_jvp(primals, tangents):
    (G,), (dG,) = primals, tangents
    value, L = _logdet_and_factor(G)
    eye = jnp.broadcast_to(jnp.eye(G.shape[-1], dtype=G.dtype), G.shape)
    inverse = jax.scipy.linalg.cho_solve((L, True), eye)
    return value, jnp.sum(inverse * dG, axis=(-2, -1))


def _half_logdet(X: Array, alpha: ArrayLike) -> Array:
    """``1/2 logdet(I + alpha X^T X)`` for ``X: (..., n, m)``, by the smaller of the two Grams."""
    n, m = X.shape[-2:]
    pattern = "...ni,...nj->...ij" if m <= n else "...im,...jm->...ij"
    gram = jnp.einsum(pattern, X, X, precision=_HIGHEST)
    return 0.5 * logdet_identity_plus(alpha * gram)


def coding_rate(Z: ArrayLike, *, eps_sq: float) -> Array:
    """Rate of the whole, ``R(Z) = 1/2 logdet(I + d/(N eps^2) Z^T Z)``.

    Args:
      Z: ``(..., N, d)``, rows are samples.
      eps_sq: distortion squared.

    Returns:
      ``(...)`` rates in nats, float32 or better.
    """
    Z = _at_least_float32(Z)
    N, d = Z.shape[-2:]
    return _half_logdet(Z, d / (N * eps_sq))


def subspace_coding_rate(Z: ArrayLike, U: ArrayLike, *, eps_sq: float) -> Array:
    """Rate against K subspaces, ``R^c(Z|U) = 1/2 sum_k logdet(I + p/(N eps^2) (Z U_k)^T (Z U_k))``.

    Args:
      Z: ``(..., N, d)``, rows are tokens.
      U: ``(K, d, p)``, the subspaces' bases.
      eps_sq: distortion squared.

    Returns:
      ``(...)`` rates in nats.
    """
    Z, U = _at_least_float32(Z), _at_least_float32(U)
    if U.ndim != 3 or U.shape[1] != Z.shape[-1]:
        raise ValueError(f"U must be (K, d, p) with d={Z.shape[-1]}; got shape {U.shape}.")
    ZU = jnp.einsum("...nd,kdp->...knp", Z, U, precision=_HIGHEST)
    return projected_coding_rate(ZU, eps_sq=eps_sq)


def projected_coding_rate(ZU: ArrayLike, *, eps_sq: float) -> Array:
    """``R^c`` from the projections themselves, ``ZU: (..., K, N, p)``, summed over K; nats."""
    ZU = _at_least_float32(ZU)
    N, p = ZU.shape[-2:]
    return jnp.sum(_half_logdet(ZU, p / (N * eps_sq)), axis=-1)


def _memberships(labels: ArrayLike, N: int, num_classes: int, dtype) -> Array:
    """Integer labels ``(..., N)`` or memberships ``(..., N, K)`` as memberships ``(..., N, K)``."""
    labels = jnp.asarray(labels)
    is_membership = labels.ndim >= 2 and labels.shape[-2:] == (N, num_classes)
    if is_membership:
        return labels.astype(dtype)
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim and labels.shape[-1] == N:
        return jax.nn.one_hot(labels, num_classes, dtype=dtype)
    raise ValueError(
        f"labels must be integers (..., {N}) or memberships (..., {N}, {num_classes}); "
        f"got {labels.dtype} of shape {labels.shape}."
    )


def class_coding_rate(Z: ArrayLike, labels: ArrayLike, num_classes: int, *, eps_sq: float) -> Array:
    """Rate of the classes, ``R^c(Z|Pi) = sum_k N_k/(2N) logdet(I + d/(N_k eps^2) Z^T Pi_k Z)``.

    Args:
      Z: ``(..., N, d)``, rows are samples.
      labels: integers ``(..., N)``, or memberships ``(..., N, K)`` with entries in [0, 1] and rows
        that sum to one. A label outside [0, K) belongs to no class.
      num_classes: K. A class without members contributes nothing.
      eps_sq: distortion squared.

    Returns:
      ``(...)`` rates in nats.
    """
    Z = _at_least_float32(Z)
    N, d = Z.shape[-2:]
    Pi = _memberships(labels, N, num_classes, Z.dtype)
    N_k = jnp.sum(Pi, axis=-2)
    alpha_k = d / (jnp.where(N_k > 0, N_k, 1.0) * eps_sq)
    if d <= N:
        gram = jnp.einsum("...nk,...ni,...nj->...kij", Pi, Z, Z, precision=_HIGHEST)
    else:  # Pi^1/2 Z Z^T Pi^1/2 has the same determinant and is N x N
        root = jnp.sqrt(jnp.where(Pi > 0, Pi, 1.0)) * (Pi > 0)
        outer = jnp.einsum("...ik,...jk->...kij", root, root)
        gram = outer * jnp.einsum("...id,...jd->...ij", Z, Z, precision=_HIGHEST)[..., None, :, :]
    rates = 0.5 * logdet_identity_plus(alpha_k[..., None, None] * gram)
    return jnp.sum(jnp.where(N_k > 0, N_k / N * rates, 0.0), axis=-1)


def rate_reduction(Z: ArrayLike, labels: ArrayLike, num_classes: int, *, eps_sq: float) -> Array:
    """``Delta R(Z|Pi) = R(Z) - R^c(Z|Pi)``; arguments as in :func:`class_coding_rate`."""
    return coding_rate(Z, eps_sq=eps_sq) - class_coding_rate(Z, labels, num_classes, eps_sq=eps_sq)


def subspace_rate_reduction(Z: ArrayLike, U: ArrayLike, *, eps_sq: float) -> Array:
    """``Delta R(Z|U) = R(Z) - R^c(Z|U)``; arguments as in :func:`subspace_coding_rate`."""
    return coding_rate(Z, eps_sq=eps_sq) - subspace_coding_rate(Z, U, eps_sq=eps_sq)


def sparse_rate_reduction(
    Z: ArrayLike, U: ArrayLike, *, eps_sq: float, lmbda: float, norm: str = "l1"
) -> Array:
    """CRATE's objective, ``R(Z) - R^c(Z|U) - lmbda ||Z||``, to be maximised.

    Args:
      Z: ``(..., N, d)``, rows are tokens.
      U: ``(K, d, p)``.
      eps_sq: distortion squared.
      lmbda: weight of sparsity.
      norm: ``'l1'`` (what is optimised) or ``'l0'`` (what is meant; it has no gradient).

    Returns:
      ``(...)`` values in nats.
    """
    Z = _at_least_float32(Z)
    if norm not in ("l1", "l0"):
        raise ValueError(f"norm must be 'l1' or 'l0'; got {norm!r}.")
    size = jnp.abs(Z) if norm == "l1" else (Z != 0).astype(Z.dtype)
    return subspace_rate_reduction(Z, U, eps_sq=eps_sq) - lmbda * jnp.sum(size, axis=(-2, -1))


def token_coding_rate(W: ArrayLike, *, eps_sq: float = 0.01) -> Array:
    """The per-image rate of the CRATE figures, of the attention input ``W: (..., K, N, p)``.

    ``W`` is the output of the shared projection, ``U_k^T LN(z)``, class token included. Each token
    of each head is scaled to unit length and ``R^c`` summed over the heads. The released
    measurement code writes 0.01 where the paper has epsilon squared. A zero token stays zero
    (there, not a number). Returns ``(...)``, nats an image.
    """
    W = _at_least_float32(W)
    norm_sq = jnp.sum(W * W, axis=-1, keepdims=True)
    unit = W * jnp.where(norm_sq > 0, jax.lax.rsqrt(jnp.where(norm_sq > 0, norm_sq, 1.0)), 0.0)
    return projected_coding_rate(unit, eps_sq=eps_sq)
