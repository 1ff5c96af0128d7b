"""Attention: the softmax as written, in the order of every platform, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import attention

SHAPE = (2, 5, 3, 4)  # images, tokens, heads, size


def arrays(seed):
    return np.random.default_rng(seed).normal(size=SHAPE)


def by_hand(q, k, v, causal):
    """Softmax attention head by head, in float64."""
    out, A = np.empty(SHAPE), np.empty((2, 3, 5, 5))
    for b in range(2):
        for h in range(3):
            e = np.exp(0.3 * q[b, :, h] @ k[b, :, h].T)
            e = np.tril(e) if causal else e
            A[b, h] = e / e.sum(1, keepdims=True)
            out[b, :, h] = A[b, h] @ v[b, :, h]
    return out, A


@pytest.mark.parametrize("where", ["cpu", "tpu"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_output_and_weights_are_the_softmax(where, causal, x64, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: where)
    q, k, v = (arrays(seed) for seed in range(3))
    out, A = attention.attend(*map(jnp.asarray, (q, k, v)), scale=0.3, causal=causal)
    want, weights = by_hand(q, k, v, causal)
    np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(A, weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "remat"])
def test_both_orders_have_one_gradient_shared_or_not(remat, x64, monkeypatch):
    w, g = jnp.asarray(arrays(0)), jnp.asarray(arrays(1))

    def gradients(where):
        monkeypatch.setattr(attention, "platform", lambda: where)

        def value(*qkv):
            return (attention.attend(*qkv, scale=0.3, remat=remat)[0] * g).sum()

        return *jax.grad(value, (0, 1, 2))(w, w + 1, w * 2), jax.grad(lambda w: value(w, w, w))(w)

    for got, want in zip(gradients("cpu"), gradients("tpu"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def test_large_logits_do_not_overflow():
    """Logits of 1e4: the largest takes all."""
    w = jnp.asarray(100.0 * np.eye(5)[None, :, None], jnp.float32)
    out, _ = attention.attend(w, w, w, scale=1.0)
    np.testing.assert_array_equal(out, w)
