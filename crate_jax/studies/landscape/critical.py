"""Critical points built from their closed form, and what holds at them.

Local maximisers of any ranks, saddles with directions of size ``sigma_{k,-}``, zero, and directions
that several classes share, which a critical point need not be free of: a set of classes along one
u is stationary where one class of all their rows would be.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from crate_jax.ops import rate_landscape as forms
from crate_jax.studies.claims import Claim
from crate_jax.studies.landscape.lanczos import distinct_eigenvalues
from crate_jax.studies.landscape.problem import Problem

DENSE = 1500
"""Largest ``N d`` for which the whole Hessian is formed."""

ZERO = 1e-12
"""What counts as no curvature, of alpha."""


class Point(NamedTuple):
    """A critical point.

    Attributes:
      kind: ``maximiser``, ``saddle`` or ``shared``.
      ranks: directions of size ``sigma_k``, by class.
      saddle_ranks: directions of size ``sigma_{k,-}``, by class; of ``shared``, 1 for the classes
        along the one direction there is.
      Z: ``(N, d)``.
      away: ``(N, d)`` the radial direction of everything of size ``sigma_{k,-}``; of ``shared``, of
        ``Z`` itself.
    """

    kind: str
    ranks: tuple[int, ...]
    saddle_ranks: tuple[int, ...]
    Z: np.ndarray
    away: np.ndarray


class Checked(NamedTuple):
    """A point beside what was measured there; eigenvalues descending, in nats a squared unit.

    Attributes:
      point: itself.
      value, form: ``F(Z)`` and its closed form.
      gradient: largest entry of the gradient.
      values, counts: eigenvalues of the Hessian and multiplicities: all of them, 1 each, where it
        was formed; the distinct ones with estimates where it was not.
      expected: closed form, pairs of value and multiplicity; empty for ``shared``.
    """

    point: Point
    value: float
    form: float
    gradient: float
    values: np.ndarray
    counts: np.ndarray
    expected: list[tuple[float, int]]


def build(problem: Problem, ranks, saddle_ranks, rng: np.random.Generator) -> Point:
    """``Z_k = V_k diag(s) U_k^T`` with random orthonormal frames from QR."""
    R = sum(ranks) + sum(saddle_ranks)
    U, start = _frame(problem.d, R, rng), 0
    blocks, away = [], []
    for n, r, q, (plus, minus) in zip(
        problem.sizes, ranks, saddle_ranks, problem.sigmas, strict=True
    ):
        V, U_k = _frame(n, r + q, rng), U[:, start : start + r + q]
        start += r + q
        blocks.append(V * np.repeat([plus, minus], [r, q]) @ U_k.T)
        away.append(V[:, r:] @ U_k[:, r:].T)
    kind = "saddle" if any(saddle_ranks) else "maximiser"
    return Point(
        kind, tuple(ranks), tuple(saddle_ranks), np.concatenate(blocks), np.concatenate(away)
    )


def build_shared(problem: Problem, classes: Sequence[int], root: int, rng) -> Point | None:
    """One direction that ``classes`` share; None where lmbda is too large for one.

    Args:
      problem: the landscape.
      classes: two or more of them.
      root: 0 for the larger stationary size, 1 for the smaller.
      rng: of the direction and of the left vectors.
    """
    n = sum(problem.sizes[k] for k in classes)
    if problem.lmbda >= forms.class_lambda_max(n, problem.N, problem.d, eps_sq=problem.eps_sq):
        return None
    s = forms.stationary_squares(n, problem.N, problem.d, **problem.weights)[root]
    u, blocks = _frame(problem.d, 1, rng), []
    for k, N_k in enumerate(problem.sizes):
        size = np.sqrt(s * N_k / n) if k in classes else 0.0
        blocks.append(size * _frame(N_k, 1, rng) @ u.T)
    Z = np.concatenate(blocks)
    member = tuple(int(k in classes) for k in range(problem.K))
    return Point("shared", (0,) * problem.K, member, Z, Z / np.linalg.norm(Z))


def list_points(problem: Problem, count: int, rng: np.random.Generator) -> list[Point]:
    """The global maximiser, zero, ``count`` random ones of each kind, shared directions."""
    none = (0,) * problem.K
    points = [build(problem, problem.best_ranks, none, rng), build(problem, none, none, rng)]
    for _ in range(count):
        points.append(build(problem, _draw_ranks(problem, rng), none, rng))
    largest = int(np.argmax(problem.sizes))
    one = tuple(int(k == largest) for k in range(problem.K))
    points.append(build(problem, none, one, rng))
    for _ in range(count):
        ranks = _draw_ranks(problem, rng)
        plus = tuple(int(rng.integers(r + 1)) for r in ranks)
        if plus != ranks:
            minus = tuple(r - p for r, p in zip(ranks, plus, strict=True))
            points.append(build(problem, plus, minus, rng))
    for root in (0, 1):
        point = build_shared(problem, sorted(np.argsort(problem.sizes)[:2].tolist()), root, rng)
        if problem.K > 2 and point:
            points.append(point)
    return points


def _draw_ranks(problem: Problem, rng) -> tuple[int, ...]:
    """Ranks whose sum is anything from 1 to the most there can be, drawn from all that could."""
    possible = np.repeat(np.arange(problem.K), np.minimum(problem.sizes, problem.d))
    total = rng.integers(1, min(problem.N, problem.d) + 1)
    chosen = rng.permutation(possible)[:total]
    return tuple(int((chosen == k).sum()) for k in range(problem.K))


def _frame(rows: int, columns: int, rng) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def examine(problem: Problem, points: Sequence[Point], rng) -> list[Checked]:
    """Value, gradient and curvature at every point."""
    dense = problem.N * problem.d <= DENSE
    hessian = jax.jit(problem.hessian)
    evaluate = jax.jit(problem.value_and_gradient)
    multiply = jax.jit(lambda Z, v: problem.product(Z, v.reshape(Z.shape)).reshape(-1))
    done = []
    for point in points:
        value, gradient = evaluate(point.Z)
        if dense:
            values = np.linalg.eigvalsh(np.asarray(hessian(point.Z)))[::-1]
            counts = np.ones_like(values)
        else:
            values, counts = distinct_eigenvalues(
                lambda v, Z=point.Z: multiply(Z, v), point.Z.size, rng
            )
        done.append(
            Checked(
                point, float(value), _form(problem, point), float(np.abs(gradient).max()),
                values, counts, _expected(problem, point),
            )
        )  # fmt: skip
    return done


def _form(problem: Problem, point: Point) -> float:
    """Closed form of F at a point."""
    N, d = problem.N, problem.d
    value = problem.value_of(point.ranks)
    if point.kind == "shared":
        n = sum(N_k for N_k, m in zip(problem.sizes, point.saddle_ranks, strict=True) if m)
        return forms.direction_value(np.sum(point.Z**2), n, N, d, **problem.weights)
    for n, q, (_, minus) in zip(problem.sizes, point.saddle_ranks, problem.sigmas, strict=True):
        value += q * forms.direction_value(minus**2, n, N, d, **problem.weights)
    return value


def _expected(problem: Problem, point: Point) -> list[tuple[float, int]]:
    if point.kind == "shared":
        return []
    return forms.hessian_spectrum(
        point.ranks, point.saddle_ranks, problem.sizes, problem.d, **problem.weights
    )


def spectrum_error(checked: Checked) -> float:
    """Largest distance of an eigenvalue from the closed form.

    Of all of them in order where the Hessian was formed. Else every eigenvalue that was found is
    held against the nearest of the closed form, and the other way round.
    """
    expected = np.array([value for value, _ in checked.expected])
    if len(checked.values) == checked.point.Z.size:
        each = np.repeat(expected, [count for _, count in checked.expected])
        return float(np.abs(each - checked.values).max())
    apart = np.abs(expected[:, None] - checked.values[None, :])
    return float(max(apart.min(0).max(), apart.min(1).max()))


def null_count(checked: Checked, alpha: float) -> float:
    """How many eigenvalues are 0, or an estimate of it."""
    return float(checked.counts[np.abs(checked.values) <= 1e-9 * alpha].sum())


def check_points(problem: Problem, checked: Sequence[Checked]) -> list[Claim]:
    """What the theorem and the closed forms say of every point."""
    alpha, size = problem.alpha, problem.N * problem.d
    maximisers = [c for c in checked if c.point.kind == "maximiser"]
    saddles = [c for c in checked if c.point.kind == "saddle"]
    shared = [c for c in checked if c.point.kind == "shared"]
    dense = size <= DENSE
    how = "whole Hessian" if dense else "Lanczos"
    missing = 0.0
    for c in maximisers:
        count = forms.nullity(c.point.ranks, problem.sizes, problem.d)
        off = abs(null_count(c, alpha) - count)
        chance = 0 if dense else 5 * np.sqrt(2 * count * (1 - count / size))
        missing = max(missing, off - chance)
    lowest = max((abs(c.values[0] - c.expected[0][0]) for c in saddles), default=0.0)
    claims = [
        Claim("points", "critical points have the value of their closed form",
              "F(Z) = sum_k r_k h_k(s)", max(abs(c.value - c.form) for c in checked), 1e-10),
        Claim("points", "and no gradient", "grad F(Z) = 0", max(c.gradient for c in checked), ZERO),
        Claim("points", "local maximisers curve nowhere upwards",
              f"largest eigenvalue / alpha <= 0, {how}",
              max(float(c.values[0]) for c in maximisers) / alpha, ZERO if dense else 1e-10),
        Claim("points", "their flat directions are counted by the nullity formula",
              "eigenvalues at 0 - nullity" + ("" if dense else ", beyond 5 standard errors"),
              max(missing, 0.0), 0.0),
        Claim("points", "the whole spectrum of the Hessian is known", f"eigenvalues, {how}",
              max(spectrum_error(c) for c in maximisers + saddles), 1e-10),
        Claim("points", "a saddle curves upwards along its directions of size sigma_-",
              "largest eigenvalue = 4 s h''(s)", float(lowest), 1e-10),
        Claim("points", "no saddle without such a direction",
              "saddles with no eigenvalue above 1e-6 alpha",
              float(sum(c.values[0] <= 1e-6 * alpha for c in saddles + shared)), 0.0),
    ]  # fmt: skip
    return claims


def check_gradient(problem: Problem, rng: np.random.Generator) -> list[Claim]:
    """The gradient against automatic differentiation, and the two invariances of F."""
    Z = rng.standard_normal((problem.N, problem.d))
    gradient = np.asarray(jax.jit(problem.gradient)(Z))
    by_autodiff = np.asarray(jax.jit(jax.grad(problem.value))(Z))
    value = jax.jit(problem.value)
    ends = np.cumsum(problem.sizes)[:-1]
    turned = [_frame(len(Z_k), len(Z_k), rng) @ Z_k for Z_k in np.split(Z, ends)]
    F = float(value(Z))
    rotated = abs(float(value(Z @ _frame(problem.d, problem.d, rng))) - F)
    within = abs(float(value(np.concatenate(turned))) - F)
    scale = np.abs(by_autodiff).max()
    return [
        Claim("points", "the gradient in closed form", "grad F(Z), relative, random Z",
              float(np.abs(gradient - by_autodiff).max() / scale), 1e-10),
        Claim("points", "F does not see rotations of the space", "F(Z Q) = F(Z)", rotated, 1e-9),
        Claim("points", "nor of the rows within a class", "F(O_k Z_k) = F(Z)", within, 1e-9),
    ]  # fmt: skip
