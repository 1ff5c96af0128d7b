r"""The landscape of regularised rate reduction, in closed form.

    F(Z) = R(Z) - R^c(Z|Pi) - lmbda/2 ||Z||_F^2

over features ``Z: (N, d)`` themselves (``ops.regularised_rate``), ``sizes = (N_1, ...)`` rows of
the classes; nats. With ``alpha = d/(N eps^2)`` and ``alpha_k = d/(N_k eps^2)``, a direction that
class k alone uses, with the squared singular value s, adds

    h_k(s) = 1/2 log(1 + alpha s) - N_k/(2N) log(1 + alpha_k s) - lmbda s/2,

which for ``lmbda`` below :func:`class_lambda_max` has a minimum at ``sigma_{k,-}^2`` and a maximum
at ``sigma_k^2``. Local maximisers are ``Z_k = sigma_k V_k U_k^T`` of any ranks with mutually
orthogonal ``U_k`` (rows here, so transposed). Source: "A Global Geometric Analysis of Maximal
Coding Rate Reduction" (ICML 2024), whose theorem on global maximisers is corrected here: a class
that adds a negative value is better left out, see :func:`lambda_zero` and :func:`greedy_ranks`.

Closed forms take and return Python numbers, in double precision whatever jax is set to.
"""

import math


def class_lambda_max(N_k: int, N: int, d: int, *, eps_sq: float) -> float:
    """Below this ``lmbda`` a direction of class k has two stationary sizes, at it one, above none.

    ``alpha (sqrt(N/N_k) - 1) / (sqrt(N/N_k) + 1)``; 0 for a class that is all there is.
    """
    root = math.sqrt(N / N_k)
    return d / (N * eps_sq) * (root - 1) / (root + 1)


def lambda_max(sizes: tuple[int, ...], d: int, *, eps_sq: float) -> float:
    """The theorem's bound on ``lmbda``: :func:`class_lambda_max` of the largest class."""
    return class_lambda_max(max(sizes), sum(sizes), d, eps_sq=eps_sq)


def eta(N_k: int, N: int, d: int, *, eps_sq: float, lmbda: float) -> float:
    """``eta_k = (alpha_k - alpha) - lmbda (N/N_k + 1)``."""
    alpha, ratio = d / (N * eps_sq), N / N_k
    return alpha * (ratio - 1) - lmbda * (ratio + 1)


def stationary_squares(
    N_k: int, N: int, d: int, *, eps_sq: float, lmbda: float
) -> tuple[float, float]:
    """``(sigma_k^2, sigma_{k,-}^2)``: where ``h_k`` has its maximum and its minimum.

    ``(eta_k +- sqrt(eta_k^2 - 4 lmbda^2 N/N_k)) / (2 lmbda alpha_k)``. The discriminant is formed
    from its factors, of which one is proportional to ``class_lambda_max - lmbda``, and the smaller
    root from the product of both, ``1/(alpha alpha_k)``: nothing cancels.

    Raises:
      ValueError: unless ``0 < lmbda <= class_lambda_max``.
    """
    bound = class_lambda_max(N_k, N, d, eps_sq=eps_sq)
    if not 0 < lmbda <= bound:
        raise ValueError(
            f"a class of {N_k} in {N} has stationary directions for lmbda above 0 and up to "
            f"{bound:g}; got {lmbda:g}."
        )
    alpha, ratio = d / (N * eps_sq), N / N_k
    root = math.sqrt(ratio)
    discriminant = (
        (root + 1) ** 2 * (bound - lmbda) * (alpha * (ratio - 1) - lmbda * (root - 1) ** 2)
    )
    middle = eta(N_k, N, d, eps_sq=eps_sq, lmbda=lmbda)
    plus = (middle + math.sqrt(discriminant)) / (2 * lmbda * alpha * ratio)
    return plus, 1 / (alpha * alpha * ratio * plus)


def direction_value(s: float, N_k: int, N: int, d: int, *, eps_sq: float, lmbda: float) -> float:
    """``h_k(s)``: what a direction of class k with the squared singular value ``s`` adds to F."""
    alpha, ratio = d / (N * eps_sq), N / N_k
    return 0.5 * (math.log1p(alpha * s) - math.log1p(alpha * ratio * s) / ratio - lmbda * s)


def direction_slope(s: float, N_k: int, N: int, d: int, *, eps_sq: float, lmbda: float) -> float:
    """``h_k'(s) = 1/2 [alpha (alpha_k - alpha) s / ((1 + alpha s)(1 + alpha_k s)) - lmbda]``."""
    a, b = d / (N * eps_sq), d / (N_k * eps_sq)
    return 0.5 * (a * (b - a) * s / ((1 + a * s) * (1 + b * s)) - lmbda)


def radial_curvature(s: float, N_k: int, N: int, d: int, *, eps_sq: float, lmbda: float) -> float:
    """Second derivative of ``sigma -> h_k(sigma^2)`` at ``s = sigma^2``: ``2 h_k' + 4 s h_k''``.

    Negative at ``sigma_k``, positive at ``sigma_{k,-}``, where it is the curvature along which a
    saddle is left.
    """
    a, b = d / (N * eps_sq), d / (N_k * eps_sq)
    bend = 0.5 * a * (b - a) * (1 - a * b * s * s) / ((1 + a * s) * (1 + b * s)) ** 2
    return 2 * direction_slope(s, N_k, N, d, eps_sq=eps_sq, lmbda=lmbda) + 4 * s * bend


def lambda_zero(N_k: int, N: int, d: int, *, eps_sq: float) -> float:
    """The ``lmbda`` at which ``h_k(sigma_k^2) = 0``: from it on class k is better left out.

    ``h_k(sigma_k^2)`` falls with ``lmbda`` (at the rate ``sigma_k^2 / 2``), so bisection finds it.
    Over :func:`class_lambda_max` it depends on ``N/N_k`` alone: 0.867 at 2, 0.887 at 10.
    """
    low, high = 0.0, class_lambda_max(N_k, N, d, eps_sq=eps_sq)
    while low < (middle := 0.5 * (low + high)) < high:
        s = stationary_squares(N_k, N, d, eps_sq=eps_sq, lmbda=middle)[0]
        gains = direction_value(s, N_k, N, d, eps_sq=eps_sq, lmbda=middle) > 0
        low, high = (middle, high) if gains else (low, middle)
    return high


def class_values(
    sizes: tuple[int, ...], d: int, *, eps_sq: float, lmbda: float
) -> tuple[float, ...]:
    """``h_k(sigma_k^2)`` of every class; 0 for one that no direction can hold.

    That is a class with ``lmbda >= class_lambda_max``: at the bound itself the stationary size is
    an inflection of ``h_k``, and no maximum.
    """
    N, values = sum(sizes), []
    for N_k in sizes:
        value = 0.0
        if N_k and lmbda < class_lambda_max(N_k, N, d, eps_sq=eps_sq):
            s = stationary_squares(N_k, N, d, eps_sq=eps_sq, lmbda=lmbda)[0]
            value = direction_value(s, N_k, N, d, eps_sq=eps_sq, lmbda=lmbda)
        values.append(value)
    return tuple(values)


def value_of_ranks(
    ranks: tuple[int, ...], sizes: tuple[int, ...], d: int, *, eps_sq: float, lmbda: float
) -> float:
    """``F = sum_k r_k h_k(sigma_k^2)`` at a local maximiser with these ranks."""
    values = class_values(sizes, d, eps_sq=eps_sq, lmbda=lmbda)
    return math.fsum(r * h for r, h in zip(ranks, values, strict=True))


def greedy_ranks(sizes: tuple[int, ...], d: int, *, eps_sq: float, lmbda: float) -> tuple[int, ...]:
    """Ranks of a global maximiser for every ``lmbda > 0``.

    Directions go to the class that gains most from one, as far as ``r_k <= min(N_k, d)`` and
    ``sum r_k <= min(N, d)`` allow, and never to a class that gains nothing. Of equal classes the
    earlier is filled first; every other split between them is as good.
    """
    values = class_values(sizes, d, eps_sq=eps_sq, lmbda=lmbda)
    remaining, ranks = min(sum(sizes), d), [0] * len(sizes)
    for k in sorted(range(len(sizes)), key=lambda k: -values[k]):
        if values[k] > 0:
            ranks[k] = min(sizes[k], d, remaining)
            remaining -= ranks[k]
    return tuple(ranks)


def printed_ranks(sizes: tuple[int, ...], d: int) -> tuple[int, ...]:
    """Ranks of a global maximiser as the theorem is printed: all directions used, small first.

    It agrees with :func:`greedy_ranks` while ``lmbda`` is below the :func:`lambda_zero` of every
    class.
    """
    remaining, ranks = min(sum(sizes), d), [0] * len(sizes)
    for k in sorted(range(len(sizes)), key=lambda k: sizes[k]):
        ranks[k] = min(sizes[k], d, remaining)
        remaining -= ranks[k]
    return tuple(ranks)


def optimum(sizes: tuple[int, ...], d: int, *, eps_sq: float, lmbda: float) -> float:
    """``F*``, the largest value of F over all ``Z``."""
    ranks = greedy_ranks(sizes, d, eps_sq=eps_sq, lmbda=lmbda)
    return value_of_ranks(ranks, sizes, d, eps_sq=eps_sq, lmbda=lmbda)


def nullity(ranks: tuple[int, ...], sizes: tuple[int, ...], d: int) -> int:
    """Dimension of the set of local maximisers with these ranks, and of the Hessian's null space.

    ``d R - R (R+1)/2 + sum_k [N_k r_k - r_k (r_k+1)/2 - r_k (r_k-1)/2]`` with ``R = sum_k r_k``.
    """
    R = sum(ranks)
    inside = sum(N_k * r - r * r for N_k, r in zip(sizes, ranks, strict=True))
    return d * R - R * (R + 1) // 2 + inside


def hessian_spectrum(
    ranks: tuple[int, ...],
    saddle_ranks: tuple[int, ...],
    sizes: tuple[int, ...],
    d: int,
    *,
    eps_sq: float,
    lmbda: float,
) -> list[tuple[float, int]]:
    """Every eigenvalue of the Hessian of F at a critical point, with its multiplicity.

    The point has in class k ``ranks[k]`` directions of size ``sigma_k`` and ``saddle_ranks[k]`` of
    size ``sigma_{k,-}``, all orthogonal. In the basis ``v_i u_j^T`` of its singular vectors both
    rates are spectral functions, whose second derivatives are difference quotients of the first
    (g(x) = 1/2 log(1 + alpha x^2), its quotient g'(x)/x is ``p``). With ``p_i = alpha/(1 + alpha
    s_i)`` what is left is

        radial_curvature(s)      r (r+1)/2   symmetric, within r directions of one class and size
        -(s_i + s_j) p_i p_j     1 a pair    two directions of different classes approach
        p_i - alpha - lmbda      N_k - r_k   class k, outside its row space, along another's u_i
        -lmbda                   the rest of it: along no u at all
        0                        rotations, and mixtures of both sizes within one class

    Positive only for ``sigma_{k,-}``: a critical point of this kind is a local maximiser exactly
    where it has none of them.

    Returns:
      ``(eigenvalue, multiplicity)`` pairs in descending order, equal ones not merged; the
      multiplicities sum to ``N d``.
    """
    N, K = sum(sizes), len(sizes)
    alpha, used = d / (N * eps_sq), [r + q for r, q in zip(ranks, saddle_ranks, strict=True)]
    groups = []  # class, squared size, how many directions
    for k, counts in enumerate(zip(ranks, saddle_ranks, strict=True)):
        if any(counts):
            both = stationary_squares(sizes[k], N, d, eps_sq=eps_sq, lmbda=lmbda)
            groups += [(k, s, r) for s, r in zip(both, counts, strict=True) if r]
    pairs = []
    for g, (k, s, r) in enumerate(groups):
        p = alpha / (1 + alpha * s)
        curvature = radial_curvature(s, sizes[k], N, d, eps_sq=eps_sq, lmbda=lmbda)
        pairs.append((curvature, r * (r + 1) // 2))
        outside = sum(sizes[l] - used[l] for l in range(K) if l != k)
        pairs.append((p - alpha - lmbda, outside * r))
        for l, t, q in groups[:g]:
            if l != k:
                pairs.append((-(s + t) * p * alpha / (1 + alpha * t), r * q))
    pairs.append((-lmbda, (N - sum(used)) * (d - sum(used))))
    pairs.append((0.0, N * d - sum(count for _, count in pairs)))
    return sorted(((value, count) for value, count in pairs if count), reverse=True)


def isotropic_rate_reduction(
    ranks: tuple[int, ...], sizes: tuple[int, ...], d: int, *, eps_sq: float
) -> float:
    """``Delta R`` of orthogonal classes of squared norm ``N_k``, spread evenly over ``d_k`` ranks.

    ``sum_k d_k [1/2 log(1 + d N_k/(N eps^2 d_k)) - N_k/(2N) log(1 + d/(eps^2 d_k))]``, the form of
    the optimum of the constrained problem (MCR^2, Yu et al. 2020), nats.
    """
    N = sum(sizes)
    return math.fsum(
        r * 0.5 * (math.log1p(d * n / (N * eps_sq * r)) - n / N * math.log1p(d / (eps_sq * r)))
        for r, n in zip(ranks, sizes, strict=True)
        if r
    )


def isotropic_ranks(sizes: tuple[int, ...], d: int, *, eps_sq: float) -> tuple[int, ...]:
    """Ranks ``d_k <= min(N_k, d)`` with ``sum d_k <= d`` and the largest isotropic ``Delta R``.

    By dynamic programming over the classes, since the terms need not be concave in ``d_k``.
    """
    N, best = sum(sizes), {0: (0.0, ())}  # by directions used: value, ranks

    for n in sizes:
        extended = {}
        for used, (value, ranks) in best.items():
            for r in range(min(n, d - used) + 1):
                term = isotropic_rate_reduction((r, 0), (n, N - n), d, eps_sq=eps_sq)
                candidate = (value + term, (*ranks, r))
                if used + r not in extended or extended[used + r][0] < candidate[0]:
                    extended[used + r] = candidate
        best = extended
    return max(best.values())[1]
