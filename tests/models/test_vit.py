import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.layers.stack import stack_layers
from tests.layers import random_params
from tests.layers.test_attention import np_mhsa
from tests.layers.test_patches import np_conv_patches, np_layer_norm
from tests.layers.test_tokens import np_tokens
from tests.models.test_crate import (
    forward,
    np_mlp,
    parameters,
    rounded_and_grads,
    value_and_grads,
)

SIZES = {"width": 8, "depth": 1, "heads": 2, "patch": 2, "num_classes": 3}
CAPTURE = ("projections", "attention", "after_attention", "tokens", "codes")


def np_vit(image, p, *, depth=1, num_classes=3, pool="cls", norm_eps=1e-6, **_):
    x = np_conv_patches(image, p["patches"], 2)
    x = np_tokens(x, p["embedding"], (image.shape[1] // 2, image.shape[2] // 2))
    seen = {name: [] for name in CAPTURE}
    for l in range(depth):
        q = p[f"blocks_{l}"]
        update, keys, A = np_mhsa(np_layer_norm(x, q["norm_attention"], norm_eps), q["attention"])
        half = x + update
        update, hidden = np_mlp(np_layer_norm(half, q["norm_mlp"], norm_eps), q["mlp"])
        x = half + update
        for name, value in zip(CAPTURE, (keys, A, half, x, hidden), strict=True):
            seen[name].append(value)
    out = np_layer_norm(x, p["norm"], norm_eps)
    out = out[:, 0] if pool == "cls" else out.mean(axis=1)
    if num_classes:
        out = out @ p["head"]["kernel"] + p["head"]["bias"]
    return out, {name: np.stack(layers) for name, layers in seen.items()}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3))


KNOBS = [
    {"depth": 2},
    {"qkv_bias": False},
    {"mlp_ratio": 2},
    {"head_dim": 3},
    {"positions": "sincos2d"},
    {"pool": "mean"},
    {"norm_eps": 0.2},
    {"num_classes": 0},
    {"attention_implementation": "xla"},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_logits_are_the_papers_formulas(x64, image, knobs):
    model = models.create("vit", **SIZES | knobs)
    p = random_params(model, image)
    got = model.apply({"params": p}, image)
    assert got.dtype == jnp.float64
    want, _ = np_vit(image, p, **SIZES | knobs)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_float32_and_bfloat16_stay_within_their_rounding(image):
    model = models.create("vit", **SIZES)
    p = random_params(model, image)
    want, _ = np_vit(image, p)
    got = forward(model, p, image)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    error = np.abs(rounded_and_grads(model, p, image) - want).max() / np.abs(want).max()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("scan_layers", [False, True])
def test_captured_layers_are_the_papers_quantities(x64, image, scan_layers):
    settings = SIZES | {"depth": 2}
    model = models.create("vit", **settings)
    p = random_params(model, image)
    params = stack_layers(p) if scan_layers else p
    model = model.clone(scan_layers=scan_layers)
    out, seen = model.apply({"params": params}, image, capture=CAPTURE)
    want, layers = np_vit(image, p, **settings)
    np.testing.assert_allclose(out, want, rtol=1e-10, atol=1e-12)
    for name in CAPTURE:
        np.testing.assert_allclose(seen[name], layers[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert seen["codes"].shape == (2, 2, 5, 32)


def test_scan_and_remat_change_no_value_and_no_gradient(x64, image):
    model = models.create("vit", **SIZES | {"depth": 2})
    p = random_params(model, image)
    want = value_and_grads(model, p, image)
    scanned = model.clone(scan_layers=True, remat="attention")
    got = value_and_grads(scanned, stack_layers(p), image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


@pytest.mark.parametrize(
    ("variant", "settings", "count"),
    [
        ("T", {}, 5_717_416),  # published as 5.72 M
        ("S", {}, 22_050_664),  # 22.05 M
        ("B", {}, 86_567_656),
        ("B", {"qkv_bias": False}, 86_540_008),  # the published 86.54 M
        ("L", {}, 304_326_632),
    ],
)
def test_published_sizes(variant, settings, count):
    assert parameters("vit", variant=variant, **settings) == count
