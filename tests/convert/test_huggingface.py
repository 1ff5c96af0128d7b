import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from crate_jax import convert
from crate_jax.config import ConfigError
from crate_jax.convert import files, huggingface
from crate_jax.convert.safetensors_map import INDEX, SINGLE
from crate_jax.layers.rotary import Rope

GOLDEN = pathlib.Path(__file__).parent / "golden"
FAMILIES = ("gpt2", "llama3", "olmo", "olmo2", "smollm")


def copy(name, folder, *, config=None, tensors=None):
    """A golden checkpoint with changes to its settings and tensors; None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads((GOLDEN / name / "config.json").read_text()) | (config or {})
    settings = {key: value for key, value in settings.items() if value != "drop"}
    (folder / "config.json").write_text(json.dumps(settings))
    arrays = files.read(GOLDEN / name / SINGLE) | (tensors or {})
    files.write(folder / SINGLE, {k: v for k, v in arrays.items() if v is not None})
    return folder


def logits(folder):
    module, variables = huggingface.load(folder)
    return np.asarray(module.apply(variables, np.load(GOLDEN / "gpt2/expected.npz")["tokens"]))


def test_old_and_new_names_of_the_same_settings(tmp_path):
    new = huggingface.read_architecture(GOLDEN / "llama3")
    rope = json.loads((GOLDEN / "llama3/config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    changes = {
        "rope_parameters": "drop", "dtype": "drop", "torch_dtype": "bfloat16",
        "rope_theta": theta, "rope_scaling": rope,
    }  # fmt: skip
    old = huggingface.read_architecture(copy("llama3", tmp_path, config=changes))
    assert old == new
    assert new.rope == Rope(100.0, "llama3", 8.0, 1.0, 4.0, 16)
    assert (new.kv_heads, new.head_dim) == (2, 8)


def test_settings_that_may_be_absent(tmp_path):
    absent = dict.fromkeys(
        ("head_dim", "num_key_value_heads", "rope_parameters", "tie_word_embeddings", "mlp_bias"),
        "drop",
    )
    arch = huggingface.read_architecture(copy("llama2", tmp_path, config=absent))
    assert arch == huggingface.read_architecture(GOLDEN / "llama2")
    assert arch.rope == Rope(10_000.0)
    null = dict.fromkeys(("head_dim", "rope_scaling", "clip_qkv"))
    assert huggingface.read_architecture(copy("llama2", tmp_path / "b", config=null)) == arch


def test_gpt2_as_first_released(tmp_path):
    """No prefix, and the masks of the attention among the tensors."""
    arrays = files.read(GOLDEN / "gpt2" / SINGLE)
    raw = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    raw |= {f"h.{i}.attn.bias": np.ones((1, 1, 32, 32), np.float32) for i in range(2)}
    raw |= {f"h.{i}.attn.masked_bias": np.float32(-1e4).reshape(()) for i in range(2)}
    copy("gpt2", tmp_path, tensors=dict.fromkeys(arrays) | raw)
    np.testing.assert_array_equal(logits(tmp_path), logits(GOLDEN / "gpt2"))


def test_a_tied_head_that_is_stored_all_the_same(tmp_path):
    table = files.read(GOLDEN / "smollm" / SINGLE)["model.embed_tokens.weight"]
    copy("smollm", tmp_path, tensors={"lm_head.weight": table})
    np.testing.assert_array_equal(logits(tmp_path), logits(GOLDEN / "smollm"))


def test_tensors_in_several_files(tmp_path):
    arrays = files.read(GOLDEN / "olmo2" / SINGLE)
    shutil.copy(GOLDEN / "olmo2" / "config.json", tmp_path)
    names = sorted(arrays)
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        files.write(tmp_path / file, {n: arrays[n] for n in names if weight_map[n] == file})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(logits(tmp_path), logits(GOLDEN / "olmo2"))


def test_settings_that_change_nothing(tmp_path):
    idle = {
        "sliding_window": 4096, "use_sliding_window": False, "quantization_config": None,
        "layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0, "no_rope_layers": [],
    }  # fmt: skip
    arch = huggingface.read_architecture(copy("llama2", tmp_path, config=idle))
    assert arch == huggingface.read_architecture(GOLDEN / "llama2")


def test_dynamic_scaling_begins_at_the_length_of_the_config(tmp_path):
    scaling = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    changes = {"rope_parameters": "drop", "rope_theta": 500, "rope_scaling": scaling}
    arch = huggingface.read_architecture(copy("llama2", tmp_path, config=changes))
    assert arch.rope == Rope(500.0, "dynamic", 2.0, original_length=32)


def test_a_stored_head_that_differs_is_the_head(tmp_path):
    """The config says tied; transformers then takes the head that is there."""
    arrays = files.read(GOLDEN / "smollm" / SINGLE)
    head = np.random.default_rng(0).normal(size=(37, 16)).astype(np.float32)
    copy("smollm", tmp_path / "tied", tensors={"lm_head.weight": head})
    untied = {"tie_word_embeddings": False}
    copy("smollm", tmp_path / "own", config=untied, tensors={"lm_head.weight": head})
    assert "lm_head.weight" not in arrays
    np.testing.assert_array_equal(logits(tmp_path / "tied"), logits(tmp_path / "own"))
    assert np.abs(logits(tmp_path / "tied") - logits(GOLDEN / "smollm")).max() > 1


def test_a_quantised_tensor_is_refused_at_once(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    shape = files.read(GOLDEN / "llama2" / SINGLE)[name].shape
    copy("llama2", tmp_path, tensors={name: np.zeros(shape, np.int8)})
    with pytest.raises(ConfigError, match=f"{name} of .* is stored as I8"):
        huggingface.Checkpoint(tmp_path)


@pytest.mark.parametrize("stored, dtype", [(np.float64, "float64"), (np.float32, "float32")])
def test_float64_stays_float64_where_jax_has_it(tmp_path, x64, stored, dtype):
    arrays = files.read(GOLDEN / "gpt2" / SINGLE)
    copy("gpt2", tmp_path, tensors={name: x.astype(stored) for name, x in arrays.items()})
    module, variables = huggingface.load(tmp_path)
    assert module.param_dtype == dtype
    assert {str(x.dtype) for x in jax.tree.leaves(variables)} == {dtype}


def test_float64_that_jax_does_not_have():
    with pytest.raises(ConfigError, match="param_dtype='float64' needs jax_enable_x64"):
        huggingface.load(GOLDEN / "gpt2", param_dtype="float64")
    with pytest.raises(ConfigError, match="dtype='float23'; did you mean 'float32'"):
        huggingface.load(GOLDEN / "gpt2", dtype="float23")


def test_the_front_door():
    """``convert.load`` takes the families of this file too."""
    module, variables = convert.load(GOLDEN / "olmo2", family="olmo2", dtype="bfloat16")
    assert module.arch == huggingface.read_architecture(GOLDEN / "olmo2")
    assert module.dtype == "bfloat16" and variables["params"]["tokens"].shape == (37, 16)
    with pytest.raises(ConfigError, match="holds a model of family 'olmo2', not 'llama'"):
        convert.load(GOLDEN / "olmo2", family="llama")
    with pytest.raises(ConfigError, match="a llama has no setting 'heads'"):
        convert.load(GOLDEN / "llama2", family="llama", heads=4)
    with pytest.raises(ConfigError, match="family='lama' has no .*did you mean 'llama'"):
        convert.load(GOLDEN / "llama2", family="lama")


def test_kernels_are_turned_and_conv1d_is_not():
    for name, key, path in (
        ("llama3", "model.layers.1.mlp.down_proj.weight", ("mlp", "down")),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight", ("mlp", "down")),
    ):
        raw = files.read(GOLDEN / name / SINGLE)[key].astype(np.float32)
        layer = huggingface.Checkpoint(GOLDEN / name).read_layer(1, np.float32)
        kernel = layer[path[0]][path[1]]["kernel"]
        np.testing.assert_array_equal(kernel, raw if name == "gpt2" else raw.T)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tensor_that_is_missing(tmp_path, name):
    lost = sorted(files.read(GOLDEN / name / SINGLE))[3]
    copy(name, tmp_path, tensors={lost: None})
    with pytest.raises(ConfigError, match=f"lacks {lost} of a .* of 2 layers"):
        huggingface.load(tmp_path)


def test_a_head_that_is_missing_where_none_is_tied(tmp_path):
    copy("llama2", tmp_path, tensors={"lm_head.weight": None})
    with pytest.raises(ConfigError, match='lacks lm_head.weight.*"tie_word_embeddings": true'):
        huggingface.load(tmp_path)


def test_shapes_that_are_wrong(tmp_path):
    copy("llama3", tmp_path, tensors={"model.norm.weight": np.ones(17, np.float32)})
    with pytest.raises(
        ConfigError, match=r"model.norm.weight is \(17,\), and config.json asks for \(16,\)"
    ):
        huggingface.load(tmp_path)
    copy("llama3", tmp_path / "b", config={"num_key_value_heads": 4})
    with pytest.raises(ConfigError, match=r"k_proj.weight is \(16, 16\), .* for \(32, 16\)"):
        huggingface.load(tmp_path / "b")


def test_tensors_of_no_use(tmp_path):
    """Ignored biases would give wrong logits without a word."""
    bias = {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)}
    copy("llama2", tmp_path, tensors=bias)
    with pytest.raises(ConfigError, match="holds model.layers.0.self_attn.q_proj.bias, for which"):
        huggingface.load(tmp_path)
    copy("llama2", tmp_path / "b", config={"num_hidden_layers": 1})
    with pytest.raises(ConfigError, match="holds model.layers.1.*and 6 more, for which"):
        huggingface.load(tmp_path / "b")


@pytest.mark.parametrize(
    "name, changes, sentence",
    [
        ("llama2", {"model_type": "lama"}, "model_type='lama'.*did you mean 'llama'"),
        ("llama2", {"model_type": "mistral"}, "model_type='mistral' is no architecture"),
        ("olmo", {"model_type": "hf_olmo"}, "whose name ends in -hf"),
        ("llama2", {"model_type": "drop"}, "model_type=None is no architecture"),
        ("llama2", {"hidden_size": "drop"}, "lacks hidden_size, which a llama needs"),
        ("gpt2", {"n_layer": None}, "lacks n_layer, which a gpt2 needs"),
        ("llama2", {"hidden_act": "gelu"}, "the activation 'gelu' is not implemented for llama"),
        (
            "llama3",
            {"rope_parameters": {"rope_type": "yarn"}},
            "RoPE of type 'yarn' is not implemented.*Valid: default, dynamic, linear, llama3",
        ),
        (
            "llama3",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "RoPE of type 'llama3' lacks low_freq_factor, high_freq_factor",
        ),
        ("llama3", {"num_key_value_heads": 3}, "4 heads do not divide over 3"),
        ("llama3", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not implemented"),
        ("llama2", {"hidden_size": "16"}, "hidden_size must be a whole number above 0; it is '16'"),
        ("llama2", {"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ("llama2", {"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
        ("llama2", {"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number"),
        ("llama2", {"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number above 0"),
        ("llama2", {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ("llama2", {"model_type": ["llama"]}, "is no architecture that is implemented"),
        ("olmo", {"clip_qkv": -8}, "clip_qkv must be a number above 0; it is -8"),
        ("gpt2", {"n_head": 5}, "a width of 16 does not divide over 5 heads"),
        ("llama2", {"head_dim": 3}, "RoPE turns pairs, and the heads have the size 3"),
        ("llama2", {"rope_scaling": "linear"}, "rope_scaling must be one object of numbers"),
        (
            "llama2",
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "rope_parameters must be one object of numbers for all layers",
        ),
        ("llama2", {"rope_parameters": {"rope_theta": "a"}}, "rope_theta must be a number above 0"),
        (
            "llama2",
            {"rope_scaling": {"type": "linear", "factor": "x"}},
            "factor must be a number above 0; it is 'x'",
        ),
        (
            "llama3",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },  # fmt: skip
            "low_freq_factor=4.0 must be less than high_freq_factor=4.0",
        ),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not implemented"),
        ("llama2", {"sliding_window": 4096}, "a sliding window is not implemented"),
        ("llama2", {"layer_types": ["sliding_attention"] * 2}, "a sliding window is not"),
        ("llama2", {"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\] is not implemented"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config=.* is not"),
    ],
)
def test_settings_that_cannot_be_read(tmp_path, name, changes, sentence):
    copy(name, tmp_path, config=changes)
    with pytest.raises(ConfigError, match=sentence):
        huggingface.read_architecture(tmp_path)


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="there is no .*config.json; a checkpoint is a directory"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no settings"):
        huggingface.load(tmp_path)
