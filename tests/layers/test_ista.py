import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.ista import ISTA, Decoded, OvercompleteISTA
from tests.layers import random_params


def np_prox(v, threshold, kind="relu"):
    size = np.maximum(np.abs(v) - threshold, 0)
    return np.where(v > 0, size, 0 if kind == "relu" else -size)


def np_ista(y, D, *, eta=0.1, lmbda=0.1, prox="relu", steps=1):
    """The official expression, with ``D x`` written ``x @ D.T``."""
    a = y
    for _ in range(steps):
        a = np_prox(a + eta * (y @ D - a @ D.T @ D), eta * lmbda, prox)
    return a


def np_odl(y, p, *, eta=0.1, lmbda=0.1, prox="relu", steps=2):
    """``(output, codes, first codes)`` of CRATE-alpha's layer, from zero codes, token by token."""
    D, D1 = p["D"], p.get("D1", p["D"])
    out, codes, firsts = (np.zeros((*y.shape[:-1], m)) for m in (D.shape[0], *D.shape[1:] * 2))
    for at in np.ndindex(y.shape[:-1]):
        z = np.zeros(D.shape[1])
        for step in range(steps):
            z = np_prox(z - eta * D.T @ (D @ z - y[at]), eta * lmbda, prox)
            if step == 0:
                firsts[at] = z
        out[at], codes[at] = D1 @ z, z
    return out, codes, firsts


@pytest.fixture
def y():
    return np.random.default_rng(1).normal(size=(2, 3, 6))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 0.3},
        {"lmbda": 0.7},
        {"prox": "soft"},
        {"steps": 3},
        {"steps": 2, "prox": "soft"},
    ],
    ids=str,
)
def test_ista_is_its_formula(x64, y, settings):
    layer = ISTA(**settings)
    p = random_params(layer, y)
    got, seen = layer.apply({"params": p}, y)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, np_ista(y, p["D"], **settings), rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(got, seen["codes"])


def test_a_shared_dictionary_is_used_and_no_own_one_made(x64, y):
    D = np.random.default_rng(2).normal(size=(6, 6))
    got, _ = ISTA().apply({"params": {}}, y, D)
    np.testing.assert_allclose(got, np_ista(y, D), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 0.3, "lmbda": 0.7},
        {"prox": "soft"},
        {"steps": 1},
        {"steps": 4},
        {"expansion": 2},
    ],
    ids=str,
)
def test_overcomplete_layer_is_its_formula(x64, y, settings, decoupled):
    layer = OvercompleteISTA(decoupled=decoupled, **settings)
    p = random_params(layer, y)
    assert set(p) == ({"D", "D1"} if decoupled else {"D"})
    assert p["D"].shape == (6, 6 * settings.pop("expansion", 4))
    got, seen = layer.apply({"params": p}, y)
    want, codes, firsts = np_odl(y, p, **settings)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(seen["codes"], codes, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(seen["first_codes"], firsts, rtol=1e-9, atol=1e-12)


def test_relu_codes_are_sparse_and_never_negative_and_soft_ones_are_signed(x64, y):
    for layer in (ISTA, OvercompleteISTA):
        D = random_params(layer(), y)
        relu, soft = (
            np.asarray(layer(prox=prox).apply({"params": D}, y)[1]["codes"])
            for prox in ("relu", "soft")
        )
        assert (relu >= 0).all() and (relu == 0).any() and (relu > 0).any()
        assert (soft < 0).any() and (soft > 0).any()


def test_a_square_decoder_multiplies_by_its_matrix(x64, y):
    p = random_params(Decoded(), y)
    got = Decoded().apply({"params": p}, y)
    np.testing.assert_allclose(got[1, 2], p["D1"] @ y[1, 2], rtol=1e-10)
