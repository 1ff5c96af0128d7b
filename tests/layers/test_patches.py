import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.patches import ConvPatches, LinearPatches, patchify
from tests.layers import random_params


def np_layer_norm(x, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / std * p["scale"] + p["bias"]


def np_patches(image, patch):
    """Raster order; within a patch the row, then the column, then the channel: (p1 p2 c)."""
    B, H, W, C = image.shape
    out = np.zeros((B, (H // patch) * (W // patch), patch * patch * C))
    for b, h, w, c in np.ndindex(image.shape):
        token = (h // patch) * (W // patch) + w // patch
        out[b, token, ((h % patch) * patch + w % patch) * C + c] = image[b, h, w, c]
    return out


def np_linear_patches(image, p, patch, eps=1e-5):
    x = np_layer_norm(np_patches(image, patch), p["norm_pixels"], eps)
    x = x @ p["embed"]["kernel"] + p["embed"]["bias"]
    return np_layer_norm(x, p["norm_tokens"], eps)


def np_conv_patches(image, p, patch):
    kernel = p["embed"]["kernel"].reshape(-1, p["embed"]["kernel"].shape[-1])
    return np_patches(image, patch) @ kernel + p["embed"].get("bias", 0)


def test_patches_by_hand():
    image = jnp.arange(16).reshape(1, 2, 4, 2)  # pixel (h, w) holds 8h + 2w and 8h + 2w + 1
    np.testing.assert_array_equal(
        patchify(image, 2)[0], [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    )


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(2, 4, 6, 3))


@pytest.mark.parametrize(
    ("layer", "oracle"),
    [
        (LinearPatches(5, 2), lambda i, p: np_linear_patches(i, p, 2)),
        (LinearPatches(5, 2, norm_eps=0.3), lambda i, p: np_linear_patches(i, p, 2, 0.3)),
        (ConvPatches(5, 2), lambda i, p: np_conv_patches(i, p, 2)),
        (ConvPatches(5, 2, use_bias=False), lambda i, p: np_conv_patches(i, p, 2)),
    ],
    ids=["linear", "linear with a large eps", "conv", "conv without bias"],
)
def test_embeddings_are_their_formulas(x64, image, layer, oracle):
    p = random_params(layer, image)
    got = layer.apply({"params": p}, image)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, oracle(image, p), rtol=1e-10, atol=1e-13)
    assert ("bias" in p["embed"]) == getattr(layer, "use_bias", True)


@pytest.mark.parametrize("layer", [LinearPatches(5, 4), ConvPatches(5, 4)])
def test_an_image_that_does_not_divide_is_refused(image, layer):
    with pytest.raises(ValueError, match="4x6 pixels does not divide into patches of 4x4"):
        random_params(layer, image)
