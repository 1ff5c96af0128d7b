import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.layers.stack import REMATS, stack_layers
from tests.layers import random_params
from tests.layers.test_attention import np_mhsa, np_mssa
from tests.layers.test_ista import np_ista
from tests.layers.test_patches import np_conv_patches, np_layer_norm, np_linear_patches
from tests.layers.test_tokens import np_tokens

SIZES = {"width": 8, "depth": 2, "heads": 2, "patch": 2, "num_classes": 3}
CAPTURE = ("projections", "attention", "after_attention", "tokens", "codes")
erf = np.vectorize(math.erf)


def np_mlp(x, p):
    """With the exact gelu, ``h Phi(h)``; ``(output, hidden)``."""
    h = x @ p["up"]["kernel"] + p["up"]["bias"]
    h = h * (1 + erf(h / np.sqrt(2))) / 2
    return h @ p["down"]["kernel"] + p["down"]["bias"], h


def np_crate(
    image, p, *, patch=2, depth=2, num_classes=3, patching="linear", pool="cls", norm_eps=1e-5,
    attention="mssa", feedforward="ista", out_map="free+bias", attention_scale=None,
    residual_from="raw", ista_skip=False, eta=0.1, lmbda=0.1, prox="relu", ista_steps=1,
    share_dictionary=False, position_resampling="torch_bicubic", **_,
):  # fmt: skip
    """Logits and captured layers, in numpy, from the paper's equations with each knob spelt out."""
    embed = np_linear_patches if patching == "linear" else np_conv_patches
    z = embed(image, p["patches"], patch, *([norm_eps] if patching == "linear" else []))
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    z = np_tokens(z, p["embedding"], grid, position_resampling)
    seen = {name: [] for name in CAPTURE}
    for l in range(depth):
        q = p[f"blocks_{l}"]
        x = np_layer_norm(z, q["norm_attention"], norm_eps)
        if attention == "mssa":
            mssa = {"scale": attention_scale, "out_map": out_map}
            update, w, A = np_mssa(x, q["attention"], **mssa)
        else:
            update, w, A = np_mhsa(x, q["attention"])
        half = (z if residual_from == "raw" else x) + update
        y = np_layer_norm(half, q["norm_ista"], norm_eps)
        if feedforward == "mlp":
            update, codes = np_mlp(y, q["mlp"])
            z = half + update
        else:
            D = p["D"] if share_dictionary else q["ista"]["D"]
            codes = np_ista(y, D, eta=eta, lmbda=lmbda, prox=prox, steps=ista_steps)
            z = half + codes if ista_skip else codes
        for name, value in zip(CAPTURE, (w, A, half, z, codes), strict=True):
            seen[name].append(value)
    out = z[:, 0] if pool == "cls" else z.mean(axis=1)
    out = np_layer_norm(out, p["norm"], norm_eps)
    if num_classes:
        out = out @ p["head"]["kernel"] + p["head"]["bias"]
    return out, {name: np.stack(layers) for name, layers in seen.items()}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 3))


def forward(model, params, image, **kwargs):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **kwargs))(params, image)


KNOBS = [
    {"depth": 3},
    {"head_dim": 3},
    {"out_map": "free"},
    {"out_map": "tied"},
    {"heads": 1},
    {"heads": 1, "out_map": "free"},
    {"attention_scale": 1.0},
    {"residual_from": "ln"},
    {"ista_skip": True},
    {"eta": 0.4},
    {"lmbda": 0.5},
    {"prox": "soft"},
    {"ista_steps": 3},
    {"share_dictionary": True, "depth": 2},
    {"norm_eps": 0.2},
    {"patching": "conv"},
    {"positions": "sincos2d"},
    {"pool": "mean"},
    {"num_classes": 0},
    {"attention": "mhsa"},
    {"feedforward": "mlp"},
    {"attention": "mhsa", "feedforward": "mlp"},
    {"attention_implementation": "xla"},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_logits_are_the_papers_formulas(x64, image, knobs):
    settings = SIZES | {"depth": 1} | knobs
    model = models.create("crate", **settings)
    p = random_params(model, image)
    got = model.apply({"params": p}, image)
    assert got.dtype == jnp.float64
    want, _ = np_crate(image, p, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "knobs", [{}, {"attention_implementation": "xla", "prox": "soft"}], ids=str
)
def test_float32_stays_within_its_rounding(image, knobs):
    model = models.create("crate", **SIZES | knobs)
    p = random_params(model, image)
    got = forward(model, p, image)
    assert got.dtype == jnp.float32
    want, _ = np_crate(image, p, **SIZES | knobs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("knobs", [{}, {"attention": "mhsa", "feedforward": "mlp"}], ids=str)
def test_captured_layers_are_the_papers_quantities(x64, image, knobs, scan_layers):
    p = random_params(models.create("crate", **SIZES | knobs), image)
    model = models.create("crate", scan_layers=scan_layers, **SIZES | knobs)
    params = stack_layers(p) if scan_layers else p
    out, seen = model.apply({"params": params}, image, capture=CAPTURE)
    want, layers = np_crate(image, p, **knobs)
    np.testing.assert_allclose(out, want, rtol=1e-10, atol=1e-12)
    assert set(seen) == set(CAPTURE)
    for name in CAPTURE:
        np.testing.assert_allclose(seen[name], layers[name], rtol=1e-10, atol=1e-12, err_msg=name)
    L, B, N, K = 2, 2, 5, 2
    assert seen["projections"].shape == (L, B, N, K, 4)
    assert seen["attention"].shape == (L, B, K, N, N)
    np.testing.assert_allclose(seen["attention"].sum(-1), 1, rtol=1e-12)


def test_only_what_is_asked_for_is_captured(image):
    model = models.create("crate", **SIZES)
    params = random_params(model, image)
    _, seen = forward(model, params, image, capture=("tokens",))
    assert list(seen) == ["tokens"]
    with pytest.raises(ValueError, match="capture='token' is none of after_attention, attention"):
        forward(model, params, image, capture=("token",))
    fused = model.clone(attention_implementation="xla")
    with pytest.raises(ValueError, match="attention_implementation='einsum'"):
        forward(fused, params, image, capture=("attention",))


def value_and_grads(model, params, image):
    """Summed squared logits, their gradients, and the tokens of each layer."""

    def loss(params):
        out, seen = model.apply({"params": params}, image, capture=("tokens",))
        return (out**2).sum(), seen["tokens"]

    (value, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, tokens, stack_layers(grads)


@pytest.fixture(scope="module")
def plain(image):
    """Parameters, and what the unrolled model gives, with nothing rematerialised."""
    with jax.enable_x64(True):
        model = models.create("crate", **SIZES, share_dictionary=True)
        params = random_params(model, image)
        return params, value_and_grads(model, params, image)


@pytest.mark.parametrize(
    ("scan_layers", "remat"),
    [(True, remat) for remat in REMATS] + [(False, "full")],
)
def test_scan_and_remat_change_no_value_and_no_gradient(x64, image, plain, scan_layers, remat):
    params, want = plain
    settings = {"share_dictionary": True, "scan_layers": scan_layers, "remat": remat}
    model = models.create("crate", **SIZES, **settings)
    got = value_and_grads(model, stack_layers(params) if scan_layers else params, image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


def test_eager_is_jit(x64, image):
    model = models.create("crate", **SIZES)
    params = random_params(model, image)
    eager = model.apply({"params": params}, image)
    np.testing.assert_allclose(eager, forward(model, params, image), rtol=1e-12)


@pytest.mark.parametrize("position_resampling", ["torch_bicubic", "linear"])
def test_another_resolution_resamples_the_positions(x64, image, position_resampling):
    settings = {**SIZES, "position_resampling": position_resampling}
    model = models.create("crate", **settings)
    p = random_params(model, image)
    larger = np.random.default_rng(1).normal(size=(1, 6, 8, 3))
    want, _ = np_crate(larger, p, **settings)
    np.testing.assert_allclose(forward(model, p, larger), want, rtol=1e-10, atol=1e-12)


def rounded_and_grads(model, params, image):
    """Outputs and gradients in bfloat16 from float32 parameters; both must be finite."""
    params, image = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, image))

    def loss(params):
        out = model.clone(dtype="bfloat16").apply({"params": params}, image)
        return out.astype(jnp.float32).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert out.dtype == jnp.float32
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    return np.asarray(out, np.float32)


def test_bfloat16_computes_on_float32_parameters(image):
    model = models.create("crate", **SIZES)
    params = random_params(model, image)
    got = rounded_and_grads(model, params, image)
    want, _ = np_crate(image, params)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-4 < error < 0.1


MODELS = {
    "crate": {"drop_path": 0.3, "pool": "mean", "share_dictionary": True},
    "crate_alpha": {"drop_path": 0.3, "dropout": 0.3, "layer_scale": 0.5},
    "vit": {"drop_path": 0.3, "positions": "sincos2d"},
}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training_broadcasts_nothing_silently_and_starts_in_float32(name, scan_layers, dtype):
    model = models.create(name, **SIZES, **MODELS[name], scan_layers=scan_layers, dtype=dtype)

    def loss_and_grads(key, image):
        variables = model.init(key, image)

        def loss(variables):
            out = model.apply(variables, image, train=True, rngs={"dropout": key})
            return out.astype(jnp.float32).sum(), out

        return jax.value_and_grad(loss, has_aux=True)(variables), variables

    image = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    with jax.numpy_rank_promotion("raise"):
        ((_, out), grads), variables = jax.eval_shape(loss_and_grads, jax.random.key(0), image)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, grads))} == {jnp.dtype("float32")}


def test_training_draws_from_its_key_only(image):
    model = models.create("crate", **SIZES, drop_path=0.3, scan_layers=True)
    params = random_params(model, image)
    apply = jax.jit(
        lambda key: model.apply({"params": params}, image, train=True, rngs={"dropout": key})
    )
    outs = np.stack([apply(jax.random.key(seed)) for seed in range(8)])
    np.testing.assert_array_equal(apply(jax.random.key(3)), outs[3])
    assert (outs != outs[0]).any()
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        model.apply({"params": params}, image, train=True)


def test_training_without_regularisation_is_evaluation_and_needs_no_key(image):
    model = models.create("crate", **SIZES)
    params = random_params(model, image)
    train, plain = (forward(model, params, image, train=train) for train in (True, False))
    np.testing.assert_allclose(train, plain, rtol=1e-5)


def parameters(name, *, side=224, **settings):
    """Their number, without making any."""
    model = models.create(name, scan_layers=True, **settings)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("variant", "count"),
    [("T", 6_090_856), ("S", 13_116_328), ("B", 22_796_008), ("L", 77_641_192)],
)
def test_published_sizes(variant, count):
    assert parameters("crate", variant=variant) == count


@pytest.mark.parametrize(
    ("width", "heads", "millions"), [(192, 3, 5.74), (384, 6, 14.12), (768, 12, 38.83)]
)
def test_sizes_of_the_segmentation_paper(width, heads, millions):
    sizes = {"width": width, "heads": heads, "depth": 12, "patch": 8, "num_classes": 21_841}
    assert round(parameters("crate", **sizes) / 1e6, 2) == millions


def test_unrolled_layers_have_as_many_parameters_as_scanned(image):
    unrolled = random_params(models.create("crate", **SIZES), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(unrolled))
    d, L, N, p2, C = 8, 2, 4, 4, 3
    formula = 6 * p2 + (3 * p2 + 1) * d + 2 * d + (N + 1) * d + d
    formula += L * (3 * d * d + 5 * d) + 2 * d + (d + 1) * C
    assert count == parameters("crate", side=4, **SIZES) == formula
