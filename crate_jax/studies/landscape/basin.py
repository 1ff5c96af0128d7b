"""Which starts the zero keeps, and what becomes of a saddle that is left.

Zero is a local maximiser for every ``lmbda > 0``, so the scale of the start decides how many
directions survive. One part of its basin is known: along the gradient flow the largest singular
value of class k obeys ``d sigma/dt <= 2 sigma h_k'(sigma^2)``, because
``u^T (I + alpha Z^T Z)^{-1} u`` is largest where class k is alone; below ``sigma_{k,-}`` the right
side is negative. So a class that starts below ``sigma_{k,-}`` vanishes, whatever the others do, and
no class ends above ``sigma_k``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crate_jax.studies.claims import Claim
from crate_jax.studies.landscape.ascent import draw, gradient_ascent
from crate_jax.studies.landscape.critical import Point
from crate_jax.studies.landscape.problem import Problem

NUDGE = 1e-3
"""How far from a saddle or a threshold an ascent starts, of sigma_-."""

COLLAPSED = 1e-6
"""Of sigma_k, a largest singular value that counts as none."""


class Basin(NamedTuple):
    """Ascents from S scales with B starts each.

    Attributes:
      stds: ``(S,)`` of the entries at the start.
      below: ``(S, B, K)`` whether a class starts below its ``sigma_{k,-}``.
      values: ``(S, B)`` F at the end.
      ranks: ``(S, B, K)`` at the end.
      largest: ``(S, B, K)`` largest singular value of a class at the end, over ``sigma_k``.
    """

    stds: np.ndarray
    below: np.ndarray
    values: np.ndarray
    ranks: np.ndarray
    largest: np.ndarray


def explore(
    problem: Problem, scales: int, starts: int, seed: int, most: int, tolerance: float
) -> Basin:
    """Gradient ascent from normal starts, from scales that all vanish from to such as do not."""
    wide = np.sqrt(problem.sizes) + np.sqrt(problem.d)  # norm of such a block with entries of std 1
    smallest = min(minus / w for (_, minus), w in zip(problem.sigmas, wide, strict=True))
    stds = np.geomspace(0.5 * smallest, max(1.0, 20 * smallest), scales)
    Z = np.asarray(draw(problem, starts, 1.0, seed))
    Z = (stds[:, None, None, None] * Z).reshape(-1, problem.N, problem.d)
    run = gradient_ascent(problem, Z, 1 / problem.alpha, most, tolerance)
    sigma, minus = np.array(problem.sigmas).T
    shape = (scales, starts, problem.K)
    before = [[s[0] for s in problem.spectra(X)] for X in Z]
    after = [problem.spectra(X) for X in run.Z]
    return Basin(
        stds,
        (np.array(before) < minus).reshape(shape),
        run.values[-1].reshape(shape[:2]),
        np.array([problem.ranks_of(spectra) for spectra in after]).reshape(shape),
        (np.array([[s[0] for s in spectra] for spectra in after]) / sigma).reshape(shape),
    )


def check_basin(basin: Basin) -> list[Claim]:
    """The two bounds on the largest singular value of a class."""
    return [
        Claim("basin", "a class that starts below sigma_- vanishes",
              f"||Z_k|| at the end, of sigma_k, {int(basin.below.sum())} classes",
              float(basin.largest.max(initial=0.0, where=basin.below)), COLLAPSED),
        Claim("basin", "no class ends above sigma_k", "||Z_k|| / sigma_k - 1",
              float(basin.largest.max() - 1), 1e-8),
    ]  # fmt: skip


def check_escape(
    problem: Problem, saddles: Sequence[Point], most: int, tolerance: float
) -> list[Claim]:
    """Leaves every saddle on both sides along its directions of size ``sigma_{k,-}``.

    Outwards they grow to ``sigma_k``, inwards they vanish; the others stay.
    """
    smallest = min(minus for _, minus in problem.sigmas)
    starts, ends = [], []
    for point in saddles:
        grown = tuple(r + q for r, q in zip(point.ranks, point.saddle_ranks, strict=True))
        for side, ranks in ((1, grown), (-1, point.ranks)):
            starts.append(point.Z + side * NUDGE * smallest * point.away)
            ends.append(problem.value_of(ranks))
    run = gradient_ascent(problem, np.stack(starts), 1 / problem.alpha, most, tolerance)
    off = np.abs(run.values[-1] - np.array(ends))
    rise = run.values[-1] - run.values[0]
    return [
        Claim("basin", "left outwards, the directions of a saddle grow to sigma_k",
              "F = sum_k (r_k + q_k) h_k(sigma_k^2)", float(off[::2].max()), 1e-8),
        Claim("basin", "left inwards, they vanish", "F = sum_k r_k h_k(sigma_k^2)",
              float(off[1::2].max()), 1e-8),
        Claim("basin", "and F rises on both sides", "saddles that do not",
              float((rise <= 0).sum()), 0.0),
    ]  # fmt: skip
