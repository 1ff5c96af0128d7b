import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import models
from crate_jax.interpret import layers


def test_the_released_protocol_in_numpy():
    """The n x n Gram of unit tokens, image by image and head by head, as the spec writes it."""
    L, B, N, K, p = 2, 3, 5, 4, 3
    rng = np.random.default_rng(0)
    W = rng.normal(size=(L, B, N, K, p))
    codes = np.maximum(rng.normal(size=(L, B, N, 6)), 0)
    rate, nonzero = np.zeros((L, B)), np.zeros((L, B))
    for l in range(L):
        for b in range(B):
            for k in range(K):
                X = W[l, b, :, k]
                X = X / np.linalg.norm(X, axis=1, keepdims=True)
                rate[l, b] += 0.5 * np.linalg.slogdet(np.eye(N) + p / (N * 0.01) * X @ X.T)[1]
            nonzero[l, b] = np.count_nonzero(codes[l, b]) / codes[l, b].size
    measured = layers.measure({"projections": jnp.asarray(W), "codes": jnp.asarray(codes)})
    np.testing.assert_allclose(measured["coding_rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(measured["nonzero"], nonzero, rtol=1e-6)
    summary = layers.summarise(measured)
    np.testing.assert_allclose(summary["coding_rate_std"], rate.std(1, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(summary["nonzero_std"], nonzero.std(1), rtol=1e-5)


def test_one_image_has_no_deviation():
    summary = layers.summarise({"coding_rate": jnp.ones((2, 1)), "nonzero": jnp.ones((2, 1))})
    assert not np.isnan(summary["coding_rate_std"]).any()


def test_the_rate_of_crate_s_stays_under_its_bound():
    """Unit tokens in d dimensions cannot exceed (d/2) ln 101: 1329 nats for CRATE-S."""
    assert round(576 / 2 * np.log(101)) == 1329
    model = models.create("crate", width=48, depth=2, heads=4, patch=4, num_classes=3)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = model.init(jax.random.key(1), image)
    _, captured = model.apply(variables, image, capture=layers.CAPTURE)
    rate = layers.measure(captured)["coding_rate"]
    assert (rate > 0).all() and (rate < 48 / 2 * np.log(101)).all()
