"""Coding rates and rate reduction, in nats.

Everything here takes tokens (or samples) as rows, ``Z: (..., N, d)``, the transpose of the papers'
columns, and ``eps_sq``, which is the papers' epsilon *squared* and is never squared again.

    R(Z)        = 1/2 logdet(I + d/(N eps^2) Z^T Z)
    R^c(Z|U)    = 1/2 sum_k logdet(I + p/(N eps^2) (Z U_k)^T (Z U_k))
    R^c(Z|Pi)   = sum_k N_k/(2N) logdet(I + d/(N_k eps^2) Z^T Pi_k Z),   N_k = tr Pi_k

Each log-determinant is taken of the smaller Gram matrix, by Cholesky, in float32 or better whatever
the dtype of the input. Sources: MCR^2 (Yu et al. 2020), CRATE (Yu et al. 2023, 2306.01129), closed
loops (Dai et al. 2022, 2111.06636) for the distances.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from crate_jax.ops import class_blocks
from crate_jax.ops.platform import platform

_HIGHEST = jax.lax.Precision.HIGHEST


def _at_least_float32(Z: ArrayLike) -> Array:
    Z = jnp.asarray(Z)
    return Z.astype(jnp.promote_types(Z.dtype, jnp.float32))


@jax.custom_jvp
def logdet_identity_plus(G: Array) -> Array:
    """``logdet(I + G)`` for symmetric positive semi-definite ``G: (..., m, m)``.

    One Cholesky factor gives the value, and the same factor gives the gradient ``(I + G)^{-1}``.
    """
    return _logdet(_each(_factor, G))


@logdet_identity_plus.defjvp
def _logdet_identity_plus_jvp(primals, tangents):
    (G,), (dG,) = primals, tangents
    value, inverse = _logdet_and_inverse(G)
    return value, jnp.sum(inverse * dG, axis=(-2, -1))


@jax.custom_jvp
def _logdet_and_inverse(G):
    L = _each(_factor, G)
    return _logdet(L), _each(_inverse, L)


@_logdet_and_inverse.defjvp
def _logdet_and_inverse_jvp(primals, tangents):
    (G,), (dG,) = primals, tangents
    value, inverse = _logdet_and_inverse(G)
    turned = jnp.matmul(inverse, dG, precision=_HIGHEST)
    dinverse = -jnp.matmul(turned, inverse, precision=_HIGHEST)
    return (value, inverse), (jnp.sum(inverse * dG, axis=(-2, -1)), dinverse)


def _factor(G):
    """The Cholesky factor of ``I + G``."""
    return jnp.linalg.cholesky(G + jnp.eye(G.shape[-1], dtype=G.dtype), symmetrize_input=False)


def _inverse(L):
    """``(L L^T)^{-1}``."""
    return jax.scipy.linalg.cho_solve((L, True), jnp.eye(L.shape[-1], dtype=L.dtype))


def _logdet(L):
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1)


def _each(function, A: Array) -> Array:
    """``function`` of every matrix in ``A: (..., m, m)``; on a CPU of one after the other.

    jaxlib's batched LAPACK kernels wait for the thread pool that they run in: two of them at once
    in one program wait for each other for ever. ``vmap`` must not make one either.
    """
    if platform() == "cpu":
        function = jax.custom_batching.sequential_vmap(function)
    for _ in A.shape[:-2]:
        function = jax.vmap(function)
    return function(A)


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


def second_moment_rate(S: ArrayLike, *, eps_sq: float) -> Array:
    """Rate of samples of which the second moment is known, ``1/2 logdet(I + d/eps^2 S)``.

    It is ``coding_rate(Z)`` for ``S = Z^T Z / N``; under a linear map F of the samples S becomes
    ``F S F^T``, with no sample in sight.

    Args:
      S: ``(..., d, d)``, symmetric positive semi-definite.
      eps_sq: distortion squared.

    Returns:
      ``(...)`` rates in nats.
    """
    S = _at_least_float32(S)
    return 0.5 * logdet_identity_plus(S.shape[-1] / eps_sq * S)


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
    if class_blocks.worth_it(Z, labels, num_classes):
        return _rate_of_many_classes(Z, labels, num_classes, eps_sq)
    if d <= N:
        N_k, grams = class_grams(Z, labels, num_classes)
    else:  # Pi^1/2 Z Z^T Pi^1/2 has the same determinant and is N x N
        Pi = _memberships(labels, N, num_classes, Z.dtype)
        N_k = jnp.sum(Pi, axis=-2)
        root = jnp.sqrt(jnp.where(Pi > 0, Pi, 1.0)) * (Pi > 0)
        outer = jnp.einsum("...ik,...jk->...kij", root, root)
        grams = outer * jnp.einsum("...id,...jd->...ij", Z, Z, precision=_HIGHEST)[..., None, :, :]
    return jnp.sum(_class_rates(N_k, grams, N, d / eps_sq), axis=-1)


def class_grams(Z: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Sizes ``N_k (..., K)`` and Gram matrices ``Z^T Pi_k Z (..., K, d, d)`` of the classes.

    Arguments as in :func:`class_coding_rate`.
    """
    Z = _at_least_float32(Z)
    if class_blocks.worth_it(Z, labels, num_classes):
        return class_blocks.grams(Z, labels, num_classes)
    Pi = _memberships(labels, Z.shape[-2], num_classes, Z.dtype)
    grams = jnp.einsum("...nk,...ni,...nj->...kij", Pi, Z, Z, precision=_HIGHEST)
    return jnp.sum(Pi, axis=-2), grams


def _class_rates(N_k: Array, grams: Array, N: int, scale: float) -> Array:
    """``N_k/(2N) logdet(I + scale/N_k G_k)`` of every class, ``(..., K)``; 0 of an absent one."""
    present = N_k > 0
    alpha_k = scale / jnp.where(present, N_k, 1.0)
    rates = 0.5 * logdet_identity_plus(alpha_k[..., None, None] * grams)
    return jnp.where(present, N_k / N * rates, 0.0)


def _rate_of_many_classes(Z: Array, labels: ArrayLike, num_classes: int, eps_sq: float) -> Array:
    """:func:`class_coding_rate` where a class has, as a rule, fewer samples than features.

    Then ``Z_k Z_k^T`` is the smaller Gram. Its side is the room for a class, about twice the mean;
    a batch with a larger class takes the ``d x d`` ones.
    """
    N, d = Z.shape
    room = class_blocks.room(N, num_classes)

    def by_samples(Z):
        N_k, Z_k = class_blocks.stacked(Z, labels, num_classes, room)
        outer = jnp.einsum("kmd,knd->kmn", Z_k, Z_k, precision=_HIGHEST)
        return jnp.sum(_class_rates(N_k, outer, N, d / eps_sq))

    def by_features(Z):
        N_k, grams = class_blocks.grams(Z, labels, num_classes)
        return jnp.sum(_class_rates(N_k, grams, N, d / eps_sq))

    if room >= d:
        return by_features(Z)
    fits = jnp.max(class_blocks.counts(labels, num_classes)) <= room
    return jax.lax.cond(fits, by_samples, by_features, Z)


def rate_reduction(Z: ArrayLike, labels: ArrayLike, num_classes: int, *, eps_sq: float) -> Array:
    """``Delta R(Z|Pi) = R(Z) - R^c(Z|Pi)``; arguments as in :func:`class_coding_rate`."""
    return coding_rate(Z, eps_sq=eps_sq) - class_coding_rate(Z, labels, num_classes, eps_sq=eps_sq)


def rate_distance(A: ArrayLike, B: ArrayLike, *, eps_sq: float) -> Array:
    """``R(A u B) - N_A/(N_A + N_B) R(A) - N_B/(N_A + N_B) R(B)``: how far apart two sets lie.

    The rate reduction of the two as classes; zero for B = A.

    Args:
      A: ``(..., N_A, d)``, rows are samples.
      B: ``(..., N_B, d)``.
      eps_sq: distortion squared.

    Returns:
      ``(...)`` values in nats.
    """
    A, B = jnp.asarray(A), jnp.asarray(B)
    share = A.shape[-2] / (A.shape[-2] + B.shape[-2])
    both = coding_rate(jnp.concatenate([A, B], axis=-2), eps_sq=eps_sq)
    return (
        both - share * coding_rate(A, eps_sq=eps_sq) - (1 - share) * coding_rate(B, eps_sq=eps_sq)
    )


def class_rate_distance(
    Z: ArrayLike, Zhat: ArrayLike, labels: ArrayLike, num_classes: int, *, eps_sq: float
) -> Array:
    """``sum_k [R(Z_k u Zhat_k) - 1/2 R(Z_k) - 1/2 R(Zhat_k)]``, classes unweighted.

    The distance of a closed loop between features and features of the reconstructions.

    Args:
      Z, Zhat: ``(..., N, d)``; row i of both is of the same class.
      labels, num_classes, eps_sq: see :func:`class_coding_rate`. An absent class contributes 0.

    Returns:
      ``(...)`` values in nats.
    """
    N_k, grams = class_grams(Z, labels, num_classes)
    _, hat_grams = class_grams(Zhat, labels, num_classes)
    present = N_k > 0
    scale = (grams.shape[-1] / eps_sq / jnp.where(present, N_k, 1.0))[..., None, None]
    distances = 0.5 * (
        logdet_identity_plus(0.5 * scale * (grams + hat_grams))
        - 0.5 * logdet_identity_plus(scale * grams)
        - 0.5 * logdet_identity_plus(scale * hat_grams)
    )
    return jnp.sum(jnp.where(present, distances, 0.0), axis=-1)


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
