"""Ascent of F from many starts at once: gradient steps of constant size, and L-BFGS.

All starts take their steps in one compiled call, a block of steps at a time, until none of them has
a gradient left.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.interpret import subspaces
from crate_jax.studies.claims import Claim
from crate_jax.studies.landscape import lbfgs
from crate_jax.studies.landscape.problem import Problem

Array = jax.Array

GRADIENT_BLOCK, LBFGS_BLOCK = 100, 20
"""Steps of one compiled call."""


class Run(NamedTuple):
    """What B starts came to; T steps were taken.

    Attributes:
      Z: ``(B, N, d)`` at the end.
      values: ``(T, B)`` F before every step, nats.
      norms: ``(B,)`` Frobenius norm of the gradient before the last step.
    """

    Z: np.ndarray
    values: np.ndarray
    norms: np.ndarray


def draw(problem: Problem, starts: int, std: float, seed: int) -> Array:
    """``(starts, N, d)`` normal, float64."""
    shape = (starts, problem.N, problem.d)
    return std * jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def gradient_ascent(problem: Problem, Z: Array, step: float, most: int, tolerance: float) -> Run:
    """``Z <- Z + step grad F(Z)`` from every start.

    Args:
      problem: the landscape.
      Z: ``(B, N, d)``.
      step: ``1/alpha`` is safe: alpha bounds the Hessian.
      most: steps.
      tolerance: of the gradient's norm, at which a start has arrived.
    """

    def advance(Z, _):
        value, gradient = problem.value_and_gradient(Z)
        return Z + step * gradient, (value, jnp.linalg.norm(gradient))

    return _until_there(advance, Z, GRADIENT_BLOCK, most, tolerance)


def lbfgs_ascent(problem: Problem, Z: Array, most: int, tolerance: float) -> Run:
    """Steps of L-BFGS, see the module of its name; arguments as in :func:`gradient_ascent`."""

    def advance(state, _):
        return lbfgs.step(problem, state), (state.value, jnp.linalg.norm(state.gradient))

    state = jax.jit(jax.vmap(lambda Z: lbfgs.init(problem, Z)))(Z)
    return _until_there(advance, state, LBFGS_BLOCK, most, tolerance)


def _until_there(advance: Callable, carry, size: int, most: int, tolerance: float) -> Run:
    """Blocks of steps until every gradient is small.

    Args:
      advance: of a scan over the steps of one start; gives F and the norm of its gradient.
      carry: of it, a row a start; the starts, or begins with them.
      size: steps of a block.
      most, tolerance: see :func:`gradient_ascent`.
    """
    one = jax.vmap(lambda carry: jax.lax.scan(advance, carry, length=size), out_axes=(0, 1))
    block, values = jax.jit(one), []
    for _ in range(-(-most // size)):
        carry, (value, norm) = block(carry)
        values.append(np.asarray(value))
        norms = np.asarray(norm[-1])
        if (norms <= tolerance).all():
            break
    end = carry[0] if isinstance(carry, tuple) else carry
    return Run(np.asarray(end), np.concatenate(values), norms)


class Ends(NamedTuple):
    """Where B starts ended.

    Attributes:
      values: ``(B,)`` F.
      ranks: ``(B, K)`` numerical ranks of the classes.
      forms: ``(B,)`` F at a local maximiser of these ranks.
      squares: largest relative distance of a squared singular value from ``{0, sigma_k^2}``.
      cosine: largest cosine between subspaces of two classes.
      norms: ``(B,)`` of the gradient.
    """

    values: np.ndarray
    ranks: np.ndarray
    forms: np.ndarray
    squares: float
    cosine: float
    norms: np.ndarray


def describe(problem: Problem, run: Run) -> Ends:
    """Ranks, singular values and angles at the ends of a run."""
    ranks, squares, cosine = [], 0.0, 0.0
    splits = np.cumsum(problem.sizes)[:-1]
    for Z in run.Z:
        spectra = problem.spectra(Z)
        own = problem.ranks_of(spectra)
        ranks.append(own)
        for s, r, (sigma, _) in zip(spectra, own, problem.sigmas, strict=True):
            want = np.where(np.arange(len(s)) < r, 1.0, 0.0)
            squares = max(squares, float(np.abs((s / sigma) ** 2 - want).max(initial=0.0)))
        blocks = np.split(Z, splits)
        for k in range(problem.K):
            for l in range(k):
                cosine = max(
                    cosine, subspaces.principal_cosine(blocks[k], blocks[l], own[k], own[l])
                )
    values = np.asarray(jax.jit(problem.value)(run.Z))
    forms = np.array([problem.value_of(own) for own in ranks])
    return Ends(values, np.array(ranks), forms, squares, cosine, run.norms)


def check_ends(problem: Problem, by: str, ends: Ends, tolerance: float) -> list[Claim]:
    """That every start of the method ``by`` ended at a local maximiser of the closed form."""
    most = min(problem.N, problem.d)
    claims = [
        Claim("ascent", f"{by}: every start arrives", "||grad F|| -> 0", float(ends.norms.max()),
              tolerance),
        Claim("ascent", f"{by}: at a local maximiser of the closed form",
              "F = sum_k r_k h_k(sigma_k^2), its own ranks",
              float(np.abs(ends.values - ends.forms).max()), 1e-8),
        Claim("ascent", f"{by}: with these singular values",
              "squares in {0, sigma_k^2}, relative", ends.squares, 1e-8),
        Claim("ascent", f"{by}: in orthogonal subspaces", "||U_k^T U_l|| = 0", ends.cosine, 1e-8),
        Claim("ascent", f"{by}: none above the optimum", "F - F* <= 0",
              float((ends.values - problem.optimum).max()), 1e-8),
    ]  # fmt: skip
    full = ends.ranks.sum(-1) == most
    if len(set(problem.sizes)) == 1 and full.any():
        claims.append(
            Claim("ascent", f"{by}: of equal classes any full ranks are optimal", "F = F*",
                  float(np.abs(ends.values[full] - problem.optimum).max()), 1e-8)
        )  # fmt: skip
    return claims


def check_rise(run: Run) -> Claim:
    """That no step of gradient ascent lost anything."""
    lost = float(np.maximum(run.values[:-1] - run.values[1:], 0.0).max())
    return Claim("ascent", "gradient ascent: F never falls at step 1/alpha", "F(t+1) >= F(t)",
                 lost, 1e-11)  # fmt: skip
