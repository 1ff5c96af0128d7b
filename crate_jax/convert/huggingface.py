"""Language models in Hugging Face's format: ``config.json`` and safetensors.

    module, variables = huggingface.load("Llama-3.1-8B", dtype="bfloat16")
    logits = module.apply(variables, tokens)

:func:`read_architecture` and :class:`Checkpoint` read one layer at a time, for models that do not
fit in memory. Which tensor becomes which parameter is said by a table a family, :func:`leaves`.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from crate_jax.config import ConfigError, nearest
from crate_jax.convert.safetensors_map import TensorFiles, some
from crate_jax.layers.rotary import KINDS, Rope
from crate_jax.models.decoder import Architecture, Decoder

_LLAMA = {"norm": "rms", "mlp": "swiglu"}
FAMILIES = {
    "llama": _LLAMA,
    "olmo": _LLAMA | {"norm": "plain_layer", "rope_in_float32": True},
    "olmo2": _LLAMA
    | {"norm": "rms_cast_last", "norm_at": "output", "qk_norm": True, "rope_in_float32": True},
    "gpt2": {
        "norm": "layer", "mlp": "gelu", "attention_bias": True, "mlp_bias": True, "rope": None,
    },
}  # fmt: skip
"""``model_type`` to what its networks have in common."""

_EPS = {"llama": 1e-6, "olmo": 1e-5, "olmo2": 1e-5, "gpt2": 1e-5}
"""Epsilon where the config has none; OLMo's is a constant of the code."""

_ACTIVATIONS = {"swiglu": ("silu", "swish"), "gelu": ("gelu_new", "gelu_pytorch_tanh")}

_REFUSED = {
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "scale_attn_weights": (True,),
    "partial_rotary_factor": (1, None),
}
"""Settings of a config that change the network, and the values that are implemented."""

_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""Ends of names of tensors that are no parameters: old masks and tables of frequencies."""


class Leaf(NamedTuple):
    """Where a parameter comes from.

    Attributes:
      name: of the tensor, with ``{i}`` for the layer, without the prefix of the model.
      shape: that the tensor must have.
      arrange: from the tensor to the parameter; works on numpy and jax arrays.
    """

    name: str
    shape: tuple[int, ...]
    arrange: Callable[[Any], Any]


def read_config(directory: str | pathlib.Path) -> dict:
    """``config.json`` of a checkpoint directory.

    Raises:
      ConfigError: where there is none, or it is no JSON object.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}; a checkpoint is a directory with config.json and safetensors."
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no settings.")
    return config


def read_architecture(directory: str | pathlib.Path) -> Architecture:
    """The network that ``config.json`` describes.

    Older files have ``rope_theta`` and ``rope_scaling``, newer ones ``rope_parameters``; all are
    read. ``head_dim`` and ``num_key_value_heads`` may be absent.

    Raises:
      ConfigError: on an architecture that is not implemented, or a setting that is missing.
    """
    return parse_architecture(read_config(directory), str(pathlib.Path(directory) / "config.json"))


def parse_architecture(config: Mapping[str, Any], source: str = "config.json") -> Architecture:
    """As :func:`read_architecture`, of the settings themselves; ``source`` names them in errors."""
    family = config.get("model_type")
    if family not in FAMILIES:
        hint = (
            " It is in the format of OLMo's own trainer; take the checkpoint whose name ends in "
            "-hf." if family in ("hf_olmo", "mitchish") else ""
        )  # fmt: skip
        raise ConfigError(
            f"{source}: model_type={family!r} is no architecture that is implemented"
            f"{nearest(str(family), FAMILIES)}{hint}"
        )
    traits = FAMILIES[family]
    for key, allowed in _REFUSED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{source}: {key}={config[key]!r} is not implemented.")

    def get(key, default=None):
        value = config.get(key)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{source} lacks {key}, which a {family} needs.")
        return value

    if family == "gpt2":
        width, depth, heads = get("n_embd"), get("n_layer"), get("n_head")
        sizes = {
            "kv_heads": heads, "hidden": get("n_inner", 4 * width),
            "max_length": get("n_positions", config.get("n_ctx", 1024)),
            "norm_eps": get("layer_norm_epsilon", _EPS[family]),
            "tied": get("tie_word_embeddings", True),
        }  # fmt: skip
        activation, head_dim = get("activation_function", "gelu_new"), width // heads
    else:
        width, depth = get("hidden_size"), get("num_hidden_layers")
        heads = get("num_attention_heads")
        sizes = {
            "kv_heads": get("num_key_value_heads", heads), "hidden": get("intermediate_size"),
            "max_length": get("max_position_embeddings", 2048),
            "norm_eps": _EPS[family] if family == "olmo" else get("rms_norm_eps", _EPS[family]),
            "tied": get("tie_word_embeddings", False),
            "attention_bias": get("attention_bias", False),
            "mlp_bias": family == "llama" and get("mlp_bias", False),
            "clip_qkv": config.get("clip_qkv") if family == "olmo" else None,
            "rope": _rope(config, source),
        }  # fmt: skip
        activation, head_dim = get("hidden_act", "silu"), get("head_dim", width // heads)
    if activation not in _ACTIVATIONS[traits["mlp"]]:
        raise ConfigError(
            f"{source}: the activation {activation!r} is not implemented for {family}"
            f"{nearest(activation, _ACTIVATIONS[traits['mlp']])}"
        )
    if heads % sizes["kv_heads"]:
        raise ConfigError(
            f"{source}: {heads} heads do not divide over {sizes['kv_heads']} key-value heads."
        )
    settings = traits | sizes
    return Architecture(
        family=family, vocab=get("vocab_size"), width=width, depth=depth, heads=heads,
        head_dim=head_dim, **settings,
    )  # fmt: skip


def _rope(config: Mapping[str, Any], source: str) -> Rope:
    newer = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or newer
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in KINDS:
        raise ConfigError(
            f"{source}: RoPE of type {kind!r} is not implemented{nearest(str(kind), KINDS)}"
        )
    if scaling.get("partial_rotary_factor", 1) != 1:
        raise ConfigError(f"{source}: partial_rotary_factor is not implemented.")
    theta = scaling.get("rope_theta") or newer.get("rope_theta") or config.get("rope_theta")
    wanted = {
        "default": {},
        "linear": {"factor": "factor"},
        "llama3": {
            "factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
            "original_length": "original_max_position_embeddings",
        },
    }[kind]  # fmt: skip
    if "max_position_embeddings" in config:
        scaling = {"original_max_position_embeddings": config["max_position_embeddings"]} | scaling
    if missing := [key for key in wanted.values() if key not in scaling]:
        raise ConfigError(f"{source}: RoPE of type {kind!r} lacks {', '.join(missing)}.")
    given = {field: scaling[key] for field, key in wanted.items()}
    return Rope(theta=float(theta or 10_000), kind=kind, **given)


def leaves(arch: Architecture) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """Parameters by path: those of one layer, and the others."""
    return _gpt2(arch) if arch.family == "gpt2" else _llama(arch)


def _as_is(tensor):
    return tensor


def _transpose(tensor):
    return tensor.T


def _llama(a: Architecture) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    maps = {  # path: (name, outputs, inputs, bias); torch's kernels are (outputs, inputs)
        "attention/query": ("self_attn.q_proj", queries, a.width, a.attention_bias),
        "attention/key": ("self_attn.k_proj", keys, a.width, a.attention_bias),
        "attention/value": ("self_attn.v_proj", keys, a.width, a.attention_bias),
        "attention/out": ("self_attn.o_proj", a.width, queries, a.attention_bias),
        "mlp/gate": ("mlp.gate_proj", a.hidden, a.width, a.mlp_bias),
        "mlp/up": ("mlp.up_proj", a.hidden, a.width, a.mlp_bias),
        "mlp/down": ("mlp.down_proj", a.width, a.hidden, a.mlp_bias),
    }
    layer = {}
    for path, (name, outputs, inputs, bias) in maps.items():
        name = f"layers.{{i}}.{name}"
        layer[f"{path}/kernel"] = Leaf(f"{name}.weight", (outputs, inputs), _transpose)
        if bias:
            layer[f"{path}/bias"] = Leaf(f"{name}.bias", (outputs,), _as_is)
    norms = {}
    if a.norm != "plain_layer":
        first = "input_layernorm" if a.norm_at == "input" else "post_attention_layernorm"
        second = (
            "post_attention_layernorm" if a.norm_at == "input" else "post_feedforward_layernorm"
        )
        norms = {"attention_norm": (first, a.width), "mlp_norm": (second, a.width)}
    if a.qk_norm:
        norms["attention/query_norm"] = ("self_attn.q_norm", queries)
        norms["attention/key_norm"] = ("self_attn.k_norm", keys)
    for path, (name, size) in norms.items():
        layer[f"{path}/scale"] = Leaf(f"layers.{{i}}.{name}.weight", (size,), _as_is)
    outer = {"tokens": Leaf("embed_tokens.weight", (a.vocab, a.width), _as_is)}
    if a.norm != "plain_layer":
        outer["head/norm/scale"] = Leaf("norm.weight", (a.width,), _as_is)
    if not a.tied:
        outer["head/table"] = Leaf("lm_head.weight", (a.vocab, a.width), _as_is)
    return layer, outer


def _gpt2(a: Architecture) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    layer = {}

    def third(n):
        return lambda tensor: tensor[..., n * a.width : (n + 1) * a.width]

    joint = {"query": third(0), "key": third(1), "value": third(2)}
    maps = {  # path: (name, inputs, outputs, arrange); Conv1D's kernels are (inputs, outputs)
        f"attention/{path}": ("attn.c_attn", a.width, 3 * a.width, take)
        for path, take in joint.items()
    } | {
        "attention/out": ("attn.c_proj", a.width, a.width, _as_is),
        "mlp/up": ("mlp.c_fc", a.width, a.hidden, _as_is),
        "mlp/down": ("mlp.c_proj", a.hidden, a.width, _as_is),
    }
    for path, (name, inputs, outputs, arrange) in maps.items():
        layer[f"{path}/kernel"] = Leaf(f"h.{{i}}.{name}.weight", (inputs, outputs), arrange)
        layer[f"{path}/bias"] = Leaf(f"h.{{i}}.{name}.bias", (outputs,), arrange)
    for path, name in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        layer[f"{path}/scale"] = Leaf(f"h.{{i}}.{name}.weight", (a.width,), _as_is)
        layer[f"{path}/bias"] = Leaf(f"h.{{i}}.{name}.bias", (a.width,), _as_is)
    outer = {
        "tokens": Leaf("wte.weight", (a.vocab, a.width), _as_is),
        "positions": Leaf("wpe.weight", (a.max_length, a.width), _as_is),
        "head/norm/scale": Leaf("ln_f.weight", (a.width,), _as_is),
        "head/norm/bias": Leaf("ln_f.bias", (a.width,), _as_is),
    }
    if not a.tied:
        outer["head/table"] = Leaf("lm_head.weight", (a.vocab, a.width), _as_is)
    return layer, outer


class Checkpoint:
    """Architecture and tensors of a directory, checked against each other; nothing is read yet.

    Attributes:
      arch: the network.
      files: the tensors.

    Raises:
      ConfigError: on tensors that are missing, of another shape, or of no use to the network.
    """

    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory)
        self.arch = read_architecture(directory)
        self.files = TensorFiles(directory)
        self.layer_leaves, self.outer_leaves = leaves(self.arch)
        prefix = "transformer." if self.arch.family == "gpt2" else "model."
        self._prefix = prefix if any(name.startswith(prefix) for name in self.files) else ""
        self._check()

    def tensor_name(self, leaf: Leaf, layer: int | None = None) -> str:
        """The full name of a leaf's tensor in this checkpoint."""
        name = leaf.name.format(i=layer)
        return name if name.startswith("lm_head") else self._prefix + name

    def read_layer(self, layer: int, dtype) -> dict:
        """A layer's parameters, as ``DecoderBlock`` takes them."""
        return self._read(self.layer_leaves, dtype, layer)

    def read_outer(self, dtype) -> dict:
        """The parameters that belong to no layer: ``tokens``, ``positions`` and ``head``."""
        return self._read(self.outer_leaves, dtype)

    def _read(self, table, dtype, layer=None) -> dict:
        read = functools.cache(self.files.read)  # a joint tensor of three leaves is read once
        arrays = {
            path: np.ascontiguousarray(
                leaf.arrange(read(self.tensor_name(leaf, layer))).astype(dtype, copy=False)
            )
            for path, leaf in table.items()
        }
        return traverse_util.unflatten_dict(arrays, sep="/")

    def _check(self) -> None:
        wanted = {self.tensor_name(leaf): leaf.shape for leaf in self.outer_leaves.values()}
        for l in range(self.arch.depth):
            wanted |= {self.tensor_name(leaf, l): leaf.shape for leaf in self.layer_leaves.values()}
        if missing := [name for name in wanted if name not in self.files]:
            tied = (
                ' If the head is the embedding, write "tie_word_embeddings": true in config.json.'
                if "lm_head.weight" in missing else ""
            )  # fmt: skip
            raise ConfigError(
                f"{self.directory} lacks {some(missing)} of a {self.arch.family} of "
                f"{self.arch.depth} layers.{tied}"
            )
        wrong = [
            f"{name} is {self.files[name].shape}, and config.json asks for {shape}"
            for name, shape in wanted.items()
            if self.files[name].shape != shape
        ]
        if wrong:
            raise ConfigError(f"{self.directory}: {some(wrong, '; ')}.")
        extra = [
            name
            for name in self.files
            if name not in wanted and not name.endswith(_BUFFERS) and name != "lm_head.weight"
        ]
        if extra:
            raise ConfigError(
                f"{self.directory} holds {some(extra)}, for which a {self.arch.family} of "
                f"{self.arch.depth} layers with the settings of config.json has no use; the "
                f"logits would not be those of the checkpoint."
            )


def load(
    directory: str | pathlib.Path, *, dtype: str | None = None, param_dtype: str = "float32"
) -> tuple[Decoder, dict]:
    """A language model and its variables, whole.

    Args:
      directory: with ``config.json`` and safetensors.
      dtype: of the computation; None means that of the parameters.
      param_dtype: to hold the parameters in; ``float64`` needs x64.

    Returns:
      ``(module, {'params': ...})``; ``module.apply(variables, tokens_BT)`` gives the logits.

    Raises:
      ConfigError: see :class:`Checkpoint`.
    """
    checkpoint = Checkpoint(directory)
    params = checkpoint.read_outer(jnp.dtype(param_dtype))
    for l in range(checkpoint.arch.depth):
        params[f"blocks_{l}"] = checkpoint.read_layer(l, jnp.dtype(param_dtype))
    params = jax.tree.map(jnp.asarray, params)
    return Decoder(checkpoint.arch, dtype, param_dtype), {"params": params}
