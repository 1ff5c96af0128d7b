"""Language models in Hugging Face's format: ``config.json`` and safetensors.

    module, variables = huggingface.load("Llama-3.1-8B", dtype="bfloat16")
    logits = module.apply(variables, tokens)

:func:`read_architecture` and :class:`Checkpoint` read one layer at a time, for models that do not
fit in memory. Which tensor becomes which parameter is said by a table a family, :func:`leaves`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from crate_jax.config import ConfigError, nearest
from crate_jax.convert.huggingface_config import FAMILIES, parse_architecture, read_architecture
from crate_jax.convert.safetensors_map import TensorFiles, some
from crate_jax.models.decoder import Architecture, Decoder

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Leaf",
    "leaves",
    "load",
    "parse_architecture",
    "read_architecture",
]

_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""Ends of names of tensors that are no parameters: old masks and tables of frequencies."""

_HEAD = "lm_head.weight"
_COMPARED = 2**24
"""Numbers that are compared at once."""


DTYPES = ("float32", "bfloat16", "float16", "float64")
"""What :func:`load` holds parameters and computes in."""


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
        outer["head/table"] = Leaf(_HEAD, (a.vocab, a.width), _as_is)
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
        outer["head/table"] = Leaf(_HEAD, (a.vocab, a.width), _as_is)
    return layer, outer


class Checkpoint:
    """Architecture and tensors of a directory, checked against each other; nothing is read yet.

    Attributes:
      arch: the network. Where the config ties the head to the embedding and the files hold a head
        that differs from it, that one is the head, as it is for transformers.
      files: the tensors.

    Raises:
      ConfigError: on tensors that are missing, of another shape, quantised, or of no use to the
        network.
    """

    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory)
        self.arch = read_architecture(directory)
        self.files = TensorFiles(directory)
        prefix = "transformer." if self.arch.family == "gpt2" else "model."
        self._prefix = prefix if any(name.startswith(prefix) for name in self.files) else ""
        self._find_leaves()
        self._check()
        if self.arch.tied and self._has_own_head():
            self.arch = dataclasses.replace(self.arch, tied=False)
            self._find_leaves()

    def tensor_name(self, leaf: Leaf, layer: int | None = None) -> str:
        """The full name of a leaf's tensor in this checkpoint."""
        name = leaf.name.format(i=layer)
        return name if name == _HEAD else self._prefix + name

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

    def _find_leaves(self) -> None:
        self.layer_leaves, self.outer_leaves = leaves(self.arch)

    def _has_own_head(self) -> bool:
        """Whether the files hold a head that is not the embedding, looked at row by row."""
        table = self.tensor_name(self.outer_leaves["tokens"])
        if _HEAD not in self.files or self.files[_HEAD].shape != self.files[table].shape:
            return False
        rows = max(1, _COMPARED // self.arch.width)
        parts = (slice(at, at + rows) for at in range(0, self.arch.vocab, rows))
        return not all(
            np.array_equal(self.files.read(_HEAD, (part,)), self.files.read(table, (part,)))
            for part in parts
        )

    def _check(self) -> None:
        wanted = {self.tensor_name(leaf): leaf.shape for leaf in self.outer_leaves.values()}
        for l in range(self.arch.depth):
            wanted |= {self.tensor_name(leaf, l): leaf.shape for leaf in self.layer_leaves.values()}
        if missing := [name for name in wanted if name not in self.files]:
            tied = (
                ' If the head is the embedding, write "tie_word_embeddings": true in config.json.'
                if _HEAD in missing else ""
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
        for name in wanted:
            self.files.check_dtype(name)
        extra = [
            name
            for name in self.files
            if name not in wanted and not name.endswith(_BUFFERS) and name != _HEAD
        ]
        if extra:
            raise ConfigError(
                f"{self.directory} holds {some(extra)}, for which a {self.arch.family} of "
                f"{self.arch.depth} layers with the settings of config.json has no use; the "
                f"logits would not be those of the checkpoint."
            )


def load(
    directory: str | pathlib.Path, *, dtype: str | None = None, param_dtype: str | None = None
) -> tuple[Decoder, dict]:
    """A language model and its variables, whole.

    Args:
      directory: with ``config.json`` and safetensors.
      dtype: of the computation; None means that of the parameters.
      param_dtype: to hold the parameters in. None is float32, or float64 where the files have it
        and x64 is on.

    Returns:
      ``(module, {'params': ...})``; ``module.apply(variables, tokens_BT)`` gives the logits.

    Raises:
      ConfigError: see :class:`Checkpoint`, and on float64 without x64.
    """
    checkpoint = Checkpoint(directory)
    x64 = jax.config.jax_enable_x64
    if param_dtype is None:
        stored = {info.dtype for info in checkpoint.files.values()}
        param_dtype = "float64" if x64 and "F64" in stored else "float32"
    for name, given in (("dtype", dtype), ("param_dtype", param_dtype)):
        if given not in (None, *DTYPES):
            raise ConfigError(f"{name}={given!r}{nearest(str(given), DTYPES)}")
        if given == "float64" and not x64:
            raise ConfigError(f"{name}='float64' needs jax_enable_x64.")
    params = _to_device(checkpoint.read_outer(jnp.dtype(param_dtype)))
    for l in range(checkpoint.arch.depth):
        params[f"blocks_{l}"] = _to_device(checkpoint.read_layer(l, jnp.dtype(param_dtype)))
    return Decoder(checkpoint.arch, dtype, param_dtype), {"params": params}


def _to_device(params: dict) -> dict:
    return jax.tree.map(jnp.asarray, params)
