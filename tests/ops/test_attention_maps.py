import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import attention_maps

N = 7
MASK = np.tril(np.ones((N, N), bool))


@pytest.fixture
def scores():
    return 3 * np.random.default_rng(0).standard_normal((2, 3, N, N))


def _by_loops(scores, kind):
    """The table of the module's docstring, one weight at a time."""
    weights = np.zeros_like(scores)
    for *lead, q in np.ndindex(scores.shape[:-1]):
        row = scores[(*lead, q)][: q + 1]
        n = q + 1
        weights[(*lead, q)][:n] = {
            "softmax": np.exp(row) / np.exp(row).sum(),
            "softmax_plus_one": np.exp(row) / (1 + np.exp(row).sum()),
            "relu": np.maximum(row, 0) / n,
            "sigmoid": 1 / (1 + np.exp(-(row - np.log(n)))),
        }[kind]
    return weights


@pytest.mark.parametrize("kind", attention_maps.KINDS)
def test_every_weight_is_the_formula(kind, scores, x64):
    ours = attention_maps.attention_map(jnp.asarray(scores), kind, MASK)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, _by_loops(scores, kind), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("kind", attention_maps.KINDS)
def test_what_is_not_seen_changes_nothing_and_has_no_gradient(kind, scores):
    def total(s):
        return jnp.sum(jnp.sin(attention_maps.attention_map(s, kind, MASK)))

    future = np.where(MASK, scores, 1e30).astype(np.float32)
    a, da = jax.value_and_grad(total)(jnp.asarray(scores, jnp.float32))
    b, db = jax.value_and_grad(total)(jnp.asarray(future))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(db)[..., ~MASK] == 0) and np.isfinite(db).all()


@pytest.mark.parametrize("kind", ["softmax", "softmax_plus_one", "sigmoid"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores_stay_finite(kind, size):
    scores = jnp.full((N, N), size)
    weights, grad = jax.value_and_grad(lambda s: attention_maps.attention_map(s, kind, MASK).sum())(
        scores
    )
    assert np.isfinite(weights) and np.isfinite(grad).all()


def test_plus_one_is_softmax_with_a_key_of_score_zero(scores):
    more = np.concatenate([np.zeros((*scores.shape[:-1], 1)), scores], -1).astype(np.float32)
    mask = np.concatenate([np.ones((N, 1), bool), MASK], -1)
    expected = attention_maps.attention_map(jnp.asarray(more), "softmax", mask)[..., 1:]
    ours = attention_maps.attention_map(jnp.asarray(scores, jnp.float32), "softmax_plus_one", MASK)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_the_causal_mask_sees_itself_and_what_came_before():
    np.testing.assert_array_equal(attention_maps.causal_mask(N), MASK)
