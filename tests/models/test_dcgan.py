import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.config import ConfigError
from crate_jax.layers.csc import COLLECTION
from crate_jax.ops import convolutional_sparse_coding as csc

SMALL = {"image_size": 8, "widths": (4,), "nz": 3}


def _small(**settings):
    module = models.create("dcgan", **SMALL, **settings)
    return module, jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def _count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("channels, nz", [(1, 128), (3, 100)])
def test_the_mini_dcgan_has_as_many_parameters_as_its_layers(channels, nz):
    module = models.create("dcgan", variant="32", channels=channels, nz=nz)
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), "float32")
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    kernels = 16 * (channels * 64 + 64 * 128 + 128 * 256 + 256 * nz)
    assert _count(shapes["f"]) == kernels + 2 * (128 + 256)
    assert _count(shapes["g"]) == kernels + 2 * (256 + 128 + 64)
    if nz == 128:  # layer by layer in PyTorch
        assert _count(shapes) == 2_363_008


@pytest.mark.parametrize("encoder", ["conv", "csc"])
def test_features_have_unit_norm_and_images_lie_in_the_range(encoder):
    few = {"lmbda": (0.01,)} if encoder == "csc" else {}  # 0.1 silences so small a net
    module, variables = _small(encoder=encoder, **few)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    z, image = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    assert image.shape == x.shape and np.all(np.abs(image) < 1)
    decoded = jax.jit(lambda v, z: module.apply(v, z, method="decode"))(variables, z)
    np.testing.assert_allclose(image, decoded, rtol=1e-5)


def test_the_plain_encoder_is_its_layers_one_by_one(x64):
    module, variables = _small(encoder="conv", param_dtype="float64")
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 1))
    f = variables["params"]["f"]
    h = csc.analyse(jnp.asarray(x), f["stage_0"]["kernel"], stride=2, padding=1)
    h = np.where(h > 0, h, 0.2 * h)
    z = np.einsum("bijc,ijcd->bd", h, f["stage_1"]["kernel"])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(module.apply(variables, x, method="encode"), z, rtol=1e-10)


@pytest.mark.slow
def test_tied_dictionaries(x64):
    for encoder, leaf in (("conv", "kernel"), ("csc", "atoms")):
        _, own = _small(encoder=encoder, tied="false")
        _, copied = _small(encoder=encoder, tied="init")
        module, shared = _small(encoder=encoder, tied="true")
        assert not np.array_equal(
            own["params"]["f"]["stage_1"][leaf], own["params"]["g"]["stage_1"]["atoms"]
        )
        np.testing.assert_array_equal(
            copied["params"]["f"]["stage_1"][leaf], copied["params"]["g"]["stage_1"]["atoms"]
        )
        assert set(shared["params"]["g"]) == {"norm_1"}
        # With the same numbers the shared and the copied one are the same function.
        x = jnp.ones((1, 8, 8, 1))
        again = {**copied, "params": {"f": shared["params"]["f"], "g": {
            **shared["params"]["g"],
            **{s: {"atoms": shared["params"]["f"][s][leaf]} for s in ("stage_0", "stage_1")},
        }}}  # fmt: skip
        unshared = module.clone(tied="false")
        for a, b in zip(module.apply(shared, x), unshared.apply(again, x), strict=True):
            np.testing.assert_array_equal(a, b)


def test_atoms_go_back_to_the_sphere_and_steps_follow_them():
    module, variables = _small(encoder="csc")
    moved = jax.tree.map(lambda x: 3 * x, variables["params"])
    projected = module.project(moved)
    np.testing.assert_allclose(
        projected["f"]["stage_0"]["atoms"], variables["params"]["f"]["stage_0"]["atoms"], rtol=1e-6
    )
    np.testing.assert_array_equal(projected["g"]["stage_0"]["atoms"],
                                  moved["g"]["stage_0"]["atoms"])  # fmt: skip
    renewed, renew = variables, jax.jit(module.renew)
    for _ in range(20):
        renewed = renew(renewed)
    last = variables["params"]["f"]["stage_1"]["atoms"].reshape(-1, 3)
    L = np.linalg.norm(np.asarray(last), 2) ** 2  # its places are one
    step = float(renewed[COLLECTION]["f"]["stage_1"]["step_size"])
    assert step == pytest.approx(0.9 / L, rel=1e-3)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"widths": (4, 4, 4, 4), "image_size": 8}, "no place left after 3 stages"),
        ({"widths": (4,), "image_size": 8, "lmbda": (0.1, 0.2, 0.3), "encoder": "csc"},
         "config.model.lmbda has 3 entries for 2 stages"),
    ],
    ids=("too many stages", "too many lambdas"),
)  # fmt: skip
def test_sizes_that_do_not_fit_are_said(settings, sentence):
    module = models.create("dcgan", **settings)
    with pytest.raises(ConfigError, match=sentence):
        module.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def test_a_plain_encoder_has_no_lambda():
    with pytest.raises(ConfigError, match="lmbda=.* has no effect with encoder='conv'"):
        models.create("dcgan", **SMALL, encoder="conv", lmbda=(0.5,))
