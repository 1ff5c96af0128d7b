"""The range of lmbda: where the theorem on global maximisers holds as printed, and where not.

The theorem allows ``lmbda`` up to ``lambda_max`` and has all directions used. From ``lambda_0`` on,
some 13 percent below, ``h_k(sigma_k^2)`` is negative: what is printed is still a local maximiser,
but leaving class k out is better.
"""

import itertools
from typing import NamedTuple

import jax
import numpy as np

from crate_jax.ops import rate_landscape as forms
from crate_jax.studies.claims import Claim
from crate_jax.studies.landscape.critical import ZERO, build
from crate_jax.studies.landscape.problem import Problem

EXAMPLE = ((6, 12), 18, 0.5)
"""Sizes, dimension and distortion squared: small, and all classes are used."""

COUNTED = ((2, 3, 4), 6, 0.5)
"""The same of the one whose ranks are all tried."""

RATIOS = (2, 3, 4, 5, 10, 20, 100)
"""``N/N_k``."""


class Bounds(NamedTuple):
    """The example over a range of lmbda.

    Attributes:
      fractions: ``(F,)`` lmbda over ``lambda_max``.
      greedy, printed: ``(F,)`` value at the optimum and at what the theorem prints, nats.
      zero: ``lambda_0`` of the larger class over ``lambda_max``.
      ratios, turns: ``N/N_k`` and ``lambda_0/lambda_max`` there.
    """

    fractions: np.ndarray
    greedy: np.ndarray
    printed: np.ndarray
    zero: float
    ratios: np.ndarray
    turns: np.ndarray


def sweep() -> Bounds:
    """The curves of the figure."""
    sizes, d, eps_sq = EXAMPLE
    bound = forms.lambda_max(sizes, d, eps_sq=eps_sq)
    ranks = forms.printed_ranks(sizes, d)
    fractions = np.linspace(0.02, 0.998, 160)
    laws = [(sizes, d, {"eps_sq": eps_sq, "lmbda": float(f * bound)}) for f in fractions]
    ratios = np.geomspace(1.05, 200, 60)
    return Bounds(
        fractions,
        np.array([forms.optimum(sizes, d, **law) for sizes, d, law in laws]),
        np.array([forms.value_of_ranks(ranks, sizes, d, **law) for sizes, d, law in laws]),
        forms.lambda_zero(max(sizes), sum(sizes), d, eps_sq=eps_sq) / bound,
        ratios,
        np.array([turn(ratio) for ratio in ratios]),
    )


def turn(ratio: float) -> float:
    """``lambda_0/lambda_max`` of a class that is one in ``ratio``, whatever d and epsilon."""
    return forms.lambda_zero(1, ratio, 1, eps_sq=1) / forms.class_lambda_max(1, ratio, 1, eps_sq=1)


def check_bounds(rng: np.random.Generator) -> list[Claim]:
    """Greedy ranks by brute force, the printed ones on both sides of lambda_0, the ends."""
    return [*_stationary_sizes(), *_ranks(), *_beyond(rng)]


def _stationary_sizes() -> list[Claim]:
    """Products of the two roots, and both at the bound."""
    d, eps_sq, product, merged, flat, inner = 10, 0.5, 0.0, 0.0, 0.0, 0
    for ratio in RATIOS:
        a, b = 1 / eps_sq * d / ratio, d / eps_sq
        bound = forms.class_lambda_max(1, ratio, d, eps_sq=eps_sq)
        for fraction in (0.01, 0.3, 0.9, 0.999):
            roots = forms.stationary_squares(1, ratio, d, eps_sq=eps_sq, lmbda=fraction * bound)
            product = max(product, abs(roots[0] * roots[1] * a * b - 1))
            for s in roots:
                slope = forms.direction_slope(s, 1, ratio, d, eps_sq=eps_sq, lmbda=fraction * bound)
                flat = max(flat, abs(slope) / bound)
        law = {"eps_sq": eps_sq, "lmbda": bound}
        roots = np.array(forms.stationary_squares(1, ratio, d, **law))
        merged = max(merged, float(np.abs(roots * np.sqrt(a * b) - 1).max()))
        s = roots[0]
        below, at = (forms.direction_value(x, 1, ratio, d, **law) for x in (0.98 * s, s))
        inner += not below > at
    return [
        Claim("bounds", "both sizes are stationary", "h_k'(s) / lambda_max = 0", flat, 1e-12),
        Claim("bounds", "their product is fixed", "sigma_k^2 sigma_-^2 alpha alpha_k = 1", product,
              1e-12),
        Claim("bounds", "at lambda_max they meet", "sigma^2 sqrt(alpha alpha_k) = 1", merged,
              1e-7),
        Claim("bounds", "where F still rises inwards: no maximum", "ratios N/N_k where it does not",
              float(inner), 0.0),
    ]  # fmt: skip


def _ranks() -> list[Claim]:
    """Greedy against every choice of ranks; printed against greedy below lambda_0."""
    sizes, d, eps_sq = COUNTED
    N, most = sum(sizes), min(sum(sizes), d)
    bound = forms.lambda_max(sizes, d, eps_sq=eps_sq)
    turns = min(forms.lambda_zero(n, N, d, eps_sq=eps_sq) for n in sizes) / bound
    possible = [
        ranks
        for ranks in itertools.product(*(range(min(n, d) + 1) for n in sizes))
        if sum(ranks) <= most
    ]
    off, apart = 0.0, 0.0
    for fraction in (0.05, 0.5, 0.85, 0.9, 0.95, 0.999, 1.3, 2.0):
        law = {"eps_sq": eps_sq, "lmbda": fraction * bound}
        best = max(forms.value_of_ranks(ranks, sizes, d, **law) for ranks in possible)
        off = max(off, abs(best - forms.optimum(sizes, d, **law)))
        if fraction <= turns:
            printed = forms.value_of_ranks(forms.printed_ranks(sizes, d), sizes, d, **law)
            apart = max(apart, abs(best - printed))
    return [
        Claim("bounds", "greedy ranks are the best of all ranks", "F* - max over ranks", off,
              1e-12),
        Claim("bounds", "below lambda_0 the printed ranks are, too", "F* - F(printed)", apart,
              1e-12),
    ]  # fmt: skip


def _beyond(rng: np.random.Generator) -> list[Claim]:
    """Between lambda_0 and lambda_max: the printed optimum, built and held against the greedy."""
    sizes, d, eps_sq = EXAMPLE
    bound = forms.lambda_max(sizes, d, eps_sq=eps_sq)
    zero = forms.lambda_zero(max(sizes), sum(sizes), d, eps_sq=eps_sq)
    problem = Problem(sizes, d, eps_sq, 0.5 * (zero + bound))
    point = build(problem, forms.printed_ranks(sizes, d), (0,) * len(sizes), rng)
    better = build(problem, problem.best_ranks, (0,) * len(sizes), rng)
    value, gradient = problem.value_and_gradient(point.Z)
    top = np.linalg.eigvalsh(np.asarray(jax.jit(problem.hessian)(point.Z)))[-1] / problem.alpha
    return [
        Claim("bounds", "between lambda_0 and lambda_max the printed optimum is a critical point",
              "grad F(Z) = 0", float(np.abs(gradient).max()), ZERO),
        Claim("bounds", "and a local maximiser", "largest eigenvalue / alpha <= 0", float(top),
              ZERO),
        Claim("bounds", "but below the value without the largest class",
              "F(printed) - F(greedy) < 0, nats", float(value - problem.value(better.Z)), -1e-3),
    ]  # fmt: skip
