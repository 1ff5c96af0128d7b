"""Loaded modules against the official forward passes, and what a wrong file or argument is told."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from crate_jax import convert
from crate_jax.config import ConfigError
from tests.convert import official

CONSTANTS = {"eta": 0.1, "lmbda": 0.1}
CRATE = {"family": "crate", "heads": 3, **CONSTANTS}
ALPHA = {"family": "crate_alpha", **CONSTANTS}

NCHW = official.images()
NHWC = NCHW.transpose(0, 2, 3, 1)


def _save(path, arrays, prefix=""):
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return path


def _logits(module, variables, image=NHWC):
    return np.asarray(jax.jit(module.apply)(variables, image))


def _assert_close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


# CRATE, torch.


def test_crate_in_float64(tmp_path, x64):
    state = official.crate_torch()
    module, variables = convert.load(_save(tmp_path / "c.npz", state), **CRATE)
    assert (module.width, module.depth, module.patch, module.num_classes) == (24, 2, 4, 10)
    assert module.head_dim is None and module.param_dtype == "float64"
    got = _logits(module, variables)
    assert got.dtype == np.float64
    _assert_close(got, official.crate_logits(state, NCHW), 1e-10)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_crate_in_float32(tmp_path, scan_layers):
    state = official.crate_torch(dtype=np.float32)
    path = _save(tmp_path / "c.npz", state, "module.")
    module, variables = convert.load(path, scan_layers=scan_layers, **CRATE)
    assert ("blocks" in variables["params"]) == scan_layers and module.param_dtype == "float32"
    _assert_close(_logits(module, variables), official.crate_logits(state, NCHW), 1e-5)


@pytest.mark.parametrize(
    "sizes, said, pool",
    [
        ({"heads": 1}, {"heads": 1}, "cls"),  # no output map
        ({"heads": 2, "head_dim": 5}, {"heads": 2}, "mean"),
        ({"channels": 1, "grid": 2}, {"channels": 1}, "cls"),
        ({"channels": 4}, {"channels": 4, "pool": "mean"}, "mean"),
    ],
)
def test_other_shapes_of_crate(tmp_path, x64, sizes, said, pool):
    state = official.crate_torch(**sizes)
    path = _save(tmp_path / "c.npz", state)
    module, variables = convert.load(path, **{**CRATE, **said, "pool": pool})
    image = official.images(sizes.get("channels", 3))
    want = official.crate_logits(state, image, heads=module.heads, pool=pool)
    _assert_close(_logits(module, variables, image.transpose(0, 2, 3, 1)), want, 1e-10)


def test_eta_and_lmbda_are_those_said(tmp_path, x64):
    state = official.crate_torch()
    path = _save(tmp_path / "c.npz", state)
    module, variables = convert.load(path, family="crate", heads=3, eta=0.05, lmbda=2.0)
    want = official.crate_logits(state, NCHW, eta=0.05, lmbda=2.0)
    _assert_close(_logits(module, variables), want, 1e-10)


# CRATE-alpha, both codes.


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"bias": False}, {"layer_scale": True}, {"expansion": 2, "heads": 4}, {"classes": 0}],
)
def test_alpha_jax_in_float64(tmp_path, x64, prefix, kind):
    state = official.alpha_jax(**kind)
    if not kind.get("classes", 10):
        state = {name: a for name, a in state.items() if not name.startswith("head/")}
    arrays = {prefix + name: array for name, array in state.items()}
    extra = {"opt/mu": np.zeros(3), "chrono/seconds": np.float64(2.0)}
    module, variables = convert.load(_save(tmp_path / "a.npz", arrays | extra), **ALPHA)
    assert module.heads == kind.get("heads", 3) and module.expansion == kind.get("expansion", 4)
    assert module.stem_bias == module.head_bias == kind.get("bias", True)
    assert module.layer_scale == (1.0 if "layer_scale" in kind else None)
    assert module.head_norm_eps is None
    if module.num_classes:
        want = official.alpha_logits(state, NHWC)
    else:
        want = official.alpha_logits(state | {"head/kernel": np.eye(24)}, NHWC)
    _assert_close(_logits(module, variables), want, 1e-10)


@pytest.mark.parametrize("said, head_eps", [({}, 1e-5), ({"head_norm_eps": 1e-3}, 1e-3)])
def test_alpha_torch_in_float64(tmp_path, x64, said, head_eps):
    state = official.alpha_jax()
    path = _save(tmp_path / "a.npz", official.alpha_torch(state), "module.")
    module, variables = convert.load(path, heads=3, **said, **ALPHA)
    assert module.head_norm_eps == head_eps and module.norm_eps == 1e-6
    want = official.alpha_logits(state, NHWC, head_eps=head_eps)
    _assert_close(_logits(module, variables), want, 1e-10)


@pytest.mark.parametrize("code", ["jax", "torch"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_alpha_in_float32(tmp_path, code, scan_layers):
    state = official.alpha_jax(dtype=np.float32)
    arrays = state if code == "jax" else official.alpha_torch(state)
    path = _save(tmp_path / "a.npz", arrays)
    module, variables = convert.load(path, heads=3, scan_layers=scan_layers, **ALPHA)
    want = official.alpha_logits(state, NHWC, head_eps=1e-6 if code == "jax" else 1e-5)
    _assert_close(_logits(module, variables), want, 1e-5)


def test_sincos_positions_and_rungs_of_the_ladder_have_to_be_said(tmp_path):
    state = official.alpha_jax(dtype=np.float32)
    fixed = {name: a for name, a in state.items() if name != "pos_embedding"}
    path = _save(tmp_path / "a.npz", fixed)
    with pytest.raises(ConfigError, match=r"pos_embedding: missing, \(1, tokens, 24\) wanted"):
        convert.load(path, **ALPHA)
    module, variables = convert.load(path, positions="sincos2d", **ALPHA)
    assert np.isfinite(_logits(module, variables)).all()

    coupled = {name: a for name, a in state.items() if not name.endswith("D1")}
    path = _save(tmp_path / "b.npz", coupled)
    with pytest.raises(ConfigError, match="residual="):
        convert.load(path, **ALPHA)
    module, variables = convert.load(path, residual=False, **ALPHA)
    assert not module.decoupled and not module.residual
    assert _logits(module, variables).shape == (2, 10)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_kept(tmp_path, dtype):
    state = official.alpha_jax(dtype=dtype)
    module, variables = convert.load(_save(tmp_path / "a.npz", state), **ALPHA)
    kernel = variables["params"]["patches"]["embed"]["kernel"]
    assert kernel.dtype == dtype and module.param_dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(kernel, state["embedding/kernel"])
    assert _logits(module, variables, jnp.asarray(NHWC, dtype)).dtype == dtype


# What is refused, and what it is told.


def test_every_missing_argument_is_named_with_the_reason(tmp_path):
    path = _save(tmp_path / "c.npz", official.crate_torch())
    with pytest.raises(ConfigError, match=r"heads= \(.*one matrix.*eta= and lmbda= \(constant"):
        convert.load(path, family="crate")
    path = _save(tmp_path / "a.npz", official.alpha_jax())
    with pytest.raises(ConfigError, match="tell lmbda=") as told:
        convert.load(path, family="crate_alpha", eta=0.1)
    assert "heads" not in str(told.value)
    path = _save(tmp_path / "grey.npz", official.crate_torch(channels=1))
    with pytest.raises(ConfigError, match="channels= .the 16 numbers of a patch"):
        convert.load(path, **CRATE)


@pytest.mark.parametrize(
    "said, sentence",
    [
        ({"widht": 24}, "did you mean 'width'"),
        ({"remat": "some"}, "Valid: attention"),
        ({"num_classes": 7}, "num_classes=7 contradicts .* say 10"),
        ({"heads": 5}, "heads=5 does not divide"),
        ({"patching": "conv"}, r"crate \(torch\) cannot express patching='conv'"),
        ({"family": "vit"}, "no official layout"),
        ({"family": "crate_alpha"}, r"looks like crate \(torch\); load it with family='crate'"),
    ],
)
def test_arguments_that_contradict(tmp_path, said, sentence):
    path = _save(tmp_path / "c.npz", official.crate_torch())
    with pytest.raises(ConfigError, match=sentence):
        convert.load(path, **CRATE | said)


def test_heads_that_contradict_the_kernel(tmp_path):
    path = _save(tmp_path / "a.npz", official.alpha_jax())
    with pytest.raises(ConfigError, match="heads=4 contradicts .* say 3"):
        convert.load(path, heads=4, **ALPHA)


def test_keys_and_shapes_are_listed_leaf_by_leaf(tmp_path):
    state = official.crate_torch(depth=3)
    del state["transformer.layers.1.1.fn.weight"]
    state["transformer.layers.0.0.fn.qkv.weight"] = np.zeros((24, 23))
    state["to_patch_embedding.2.bias"] = np.zeros(24, int)
    state["head.weight"] = np.zeros((5, 24))
    with pytest.raises(ConfigError) as told:
        convert.load(_save(tmp_path / "c.npz", state), **CRATE)
    assert str(told.value).splitlines()[1:-1] == [
        "  to_patch_embedding.2.bias: int64 in the file, floating point wanted",
        "  transformer.layers.0.0.fn.qkv.weight: (24, 23) in the file, (24, 24) wanted",
        "  transformer.layers.1.1.fn.weight: missing, (24, 24) wanted",
        "  head.weight: unexpected, (5, 24) in the file",
    ]


def test_one_bias_alone_is_no_official_model(tmp_path):
    state = official.alpha_jax()
    del state["embedding/bias"]
    with pytest.raises(ConfigError, match="stem_bias=False with head_bias=True"):
        convert.load(_save(tmp_path / "a.npz", state), **ALPHA)
    arrays = official.alpha_torch(official.alpha_jax())
    del arrays["conv1.bias"]
    with pytest.raises(ConfigError, match=r"conv1.bias: missing, \(24,\) wanted"):
        convert.load(_save(tmp_path / "t.npz", arrays), heads=3, **ALPHA)


def test_other_families_are_told_by_their_keys(tmp_path):
    path = _save(tmp_path / "a.npz", official.alpha_torch(official.alpha_jax()))
    with pytest.raises(ConfigError, match=r"looks like crate_alpha \(torch\)"):
        convert.load(path, **CRATE)
    path = _save(tmp_path / "m.npz", {"mask_token": np.zeros(3), "norm.weight": np.zeros(3)})
    with pytest.raises(ConfigError, match="looks like CRATE-MAE"):
        convert.load(path, **CRATE)
    path = _save(tmp_path / "r.npz", {"conv1.w": np.zeros(3), "fc.w": np.zeros(3)})
    with pytest.raises(ConfigError, match="no key of crate's; its first are conv1.w, fc.w"):
        convert.load(path, **CRATE)
