"""Closed forms of the landscape against F as the paper writes it, and jax's own derivatives."""

import itertools
import math

import jax
import numpy as np
import pytest

from crate_jax.ops import rate_landscape as forms
from crate_jax.ops.regularised_rate import regularised_rate_reduction
from tests.ops import plain_rates
from tests.ops.plain_rates import EPS_SQ, SIZES, D, N

LMBDA = 0.3 * 0.8 * (math.sqrt(13 / 6) - 1) / (math.sqrt(13 / 6) + 1)  # alpha = 5/(13/2) = 0.77
LAW = {"eps_sq": EPS_SQ, "lmbda": LMBDA}


def plain(Z):
    return plain_rates.plain(Z, LMBDA)


def build(ranks, saddle_ranks):
    """A critical point with singular values from the spec's formula."""
    rng = np.random.default_rng(0)
    U, column, blocks = np.linalg.qr(rng.standard_normal((D, D)))[0], 0, []
    for n, r, q in zip(SIZES, ranks, saddle_ranks, strict=True):
        a, a_k = D / (N * EPS_SQ), D / (n * EPS_SQ)
        eta = (a_k - a) - LMBDA * (N / n + 1)
        root = math.sqrt(eta**2 - 4 * LMBDA**2 * N / n)
        plus, minus = ((eta + sign * root) / (2 * LMBDA * a_k) for sign in (1, -1))
        V = np.linalg.qr(rng.standard_normal((n, n)))[0][:, : r + q]
        s = np.sqrt([plus] * r + [minus] * q)
        blocks.append(V * s @ U[:, column : column + r + q].T)
        column += r + q
    return np.concatenate(blocks)


@pytest.fixture(scope="module")
def derivatives():
    """Jitted value, gradient and Hessian of :func:`plain`, in float64."""
    with jax.enable_x64(True):
        value, gradient, hessian = (jax.jit(f(plain)) for f in (lambda f: f, jax.grad, jax.hessian))
        yield value, gradient, hessian


@pytest.mark.parametrize(
    "ranks, saddle_ranks",
    [
        ((2, 1, 2), (0, 0, 0)),
        ((3, 2, 0), (0, 0, 0)),
        ((0, 2, 1), (0, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 1), (1, 2, 0)),
        ((0, 1, 0), (2, 0, 1)),
    ],
)
def test_critical_points_and_their_curvature(ranks, saddle_ranks, x64, derivatives):
    value, gradient, hessian = derivatives
    Z = build(ranks, saddle_ranks)
    assert np.abs(gradient(Z)).max() < 1e-12
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian(Z)).reshape(N * D, N * D))[::-1]
    expected = forms.hessian_spectrum(ranks, saddle_ranks, SIZES, D, **LAW)
    each = np.repeat([v for v, _ in expected], [count for _, count in expected])
    np.testing.assert_allclose(eigenvalues, each, atol=1e-11)
    flat = int((np.abs(eigenvalues) < 1e-10).sum())
    if any(saddle_ranks):
        assert (eigenvalues > 1e-6).sum() == sum(q * (q + 1) // 2 for q in saddle_ranks)
        return
    np.testing.assert_allclose(value(Z), forms.value_of_ranks(ranks, SIZES, D, **LAW), atol=1e-12)
    R = sum(ranks)
    spec = D * R - R * (R + 1) // 2 + sum(
        n * r - r * (r + 1) // 2 - r * (r - 1) // 2 for n, r in zip(SIZES, ranks, strict=True)
    )  # fmt: skip
    assert flat == spec == forms.nullity(ranks, SIZES, D)
    assert eigenvalues[0] < 1e-12 and (eigenvalues < -1e-6).sum() == N * D - flat


def test_stationary_sizes():
    for n in SIZES:
        plus, minus = forms.stationary_squares(n, N, D, **LAW)
        a, a_k = D / (N * EPS_SQ), D / (n * EPS_SQ)
        assert plus * minus == pytest.approx(1 / (a * a_k), rel=1e-14)
        assert forms.eta(n, N, D, **LAW) == pytest.approx(LMBDA * a_k * (plus + minus), rel=1e-13)

        def h(s, n=n, a=a, a_k=a_k):
            return 0.5 * math.log(1 + a * s) - n / N / 2 * math.log(1 + a_k * s) - LMBDA * s / 2

        for s, sign in ((plus, -1), (minus, 1)):
            assert h(s) == pytest.approx(forms.direction_value(s, n, N, D, **LAW), abs=1e-15)
            step = 1e-3 * s
            bend = (h(s + step) - 2 * h(s) + h(s - step)) / step**2
            assert forms.direction_slope(s, n, N, D, **LAW) == pytest.approx(0, abs=1e-15)
            curvature = forms.radial_curvature(s, n, N, D, **LAW)
            assert sign * curvature > 0 and curvature == pytest.approx(4 * s * bend, rel=1e-4)
    bound = forms.class_lambda_max(6, N, D, eps_sq=EPS_SQ)
    assert bound == forms.lambda_max(SIZES, D, eps_sq=EPS_SQ)
    both = forms.stationary_squares(6, N, D, eps_sq=EPS_SQ, lmbda=bound)
    inflection = 1 / math.sqrt(D / (N * EPS_SQ) * D / (6 * EPS_SQ))
    np.testing.assert_allclose(both, inflection, rtol=1e-12)
    for lmbda in (0.0, 1.0001 * bound):
        with pytest.raises(ValueError, match="stationary directions for lmbda above 0"):
            forms.stationary_squares(6, N, D, eps_sq=EPS_SQ, lmbda=lmbda)


@pytest.mark.parametrize(
    "ratio, share", [(2, 0.8671), (3, 0.8705), (4, 0.8736), (5, 0.8765), (10, 0.8874),
                     (20, 0.9002), (100, 0.9316)]
)  # fmt: skip
def test_where_a_class_is_better_left_out(ratio, share):
    """The share does not depend on the dimension or on epsilon."""
    for d, eps_sq in ((7, 0.5), (100, 3.0)):
        zero = forms.lambda_zero(5, 5 * ratio, d, eps_sq=eps_sq)
        bound = forms.class_lambda_max(5, 5 * ratio, d, eps_sq=eps_sq)
        assert zero / bound == pytest.approx(share, abs=5e-5)
        below, above = (
            forms.class_values((5, 5 * ratio - 5), d, eps_sq=eps_sq, lmbda=f * zero)[0]
            for f in (0.999, 1.001)
        )
        assert below > 0 > above


@pytest.mark.parametrize("fraction", [0.1, 0.86, 0.9, 0.99, 1.0, 1.5, 3.0])
def test_greedy_ranks_are_the_best_of_all(fraction):
    sizes, d = (2, 3, 4), 6
    law = {"eps_sq": 0.5, "lmbda": fraction * forms.lambda_max(sizes, d, eps_sq=0.5)}
    values = forms.class_values(sizes, d, **law)
    best = max(
        sum(r * h for r, h in zip(ranks, values, strict=True))
        for ranks in itertools.product(range(3), range(4), range(5))
        if sum(ranks) <= d
    )
    assert forms.optimum(sizes, d, **law) == pytest.approx(best, abs=1e-15)
    greedy, printed = forms.greedy_ranks(sizes, d, **law), forms.printed_ranks(sizes, d)
    assert printed == (2, 3, 1)
    assert (greedy == printed) == (values[2] > 0)


def test_a_class_that_is_all_there_is_adds_nothing():
    law = {"eps_sq": 0.5, "lmbda": 0.01}
    assert forms.lambda_max((4,), 3, eps_sq=0.5) == 0
    assert forms.optimum((4,), 3, **law) == 0 and forms.greedy_ranks((4,), 3, **law) == (0,)


def test_the_value_of_a_data_run():
    """MNIST's size: three classes of 100 in 128 dimensions, lmb = 1e-3 in the released code."""
    law = {"eps_sq": 0.5, "lmbda": 2e-3}
    sizes = (100,) * 3
    assert forms.optimum(sizes, 128, **law) == pytest.approx(175.185979, abs=1e-6)
    assert forms.greedy_ranks(sizes, 128, **law) == (100, 28, 0)
    assert math.sqrt(forms.stationary_squares(100, 300, 128, **law)[0]) == pytest.approx(
        18.2145, abs=1e-4
    )


def test_isotropic_features(x64):
    sizes, d, ranks = (4, 6), 6, (2, 3)
    rng, U = (
        np.random.default_rng(0),
        np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0],
    )
    blocks, column = [], 0
    for n, r in zip(sizes, ranks, strict=True):
        V = np.linalg.qr(rng.standard_normal((n, r)))[0]
        blocks.append(math.sqrt(n / r) * V @ U[:, column : column + r].T)
        column += r
    rate = jax.jit(lambda Z: regularised_rate_reduction(Z, sizes, eps_sq=0.5, lmbda=0.0))
    value = rate(np.concatenate(blocks))
    form = forms.isotropic_rate_reduction(ranks, sizes, d, eps_sq=0.5)
    assert form == pytest.approx(float(value), rel=1e-12)
    best = max(
        forms.isotropic_rate_reduction(pair, sizes, d, eps_sq=0.5)
        for pair in itertools.product(range(5), range(7))
        if sum(pair) <= d
    )
    chosen = forms.isotropic_ranks(sizes, d, eps_sq=0.5)
    assert forms.isotropic_rate_reduction(chosen, sizes, d, eps_sq=0.5) == best > form
