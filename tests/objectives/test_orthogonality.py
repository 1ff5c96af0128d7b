import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.objectives.orthogonality import orthogonality


def _params(*kernels):
    return {
        f"blocks_{l}": {"attention": {"subspaces": {"kernel": U}}} for l, U in enumerate(kernels)
    }


def test_orthonormal_bases_cost_nothing():
    U, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    assert float(orthogonality(_params(jnp.asarray(U.reshape(6, 2, 3))))) < 1e-10


def test_it_sums_over_heads_and_layers_however_they_are_stored():
    rng = np.random.default_rng(1)
    kernels = [rng.normal(size=(6, 2, 3)) for _ in range(3)]
    want = sum(np.sum((U[:, k].T @ U[:, k] - np.eye(3)) ** 2) for U in kernels for k in range(2))
    np.testing.assert_allclose(orthogonality(_params(*map(jnp.asarray, kernels))), want, rtol=1e-5)
    scanned = {"blocks": {"attention": {"subspaces": {"kernel": jnp.stack(kernels)}}}}
    np.testing.assert_allclose(orthogonality(scanned), want, rtol=1e-5)


def test_a_model_without_subspaces_is_refused():
    with pytest.raises(ValueError, match="MSSA"):
        orthogonality({"head": {"kernel": jnp.ones((2, 2))}})
