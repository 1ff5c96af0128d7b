"""Batch normalisation: the formula, torch's running statistics, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.batch_norm import BatchNorm


@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 4, 3)], ids=["rows", "images"])
def test_training_normalises_by_the_batch_and_moves_the_statistics(x64, shape):
    x = np.random.default_rng(0).normal(size=shape) * 3 + 1
    module = BatchNorm(param_dtype="float64")
    variables = module.init(jax.random.key(0), jnp.asarray(x))
    variables["params"] = {"scale": jnp.array([1.0, 2.0, -1.0]), "bias": jnp.array([0.0, 1.0, 2.0])}
    out, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.reshape(-1, 3)
    want = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * [1, 2, -1] + [0, 1, 2]
    np.testing.assert_allclose(out.reshape(-1, 3), want, rtol=1e-10)
    stats = jax.tree.map(np.asarray, moved["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-12)
    later = module.apply({**variables, **moved}, x)
    want = (flat - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * [1, 2, -1] + [0, 1, 2]
    np.testing.assert_allclose(later.reshape(-1, 3), want, rtol=1e-10)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_statistics_stay_float32_under_bfloat16(param_dtype):
    module = BatchNorm(dtype="bfloat16", param_dtype=param_dtype)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)) + 100, "bfloat16")
    variables = module.init(jax.random.key(0), x)
    assert variables["params"]["scale"].dtype == param_dtype
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    out, moved = apply(variables, x)
    assert out.dtype == "bfloat16" and moved["batch_stats"]["var"].dtype == "float32"
    np.testing.assert_allclose(
        moved["batch_stats"]["mean"], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5
    )
