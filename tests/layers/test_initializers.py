import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from crate_jax import models
from crate_jax.layers.initializers import kaiming_uniform, torch_uniform

KEY = jax.random.key(0, impl="unsafe_rbg")  # quick to compile


def assert_uniform(draws, bound):
    """Fills (-bound, bound), with the uniform's deviation; for a thousand draws or more."""
    draws = np.asarray(draws).ravel()
    top = np.abs(draws).max()
    assert bound * (1 - 20 / draws.size) < top <= bound
    assert abs(draws.mean()) < 5 * bound / np.sqrt(3 * draws.size)
    np.testing.assert_allclose(draws.std(), bound / np.sqrt(3), rtol=4 / np.sqrt(draws.size))


def assert_normal(draws, std):
    draws = np.asarray(draws).ravel()
    assert abs(draws.mean()) < 5 * std / np.sqrt(draws.size)
    np.testing.assert_allclose(draws.std(), std, rtol=4 / np.sqrt(draws.size))
    assert np.abs(draws).max() > 2.5 * std  # uniform draws end at 1.73 deviations


def test_torch_uniform_bounds():
    assert_uniform(torch_uniform()(KEY, (100, 50)), 0.1)
    assert_uniform(torch_uniform(25)(KEY, (5000,)), 0.2)


def test_kaiming_uniform_takes_the_first_axis_for_inputs():
    assert_uniform(kaiming_uniform(KEY, (24, 96)), 0.5)
    assert_uniform(kaiming_uniform(KEY, (2, 2, 6, 96)), 0.5)


def initial(name, only="", **settings):
    sizes = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "num_classes": 40, **settings}
    model = models.create(name, scan_layers=True, **sizes)

    @jax.jit
    def init(key):
        params = model.init(key, jnp.zeros((1, 64, 64, 3)))["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {path: leaf for path, leaf in flat.items() if path.startswith(only)}

    return jax.device_get(init(KEY))


@pytest.fixture(scope="module")
def crate():
    return initial("crate", head_dim=25)  # K p = 75


@pytest.fixture(scope="module")
def alpha():
    return initial("crate_alpha")


def test_crate_starts_from_torch_defaults(crate):
    assert_uniform(crate["blocks/ista/D"], (6 / 48) ** 0.5)
    for leaf, fan_in in {
        "blocks/attention/subspaces/kernel": 48,
        "blocks/attention/out/kernel": 75,
        "patches/embed/kernel": 192,
        "head/kernel": 48,
    }.items():
        assert_uniform(crate[leaf], fan_in**-0.5)
        if (bias := leaf.replace("kernel", "bias")) in crate:
            assert 0.8 * fan_in**-0.5 < np.abs(crate[bias]).max() <= fan_in**-0.5
    assert_normal(crate["embedding/pos_embedding"], 1)
    np.testing.assert_allclose(np.std(crate["embedding/cls_token"]), 1, rtol=0.5)


def test_crate_alpha_starts_from_small_normals(alpha):
    for leaf in (
        "blocks/attention/subspaces/kernel",
        "blocks/attention/out/kernel",
        "head/kernel",
        "embedding/pos_embedding",
    ):
        assert_normal(alpha[leaf], 0.02)
    for leaf, fan_in in {
        "patches/embed/kernel": 192,
        "blocks/ista/D": 48,
        "blocks/ista/D1": 48,
    }.items():
        assert_uniform(alpha[leaf], (6 / fan_in) ** 0.5)
    assert (alpha["head/bias"] == 0).all() and (alpha["patches/embed/bias"] == 0).all()
    np.testing.assert_allclose(np.std(alpha["embedding/cls_token"]), 1e-6, rtol=0.5)


def test_convolutional_crate_starts_from_torch_defaults():
    conv = initial("crate", only="patches", patching="conv")
    for leaf in ("patches/embed/kernel", "patches/embed/bias"):
        assert 0.8 * 192**-0.5 < np.abs(conv[leaf]).max() <= 192**-0.5
    assert_uniform(conv["patches/embed/kernel"], 192**-0.5)


def test_scanned_layers_start_differently_and_norms_at_identity(crate, alpha):
    for params in (crate, alpha):
        first, second = params["blocks/ista/D"]
        assert (first != second).all()
        for leaf, value in params.items():
            if "norm" in leaf:
                assert (value == leaf.endswith("scale")).all(), leaf
