"""The objectives of closed-loop transcription: encoder f maximises, decoder g minimises.

    X --f--> Z --g--> X^ --f--> Z^

    binary        T = R(Z u Z^) - 1/2 R(Z) - 1/2 R(Z^)
    multi         T = gamma_1 dR(Z|Pi) + gamma_2 dR(Z^|Pi)
                      + gamma_3 sum_k [R(Z_k u Z^_k) - 1/2 R(Z_k) - 1/2 R(Z^_k)]
    alternating   multi; but of several steps that f makes in a row, all before the last maximise
                  dR(Z|Pi) alone

The game of CTRL (arXiv 2111.06636), whose released code names the first two modes 0 and 1; CSC-CTRL
(2302.09347) plays the same. A class that a batch lacks contributes nothing, where the released code
takes a constant, or fails. Rates are in nats, of the whole batch: features of a batch that is split
over devices go in as one array.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from crate_jax.ops import coding_rate as rates

OBJECTIVES = ("binary", "multi", "alternating")


def binary(Z: ArrayLike, Zhat: ArrayLike, *, eps_sq: float) -> tuple[Array, dict[str, Array]]:
    """The distance of the two sets, all classes together.

    Args:
      Z, Zhat: ``(N, d)`` unit features of images and of their transcriptions.
      eps_sq: distortion squared.

    Returns:
      T, and its terms by name.
    """
    Z, Zhat = jnp.asarray(Z), jnp.asarray(Zhat)
    S, Shat = _second_moment(Z), _second_moment(Zhat)
    R, Rhat = (rates.second_moment_rate(M, eps_sq=eps_sq) for M in (S, Shat))
    distance = rates.second_moment_rate(0.5 * (S + Shat), eps_sq=eps_sq) - 0.5 * (R + Rhat)
    return distance, {"distance": distance, "rate": R, "rate_hat": Rhat}


def multi(
    Z: ArrayLike, Zhat: ArrayLike, labels: ArrayLike, num_classes: int, *, eps_sq: float,
    gammas: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """Both sets spread over the sphere, classes apart, and each class near its transcription.

    The log-determinants of ``Z_k`` and ``Zhat_k`` serve the rate reductions and the distances: 3 K
    + 2 factorisations where the terms one by one take 5 K + 2.

    Args:
      Z, Zhat: ``(N, d)``; row i of both is of the same class.
      labels: integers ``(N,)``.
      num_classes: K.
      eps_sq: distortion squared.
      gammas: weights of the three terms.

    Returns:
      T, and its terms by name.
    """
    Z, Zhat = jnp.asarray(Z), jnp.asarray(Zhat)
    N_k, grams = rates.class_grams(Z, labels, num_classes)
    _, hat_grams = rates.class_grams(Zhat, labels, num_classes)
    present, share = N_k > 0, N_k / Z.shape[0]
    S_k, Shat_k = (G / jnp.where(present, N_k, 1.0)[:, None, None] for G in (grams, hat_grams))
    R_k, Rhat_k, R_both = (
        rates.second_moment_rate(M, eps_sq=eps_sq) for M in (S_k, Shat_k, 0.5 * (S_k + Shat_k))
    )
    R, Rhat = (
        rates.second_moment_rate(_second_moment(M), eps_sq=eps_sq) for M in (Z, Zhat)
    )  # of all rows, those of no class too
    reduction, reduction_hat = R - jnp.sum(share * R_k), Rhat - jnp.sum(share * Rhat_k)
    distance = jnp.sum(jnp.where(present, R_both - 0.5 * (R_k + Rhat_k), 0.0))
    value = gammas[0] * reduction + gammas[1] * reduction_hat + gammas[2] * distance
    return value, {
        "distance": distance, "reduction": reduction, "reduction_hat": reduction_hat,
        "rate": R, "rate_hat": Rhat,
    }  # fmt: skip


def _second_moment(Z: Array) -> Array:
    Z = Z.astype(jnp.promote_types(Z.dtype, jnp.float32))
    return jnp.einsum("ni,nj->ij", Z, Z, precision=lax.Precision.HIGHEST) / Z.shape[0]


def consistency(Z: Array, Zhat: Array) -> Array:
    """Mean over samples of ``||z - z^||^2``: what keeps each image near its own transcription."""
    return jnp.mean(jnp.sum((Z - Zhat) ** 2, axis=-1))
