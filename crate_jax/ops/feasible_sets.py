"""Projection of a linear encoder onto the set in which no class has more than its energy.

CTRL-MSP (arXiv 2206.09120) plays over ``{F : ||F X_j||^2 <= n_j for every class j}``, and the
released code projects onto it by a general conic solver. The projection has a dual of one number a
class: for ``mu >= 0`` the minimiser of the Lagrangian is

    F' = F (I + sum_j mu_j S_j)^{-1},    S_j = X_j^T X_j

so the largest value of the concave dual gives the nearest F'. Everything is computed in the span of
the samples, by matrices of as many rows as there are samples. The set of CTRL-SSP, orthonormal rows
or columns, has the polar factor for its projection: ``stiefel.polar``.
"""

import jax
import jax.numpy as jnp
from jax import Array

_HIGHEST = jax.lax.Precision.HIGHEST

ITERATIONS = 60
"""Most Newton steps; from a Gaussian F about a dozen are needed."""

HALVINGS = 20
"""Most halvings of a step that would lower the dual."""


def _product(A: Array, B: Array) -> Array:
    return jnp.matmul(A, B, precision=_HIGHEST)


def class_energies(F: Array, X: Array, members: Array) -> Array:
    """``||F X_j||^2`` of every class, ``(K,)``; arguments as in :func:`project_class_norms`."""
    Z = _product(X, F.T)
    return _product(jnp.sum(Z * Z, axis=1), members.astype(F.dtype))


def project_class_norms(F: Array, X: Array, members: Array, limits: Array) -> Array:
    """The nearest ``F'`` with ``||F' X_j||^2 <= limits_j`` for every class j.

    Damped Newton on the dual, the classes at ``mu_j = 0`` without excess held there, until what is
    left of any class's excess is a rounding error. A class without samples constrains nothing.

    Args:
      F: ``(d_z, d_x)``.
      X: ``(N, d_x)``, rows are samples.
      members: ``(N, K)``, one-hot.
      limits: ``(K,)``, above 0; the paper's are the sizes n_j.

    Returns:
      ``(d_z, d_x)``. It is F itself, but for rounding, where F is in the set.
    """
    # From far away float32 leaves an excess of some 1e-4; from there a second pass leaves 1e-6.
    return jax.lax.fori_loop(0, 2, lambda _, F: _project_once(F, X, members, limits), F)


def _project_once(F: Array, X: Array, members: Array, limits: Array) -> Array:
    eps = float(jnp.finfo(F.dtype).eps)
    members = members.astype(F.dtype)
    X = X / jnp.sqrt(_product(members, limits))[:, None]  # every limit is 1 now
    Z = _product(X, F.T)
    P, ZZ = _product(X, X.T), _product(Z, Z.T)
    eye = jnp.eye(len(P), dtype=F.dtype)

    def shrink(mu):
        """``(I + P D)^{-1}``, D = diag(mu of every sample): X F'^T is that times Z."""
        D = _product(members, mu)
        return jnp.linalg.solve(eye + P * D[None, :], eye), D

    def dual(mu):
        """``1/2 tr F (I - M) F^T - 1/2 sum mu``, M the inverse at the top of the file."""
        inverse, D = shrink(mu)
        return 0.5 * (jnp.sum(D * jnp.sum(inverse * ZZ, axis=1)) - jnp.sum(mu))

    def derivatives(mu):
        """Twice the gradient of the dual, which is the excess, and minus its Hessian."""
        inverse, _ = shrink(mu)
        YY = _product(_product(inverse, ZZ), inverse.T)
        XMX = _product(inverse, P)
        excess = _product(jnp.diagonal(YY), members) - 1
        return excess, _product(members.T, _product(YY * XMX, members))

    def violation(mu, excess):
        """How far mu is from optimal: excess, and where ``mu > 0`` what is left free too."""
        return jnp.max(jnp.where(mu > 0, jnp.abs(excess), jnp.maximum(excess, 0.0)))

    def step(carry):
        mu, value, excess, curvature, count, _ = carry
        free = (mu > 0) | (excess > 0)
        diagonal = jnp.where(free, jnp.diagonal(curvature) * (1 + 10 * eps), 1.0)
        system = jnp.where(free[:, None] & free[None, :], curvature, 0.0)
        system = system - jnp.diag(jnp.diagonal(system)) + jnp.diag(diagonal)
        direction = 0.5 * jnp.linalg.solve(system, jnp.where(free, excess, 0.0))

        def at(length):
            return dual(jnp.maximum(mu + length * direction, 0.0))

        def too_long(trial):
            length, reached = trial
            return ~(reached >= value - 100 * eps * jnp.abs(value)) & (length > 0.5**HALVINGS)

        one = jnp.ones([], F.dtype)
        length, value = jax.lax.while_loop(
            too_long, lambda trial: (trial[0] / 2, at(trial[0] / 2)), (one, at(one))
        )
        new = jnp.maximum(mu + length * direction, 0.0)
        new_excess, curvature = derivatives(new)
        before, after = violation(mu, excess), violation(new, new_excess)
        rounding = (after >= before) & (before < 1e-3)
        new = jnp.where(rounding, mu, new)
        return new, value, new_excess, curvature, count + 1, rounding | (after < 100 * eps)

    mu = jnp.zeros_like(limits)
    excess, curvature = derivatives(mu)
    done = violation(mu, excess) <= 100 * eps
    carry = (mu, dual(mu), excess, curvature, 0, done)
    mu = jax.lax.while_loop(lambda c: ~c[-1] & (c[-2] < ITERATIONS), step, carry)[0]
    inverse, D = shrink(mu)
    return F - _product(_product(inverse, Z).T * D[None, :], X)
