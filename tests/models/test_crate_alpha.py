import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.layers.stack import stack_layers
from crate_jax.models.crate_alpha import LADDER
from tests.layers import random_params
from tests.layers.test_attention import np_mssa
from tests.layers.test_ista import np_ista, np_odl
from tests.layers.test_patches import np_conv_patches, np_layer_norm
from tests.layers.test_tokens import np_tokens
from tests.models.test_crate import forward, parameters, rounded_and_grads, value_and_grads

SIZES = {"width": 8, "depth": 1, "heads": 2, "patch": 2, "num_classes": 3}
CAPTURE = ("projections", "attention", "after_attention", "tokens", "codes")


def np_crate_alpha(
    image, p, *, patch=2, depth=1, num_classes=3, pool="cls", norm_eps=1e-6, attention_scale=None,
    overcomplete=True, decoupled=True, residual=True, eta=0.1, lmbda=0.1, prox="relu",
    ista_steps=2, head_norm_eps=None, position_resampling="linear", **_,
):  # fmt: skip
    """Logits and captured layers, in numpy, from the paper's equations with each knob spelt out."""
    x = np_conv_patches(image, p["patches"], patch)
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    x = np_tokens(x, p["embedding"], grid, position_resampling)
    seen = {name: [] for name in (*CAPTURE, "first_codes")}
    for l in range(depth):
        q = p[f"blocks_{l}"]
        one = np.ones(x.shape[-1])
        y = np_layer_norm(x, q["norm_attention"], norm_eps)
        update, w, A = np_mssa(y, q["attention"], scale=attention_scale, out_map="free")
        half = x + update * q.get("layer_scale_attention", one)
        y = np_layer_norm(half, q["norm_ista"], norm_eps)
        if overcomplete:
            lasso = {"eta": eta, "lmbda": lmbda, "prox": prox, "steps": ista_steps}
            update, codes, first = np_odl(y, q["ista"], **lasso)
        else:
            first = codes = update = np_ista(y, q["ista"]["D"], eta=eta, lmbda=lmbda, prox=prox)
            update = codes @ q["decoder"]["D1"].T if decoupled else codes
        x = half + update * q.get("layer_scale_ista", one) if residual else update
        for name, value in zip(seen, (w, A, half, x, codes, first), strict=True):
            seen[name].append(value)
    out = np_layer_norm(x, p["norm"], norm_eps if head_norm_eps is None else head_norm_eps)
    out = out[:, 0] if pool == "cls" else out.mean(axis=1)
    if num_classes:
        out = out @ p["head"]["kernel"] + p["head"].get("bias", 0)
    return out, {name: np.stack(layers) for name, layers in seen.items()}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3))


KNOBS = [
    {"depth": 3},
    *LADDER.values(),
    {"overcomplete": False},
    {"overcomplete": False, "residual": False},
    {"decoupled": False},
    {"expansion": 2},
    {"eta": 0.3},
    {"lmbda": 0.5},
    {"prox": "soft"},
    {"ista_steps": 3},
    {"attention_scale": 1.0},
    {"layer_scale": 0.5},
    {"stem_bias": False, "head_bias": False},
    {"positions": "sincos2d"},
    {"pool": "mean"},
    {"norm_eps": 0.2},
    {"head_norm_eps": 0.2},
    {"num_classes": 0},
    {"head_dim": 3},
    {"attention_implementation": "xla"},
    {"dropout": 0.5, "drop_path": 0.5},  # idle at evaluation
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_logits_are_the_papers_formulas(x64, image, knobs):
    model = models.create("crate_alpha", **SIZES | knobs)
    p = random_params(model, image)
    got = model.apply({"params": p}, image)
    assert got.dtype == jnp.float64
    want, _ = np_crate_alpha(image, p, **SIZES | knobs)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_float32_and_bfloat16_stay_within_their_rounding(image):
    model = models.create("crate_alpha", **SIZES, layer_scale=0.5)
    p = random_params(model, image)
    want, _ = np_crate_alpha(image, p, layer_scale=0.5)
    got = forward(model, p, image)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    error = np.abs(rounded_and_grads(model, p, image) - want).max() / np.abs(want).max()
    assert 1e-4 < error < 0.1


def test_switches_own_their_parameters(image):
    def leaves(**settings):
        p = random_params(models.create("crate_alpha", **SIZES | settings), image)
        layer = p["blocks_0"]
        assert "bias" not in layer["attention"]["out"]
        return {f"{name}/{leaf}" for name in ("ista", "decoder") for leaf in layer.get(name, ())}

    assert [leaves(**row) for row in LADDER.values()] == [
        {"ista/D"}, {"ista/D"}, {"ista/D", "ista/D1"}, {"ista/D", "ista/D1"}
    ]  # fmt: skip
    assert leaves(overcomplete=False) == {"ista/D", "decoder/D1"}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_captured_layers_are_the_papers_quantities(x64, image, scan_layers):
    settings = SIZES | {"depth": 2, "scan_layers": scan_layers}
    p = random_params(models.create("crate_alpha", **settings | {"scan_layers": False}), image)
    model = models.create("crate_alpha", **settings)
    capture = (*CAPTURE, "first_codes")
    params = stack_layers(p) if scan_layers else p
    out, seen = model.apply({"params": params}, image, capture=capture)
    want, layers = np_crate_alpha(image, p, **settings)
    np.testing.assert_allclose(out, want, rtol=1e-10, atol=1e-12)
    for name in capture:
        np.testing.assert_allclose(seen[name], layers[name], rtol=1e-10, atol=1e-12, err_msg=name)
    L, B, N, K = 2, 2, 5, 2
    assert seen["attention"].shape == (L, B, K, N, N)
    assert seen["codes"].shape == seen["first_codes"].shape == (L, B, N, 4 * 8)


def test_square_layers_have_no_first_codes(image):
    model = models.create("crate_alpha", **SIZES, overcomplete=False)
    with pytest.raises(ValueError, match="capture='first_codes' is none of"):
        forward(model, random_params(model, image), image, capture=("first_codes",))


def test_scan_and_remat_change_no_value_and_no_gradient(x64, image):
    model = models.create("crate_alpha", **SIZES | {"depth": 2, "layer_scale": 0.5})
    p = random_params(model, image)
    scanned = model.clone(scan_layers=True, remat="full")
    want = value_and_grads(model, p, image)
    got = value_and_grads(scanned, stack_layers(p), image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


def test_another_resolution_resamples_the_positions(x64, image):
    model = models.create("crate_alpha", **SIZES)
    p = random_params(model, image)
    larger = np.random.default_rng(1).normal(size=(1, 6, 8, 3))
    want, _ = np_crate_alpha(larger, p)
    np.testing.assert_allclose(forward(model, p, larger), want, rtol=1e-10, atol=1e-12)


def test_dropout_draws_from_its_key(image):
    model = models.create("crate_alpha", **SIZES, dropout=0.5)
    p = random_params(model, image)

    @jax.jit
    def train(key):
        return model.apply({"params": p}, image, train=True, rngs={"dropout": key})

    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("Ti/16", 4_811_944),
        ("S/16", 40_975_912),
        ("B/32", 73_985_512),
        ("B/16", 72_328_936),
        ("B/8", 72_338_152),
        ("L/32", 255_982_568),
        ("L/14", 253_650_920),
        ("L/8", 253_786_088),
        ("H/14", 526_819_560),
        ("g/14", 795_815_272),
    ],
)
def test_published_sizes(variant, count):
    assert parameters("crate_alpha", variant=variant) == count


@pytest.mark.parametrize(("variant", "count"), [("B/16", 86_299_359), ("L/14", 272_272_095)])
def test_sizes_with_the_pretraining_head(variant, count):
    assert parameters("crate_alpha", variant=variant, num_classes=19_167) == count


@pytest.mark.parametrize(
    ("variant", "count"), [("B/16", 72_345_600), ("L/14", 253_673_472), ("H/14", 526_848_000)]
)
def test_sizes_of_the_image_towers(variant, count):
    tower = {"stem_bias": False, "head_bias": False, "num_classes": 1024}
    assert parameters("crate_alpha", variant=variant, **tower) == count


def test_the_vanilla_rung_is_crate_behind_another_stem(x64, image):
    """CRATE with conv patches, and no bias on the output map, is the ladder's first row."""
    vanilla = models.create("crate_alpha", **SIZES, **LADDER["vanilla"], norm_eps=1e-5)
    crate = models.create("crate", **SIZES, patching="conv", out_map="free")
    p = random_params(vanilla, image)
    want, got = (model.apply({"params": p}, image) for model in (crate, vanilla))
    np.testing.assert_allclose(got, want, rtol=1e-12)
