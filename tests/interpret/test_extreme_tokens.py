import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.interpret import extreme_tokens as et

L, B, H, T, D = 2, 3, 4, 6, 5
EXACT = {"rtol": 1e-12, "atol": 0}


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def scores(rng):
    return 2 * rng.standard_normal((L, B, H, T, T))


@pytest.fixture
def attention(scores):
    weights = np.exp(scores) * np.tril(np.ones((T, T)))
    return weights / weights.sum(-1, keepdims=True)


def test_bos_attention(x64, attention, rng):
    np.testing.assert_allclose(et.bos_attention(attention), attention[..., 0].mean(-1), **EXACT)
    where = rng.random((B, 1, T)) < 0.6
    where[..., 0] = True
    ours = et.bos_attention(jnp.asarray(attention), jnp.asarray(where)[None])
    for l, b, h in np.ndindex(L, B, H):
        counted = attention[l, b, h, where[b, 0], 0]
        np.testing.assert_allclose(ours[l, b, h], counted.mean(), **EXACT)


def test_column_mass(x64, attention):
    noise = attention + np.triu(np.full((T, T), 7.0), 1)  # the unseen half does not count
    ours = et.column_mass(jnp.asarray(noise))
    for k in range(T):
        expected = sum(attention[..., q, k] for q in range(k, T)) / (T - k)
        np.testing.assert_allclose(ours[..., k], expected, **EXACT)
    diagonal = et.column_mass(jnp.eye(T))
    np.testing.assert_allclose(diagonal, 1 / np.arange(T, 0, -1), **EXACT)


def test_sink_logits_leave_out_the_query_and_the_future(x64, scores):
    scores[..., np.triu(np.ones((T, T), bool), 1)] = np.inf
    ours = np.asarray(et.sink_logits(jnp.asarray(scores)))
    assert np.isnan(ours[..., :2]).all()
    for n in range(2, T):
        expected = scores[..., n, 0] - scores[..., n, 1:n].mean(-1)
        np.testing.assert_allclose(ours[..., n], expected, rtol=1e-12, atol=1e-14)


def test_legacy_sink_logits_count_every_key(x64, scores):
    ours = et.sink_logits_legacy(jnp.asarray(scores))
    expected = scores[..., 0] - scores.sum(-1) / T
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_sink_logits_ignore_a_shift_of_a_row(x64, scores):
    shifted = jnp.asarray(scores) + 5.0
    for statistic in (et.sink_logits, et.sink_logits_legacy):
        np.testing.assert_allclose(statistic(shifted), statistic(jnp.asarray(scores)), atol=1e-12)


def test_entropy_of_uniform_rows_is_the_log_of_their_length(x64):
    uniform = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    ours = et.attention_entropy(jnp.asarray(uniform))
    np.testing.assert_allclose(ours, np.log(np.arange(1, T + 1)), atol=1e-15)
    grad = jax.grad(lambda A: et.attention_entropy(A).sum())(jnp.asarray(uniform))
    assert np.isfinite(grad).all()


def test_norm_ratio_and_peak(x64, rng):
    values = rng.standard_normal((B, T, D))
    norms = et.value_norms(jnp.asarray(values))
    np.testing.assert_allclose(norms, np.sqrt((values**2).sum(-1)), **EXACT)
    for position in (0, 3):
        others = np.delete(np.asarray(norms), position, axis=-1).mean(-1)
        at = np.asarray(norms)[:, position]
        np.testing.assert_allclose(et.norm_ratio(norms, position), at / others, **EXACT)
        np.testing.assert_allclose(et.peak(norms, position), at - others, rtol=1e-11)


def test_sink_rate_counts_heads_of_a_sequence(x64, attention):
    ours = et.sink_rate(jnp.asarray(attention), threshold=0.4)
    for b in range(B):
        heads = [attention[l, b, h, :, 0].mean() > 0.4 for l in range(L) for h in range(H)]
        assert 0 < sum(heads) < L * H
        np.testing.assert_allclose(ours[b], np.mean(heads), **EXACT)
    everything_to_first = jnp.zeros((L, H, T, T)).at[..., 0].set(1)
    assert et.sink_rate(everything_to_first) == 1


def test_max_median_ratio_and_kurtosis(x64, rng):
    x = rng.standard_normal((B, T, D))
    expected = [np.abs(y).max() / np.median(np.abs(y)) for y in x]
    np.testing.assert_allclose(et.max_median_ratio(jnp.asarray(x)), expected, **EXACT)
    centred = x - x.mean(-1, keepdims=True)
    expected = (centred**4).mean(-1) / x.var(-1) ** 2
    np.testing.assert_allclose(et.kurtosis(jnp.asarray(x)), expected, **EXACT)
    one_hot = np.eye(D)[0]  # moments of a Bernoulli variable with p = 1/D
    p = 1 / D
    np.testing.assert_allclose(et.kurtosis(one_hot), (1 - 3 * p * (1 - p)) / (p * (1 - p)), **EXACT)


def test_mean_by_token(x64):
    values = jnp.array([[1.0, 2.0, np.nan], [5.0, 7.0, 4.0]])
    tokens = jnp.array([[0, 2, 0], [2, 0, 3]])
    ours = et.mean_by_token(values, tokens, 5)
    np.testing.assert_allclose(ours, [4.0, np.nan, 3.5, 4.0, np.nan], **EXACT)


def test_all_can_be_jitted_and_mapped_in_float32(attention):
    A = jnp.asarray(attention, jnp.float32)

    def statistics(A):
        norms = et.value_norms(A)
        return (
            et.bos_attention(A), et.column_mass(A), et.sink_logits(A), et.sink_logits_legacy(A),
            et.attention_entropy(A), et.norm_ratio(norms), et.peak(norms), et.sink_rate(A),
            et.max_median_ratio(A), et.kurtosis(A),
        )  # fmt: skip

    mapped = jax.jit(jax.vmap(statistics, in_axes=1))(A)
    for ours, one in zip(mapped, statistics(A[:, 0]), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours[0], one, rtol=1e-5, atol=1e-6)
