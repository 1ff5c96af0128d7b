"""Back to the official files: the same keys, the same bits."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from crate_jax import convert, models
from crate_jax.config import ConfigError
from crate_jax.convert import files
from crate_jax.layers.stack import stack_layers
from tests.convert import official

SAID = {"heads": 3, "eta": 0.1, "lmbda": 0.1}
BF16 = ml_dtypes.bfloat16
CASES = [
    ("crate", "torch", official.crate_torch()),
    ("crate", "torch", official.crate_torch(heads=3, head_dim=5, channels=1)),
    ("crate", "torch", official.crate_torch(dtype=BF16)),
    ("crate_alpha", "jax", official.alpha_jax()),
    ("crate_alpha", "jax", official.alpha_jax(layer_scale=True, dtype=BF16)),
    ("crate_alpha", "jax", official.alpha_jax(bias=False, expansion=2)),
    ("crate_alpha", "torch", official.alpha_torch(official.alpha_jax(dtype=np.float16))),
]


def _assert_same(got, want):
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("family, layout, state", CASES)
def test_there_and_back(tmp_path, x64, family, layout, state, suffix, scan_layers):
    grey = state.get("to_patch_embedding.1.bias", np.zeros(48)).size == 16
    said = SAID | {"family": family, "scan_layers": scan_layers, "channels": 1 if grey else 3}
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    files.write(first, state)
    module, variables = convert.load(first, **said)
    convert.export(module, variables, second, layout=layout)
    _assert_same(files.read(second), state)
    again, same = convert.load(second, **said)
    assert again == module
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_fresh_weights_there_and_back(tmp_path):
    module = models.create("crate_alpha", width=8, depth=1, heads=2, patch=4, num_classes=5)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    said = {"family": "crate_alpha", "head_norm_eps": None} | SAID | {"heads": 2}
    for layout in ("jax", "torch"):
        path = tmp_path / f"{layout}.safetensors"
        convert.export(module, variables, path, layout=layout)
        again, same = convert.load(path, **said)
        assert again == module
        jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_the_default_layout_of_alpha_is_told_by_the_suffix(tmp_path):
    path = tmp_path / "a.npz"
    files.write(path, official.alpha_jax(dtype=np.float32))
    module, variables = convert.load(path, family="crate_alpha", eta=0.1, lmbda=0.1)
    for name, key in (("b.npz", "cls"), ("b.safetensors", "cls_token")):
        convert.export(module, variables, tmp_path / name)
        assert key in files.read(tmp_path / name)
    with pytest.raises(ConfigError, match="no layout 'tf'. Valid: jax, torch"):
        convert.export(module, variables, tmp_path / "c.npz", layout="tf")


@pytest.mark.parametrize(
    "family, layout, fields",
    [
        ("crate", None, {"patching": "conv"}),
        ("crate", None, {"positions": "sincos2d"}),
        ("crate", None, {"out_map": "tied"}),
        ("crate", None, {"share_dictionary": True}),
        ("crate", None, {"attention": "mhsa"}),
        ("crate", None, {"feedforward": "mlp"}),
        ("crate", None, {"ista_steps": 2}),
        ("crate", None, {"ista_skip": True}),
        ("crate", None, {"residual_from": "ln"}),
        ("crate", None, {"attention_scale": 1.0}),
        ("crate", None, {"prox": "soft"}),
        ("crate_alpha", "jax", {"overcomplete": False}),
        ("crate_alpha", "jax", {"residual": False}),
        ("crate_alpha", "jax", {"stem_bias": False}),
        ("crate_alpha", "torch", {"pool": "mean"}),
        ("crate_alpha", "torch", {"layer_scale": 0.1}),
        ("crate_alpha", "torch", {"head_bias": False}),
        ("crate_alpha", "torch", {"heads": 1}),
    ],
)
def test_what_the_official_code_cannot_express_is_refused(tmp_path, family, layout, fields):
    sizes = {"width": 24, "depth": 1, "heads": 3, "patch": 4, "num_classes": 3}
    module = models.create(family, **sizes | fields)
    [(key, value)] = fields.items()
    with pytest.raises(ConfigError, match=f"cannot express {key}={value!r}"):
        convert.export(module, {"params": {}}, tmp_path / "c.npz", layout=layout)
    assert not list(tmp_path.iterdir())


def test_parameters_of_another_module_are_refused(tmp_path):
    path, out = tmp_path / "c.npz", tmp_path / "d.npz"
    files.write(path, official.crate_torch())
    module, variables = convert.load(path, family="crate", **SAID)
    with pytest.raises(ConfigError, match="blocks_2/ista/D: missing"):
        convert.export(module.clone(depth=3), variables, out)
    with pytest.raises(ConfigError, match="num_classes=4 contradicts .* say 10"):
        convert.export(module.clone(num_classes=4), variables, out)
    odd = {"params": variables["params"] | {"head": {"kernel": np.zeros(3), "bias": np.zeros(3)}}}
    with pytest.raises(ConfigError, match=r"head/kernel: \(3,\), \(width, num_classes\) wanted"):
        convert.export(module, odd, out)
    vit = models.create("vit", width=24, depth=2, heads=3)
    with pytest.raises(ConfigError, match="ViT has no official layout"):
        convert.export(vit, {"params": {}}, out)
    assert not out.exists()


def test_scanned_parameters_are_unstacked(tmp_path):
    state = official.crate_torch(dtype=np.float32)
    files.write(tmp_path / "c.npz", state)
    module, variables = convert.load(tmp_path / "c.npz", family="crate", **SAID)
    stacked = {"params": stack_layers(variables["params"])}
    convert.export(module.clone(scan_layers=True), stacked, tmp_path / "d.npz")
    _assert_same(files.read(tmp_path / "d.npz"), state)
