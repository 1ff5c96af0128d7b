"""What ``config.json`` of a Hugging Face checkpoint says of the network.

Settings that would change the logits and are not implemented are refused, not passed over.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from crate_jax.config import ConfigError, nearest
from crate_jax.layers.rotary import KINDS, Rope
from crate_jax.models.decoder import Architecture

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
    "add_cross_attention": (False, None),
    "no_rope_layers": (None, []),
    "no_rope_layer_interval": (None,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}
"""Settings of a config that change the network, and the values that are implemented."""


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
    if not isinstance(family, str) or family not in FAMILIES:
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
    _refuse_windows(config, source)
    read = functools.partial(_value, config, source, family)

    if family == "gpt2":
        width, depth, heads = read("n_embd"), read("n_layer"), read("n_head")
        sizes = {
            "kv_heads": heads, "hidden": read("n_inner", default=4 * width),
            "max_length": read("n_positions", default=config.get("n_ctx") or 1024),
            "norm_eps": read("layer_norm_epsilon", float, _EPS[family]),
            "tied": read("tie_word_embeddings", bool, True),
            "scale_scores": read("scale_attn_weights", bool, True),
            "scale_by_layer": read("scale_attn_by_inverse_layer_idx", bool, False),
        }  # fmt: skip
        activation, head_dim = config.get("activation_function") or "gelu_new", None
    else:
        width, depth = read("hidden_size"), read("num_hidden_layers")
        heads = read("num_attention_heads")
        eps = _EPS[family]
        sizes = {
            "kv_heads": read("num_key_value_heads", default=heads),
            "hidden": read("intermediate_size"),
            "max_length": read("max_position_embeddings", default=2048),
            "norm_eps": eps if family == "olmo" else read("rms_norm_eps", float, eps),
            "tied": read("tie_word_embeddings", bool, False),
            "attention_bias": read("attention_bias", bool, False),
            "mlp_bias": family == "llama" and read("mlp_bias", bool, False),
            "rope": _rope(config, source, family),
        }  # fmt: skip
        if family == "olmo" and config.get("clip_qkv") is not None:
            sizes["clip_qkv"] = read("clip_qkv", float)
        activation = config.get("hidden_act") or "silu"
        head_dim = config.get("head_dim") and read("head_dim")
    if activation not in _ACTIVATIONS[traits["mlp"]]:
        raise ConfigError(
            f"{source}: the activation {activation!r} is not implemented for {family}"
            f"{nearest(str(activation), _ACTIVATIONS[traits['mlp']])}"
        )
    if heads % sizes["kv_heads"]:
        raise ConfigError(
            f"{source}: {heads} heads do not divide over {sizes['kv_heads']} key-value heads."
        )
    if head_dim is None and width % heads:
        raise ConfigError(f"{source}: a width of {width} does not divide over {heads} heads.")
    head_dim = head_dim or width // heads
    if family != "gpt2" and head_dim % 2:
        raise ConfigError(f"{source}: RoPE turns pairs, and the heads have the size {head_dim}.")
    settings = traits | sizes
    return Architecture(
        family=family, vocab=read("vocab_size"), width=width, depth=depth, heads=heads,
        head_dim=head_dim, **settings,
    )  # fmt: skip


def _value(config, source, family, key, kind=int, default=None):
    """A setting: a count (``int``), a positive number (``float``) or a switch (``bool``)."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"{source} lacks {key}, which a {family} needs.")
    numbers = {int: (int,), float: (int, float), bool: (bool,)}[kind]
    right = isinstance(value, numbers) and (kind is bool) == isinstance(value, bool)
    if not right or (kind is not bool and not 0 < value < float("inf")):
        what = {int: "a whole number above 0", float: "a number above 0", bool: "true or false"}
        raise ConfigError(f"{source}: {key} must be {what[kind]}; it is {value!r}.")
    return value


def _refuse_windows(config: Mapping[str, Any], source: str) -> None:
    """Raises where queries would see the last keys alone."""
    kinds = config.get("layer_types") or ()
    window = config.get("sliding_window")
    off = window is None or config.get("use_sliding_window") is False
    if not off or any(kind != "full_attention" for kind in kinds):
        raise ConfigError(
            f"{source}: attention over a sliding window is not implemented "
            f"(sliding_window={window!r}, layer_types={sorted(set(kinds))})."
        )


def _rope(config: Mapping[str, Any], source: str, family: str) -> Rope:
    newer, older = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    for key, given in (("rope_parameters", newer), ("rope_scaling", older)):
        if not isinstance(given, Mapping) or any(isinstance(x, Mapping) for x in given.values()):
            raise ConfigError(
                f"{source}: {key} must be one object of numbers for all layers; it is {given!r}."
            )
    kind = older.get("rope_type") or older.get("type")
    kind = kind or newer.get("rope_type") or newer.get("type") or "default"
    if kind not in KINDS:
        raise ConfigError(
            f"{source}: RoPE of type {kind!r} is not implemented{nearest(str(kind), KINDS)}"
        )
    given = {"rope_theta": 10_000.0} | {k: v for k, v in config.items() if k == "rope_theta" and v}
    given |= newer | older
    if given.get("partial_rotary_factor", 1) not in (1, None):
        raise ConfigError(f"{source}: partial_rotary_factor is not implemented.")
    longest = {"original_max_position_embeddings": config.get("max_position_embeddings")}
    # Dynamic scaling begins at the model's own length; that of an earlier training is not read.
    given = given | longest if kind == "dynamic" else longest | given
    scaling = {} if kind == "default" else {"factor": "factor"}
    if kind == "llama3":
        scaling |= {"low": "low_freq_factor", "high": "high_freq_factor"}
    if kind in ("llama3", "dynamic"):
        scaling["original_length"] = "original_max_position_embeddings"
    if missing := [key for key in scaling.values() if given.get(key) is None]:
        raise ConfigError(f"{source}: RoPE of type {kind!r} lacks {', '.join(missing)}.")
    read = functools.partial(_value, given, source, family)
    rope = Rope(
        theta=float(read("rope_theta", float)), kind=kind,
        **{field: read(key, float) for field, key in scaling.items()},
    )  # fmt: skip
    if kind == "llama3" and rope.low >= rope.high:
        raise ConfigError(
            f"{source}: low_freq_factor={rope.low} must be less than high_freq_factor={rope.high}."
        )
    return rope
