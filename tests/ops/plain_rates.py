"""F of three small classes as the paper writes it, for the tests of its closed forms."""

import jax.numpy as jnp

SIZES, D, EPS_SQ = (3, 4, 6), 5, 0.5
N = sum(SIZES)


def plain(Z, lmbda):
    """F by log-determinants of d x d matrices, as it is defined."""
    alpha = D / (N * EPS_SQ)
    value = 0.5 * jnp.linalg.slogdet(jnp.eye(D) + alpha * Z.T @ Z)[1]
    start = 0
    for n in SIZES:
        Z_k = Z[start : start + n]
        start += n
        gram = jnp.eye(D) + D / (n * EPS_SQ) * Z_k.T @ Z_k
        value -= n / N * 0.5 * jnp.linalg.slogdet(gram)[1]
    return value - lmbda / 2 * (Z**2).sum()
