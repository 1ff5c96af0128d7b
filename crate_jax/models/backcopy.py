"""The small transformer of "Active-Dormant Attention Heads" (arXiv 2410.13835), with all its flags.

    h <- x + W_O Attn(LN x)
    x <- h + W_2 ReLU(W_1 LN h)

over token and position embeddings, then LN and an untied output map; no biases anywhere. Initial
embeddings are N(0, 1), not scaled down; every linear map is ``U(+-1/sqrt(inputs))``.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import Array

from crate_jax.config import ConfigError, nearest
from crate_jax.layers.initializers import torch_uniform
from crate_jax.models.backcopy_interventions import (
    FORCES,
    Interventions,
    intervene,
    scale,
    scale_first,
)
from crate_jax.ops import attention_maps

__all__ = [
    "CAPTURES",
    "FORCES",
    "FROZEN",
    "NORMS",
    "POSITIONS",
    "BackcopyTransformer",
    "Interventions",
    "check",
    "frozen_mask",
    "sincos",
]

NORMS = ("pre", "post", "none", "rms")
POSITIONS = ("learned", "sincos")
CAPTURES = ("scores", "attention", "values", "raw_values", "residual_mid", "mlp_out", "residual")

FROZEN = {
    "embeddings": ("token_embedding", "pos_embedding"),
    "output": ("output",),
    "wq": ("wq",),
    "wk": ("wk",),
    "wv": ("wv",),
    "wo": ("wo",),
    "mlp": ("mlp",),
    "norms": ("norm", "norm_attention", "norm_mlp"),
}
"""What can be frozen, and the parts of a parameter's path that say that it belongs there."""


class CausalAttention(nn.Module):
    """``W_O [A_1 V_1 ... A_H V_H]``; see :class:`BackcopyTransformer` for the fields."""

    heads: int
    kind: str = "softmax"
    no_wv: bool = False
    no_wo: bool = False
    capture: tuple[str, ...] = ()
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BND: Array, trigger_BN: Array | None, change: Interventions | None
    ) -> tuple[Array, dict[str, Array]]:
        B, N, D = x_BND.shape
        H, P = self.heads, D // self.heads
        linear = partial(_linear, D, dtype=self.dtype, param_dtype=self.param_dtype)
        wv = (lambda x: x) if self.no_wv else linear(name="wv")
        wo = (lambda x: x) if self.no_wo else linear(name="wo")

        def by_head(x_BND):
            """``(B H, N, P)``: heads beside sequences, so that products are plain batched ones."""
            return x_BND.reshape(B, N, H, P).swapaxes(1, 2).reshape(B * H, N, P)

        v_BND = wv(x_BND)
        if change is not None:
            v_BND = scale_first(v_BND, jnp.repeat(change.bos_value_gain, P))
        q_GNP, k_GNP, v_GNP = map(
            by_head, (linear(name="wq")(x_BND), linear(name="wk")(x_BND), v_BND)
        )
        s_BHNN = jnp.einsum("gqp,gkp->gqk", q_GNP, k_GNP).reshape(B, H, N, N) * P**-0.5
        wide = jnp.promote_types(s_BHNN.dtype, jnp.float32)
        A_BHNN = attention_maps.attention_map(
            s_BHNN.astype(wide), self.kind, attention_maps.causal_mask(N)
        ).astype(v_BND.dtype)
        if change is not None:
            A_BHNN = intervene(A_BHNN, trigger_BN, change)
        z_GNP = jnp.einsum("gqk,gkp->gqp", A_BHNN.reshape(B * H, N, N), v_GNP)
        z_BND = z_GNP.reshape(B, H, N, P).swapaxes(1, 2).reshape(B, N, D)

        seen = {"scores": s_BHNN, "attention": A_BHNN}
        if "raw_values" in self.capture:
            seen["raw_values"] = v_GNP.reshape(B, H, N, P)
        if "values" in self.capture:  # a head's values alone in its slots of W_O's input
            slots_HD = jnp.repeat(jnp.eye(H, dtype=v_BND.dtype), P, axis=1)
            seen["values"] = wo(v_BND[:, None] * slots_HD[None, :, None])
        return wo(z_BND), seen


class BackcopyBlock(nn.Module):
    """One layer; see :class:`BackcopyTransformer` for the fields."""

    heads: int
    hidden: int
    norm: str = "pre"
    attention: str = "softmax"
    no_attention: bool = False
    no_mlp: bool = False
    linear_mlp: bool = False
    no_attention_norm: bool = False
    no_mlp_norm: bool = False
    no_wv: bool = False
    no_wo: bool = False
    capture: tuple[str, ...] = ()
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BND: Array, trigger_BN: Array | None, change: Interventions | None
    ) -> tuple[Array, dict[str, Array]]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(x_BND, without, name):
            if without or self.norm == "none":
                return x_BND
            return _norm(self.norm, name=name, **dtypes)(x_BND)

        def add(x_BND, branch, without_norm, name):
            if self.norm == "post":
                return norm(x_BND + branch(x_BND), without_norm, name)
            return x_BND + branch(norm(x_BND, without_norm, name))

        seen = {}

        def attention(x_BND):
            update_BND, shown = CausalAttention(
                self.heads, self.attention, self.no_wv, self.no_wo, self.capture, name="attention",
                **dtypes,
            )(x_BND, trigger_BN, change)  # fmt: skip
            seen.update(shown)
            return update_BND if change is None else scale(update_BND, change.attention_gain)

        def mlp(x_BND):
            D = x_BND.shape[-1]
            if self.linear_mlp:
                update_BND = _linear(D, **dtypes, name="mlp")(x_BND)
            else:
                update_BND = ReLUMLP(self.hidden, name="mlp", **dtypes)(x_BND)
            if change is not None:
                update_BND = scale(update_BND, change.mlp_gain)
                update_BND = scale_first(update_BND, change.bos_mlp_gain[None])
            seen["mlp_out"] = update_BND
            return update_BND

        if not self.no_attention:
            x_BND = add(x_BND, attention, self.no_attention_norm, "norm_attention")
        seen["residual_mid"] = x_BND
        if not self.no_mlp:
            x_BND = add(x_BND, mlp, self.no_mlp_norm, "norm_mlp")
        seen["residual"] = x_BND
        return x_BND, {name: seen.get(name) for name in self.capture}


class ReLUMLP(nn.Module):
    """``W_2 ReLU(W_1 x)``."""

    hidden: int
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        linear = partial(_linear, dtype=self.dtype, param_dtype=self.param_dtype)
        hidden_BNF = jax.nn.relu(linear(self.hidden, name="w1")(x_BND))
        return linear(x_BND.shape[-1], name="w2")(hidden_BNF)


class BackcopyTransformer(nn.Module):
    """A causal transformer of 1 to n layers; the defaults are the paper's.

    Attributes:
      vocab: V, the number of token ids, start tokens and delimiter among them.
      width, depth, heads: d, L, H; the size of a head is d/H.
      hidden: hidden units of an MLP; None is 4d.
      length: positions of the table of embeddings, the longest input.
      norm: ``pre``; ``post``, ``LN(x + branch(x))``; ``rms``, pre-norm by RMSNorm; or ``none``.
      final_norm: a norm before the output map; None is True for ``pre`` and ``rms``, False for
        ``post``, which ends in one, and ``none``.
      attention: one of ``ops.attention_maps.KINDS``.
      positions: ``learned``, or ``sincos``, fixed.
      no_attention, no_mlp, linear_mlp: layers without the sublayer, or whose MLP is one d x d map.
      no_attention_norm, no_mlp_norm: layers whose sublayer has no norm.
      tie_output: the output map is the token embedding's transpose.
      no_wv, no_wo: the map is the identity.
      dtype: computation dtype; None promotes. Softmax and logits are float32 at least.
      param_dtype: dtype of the parameters.
    """

    vocab: int
    width: int = 256
    depth: int = 1
    heads: int = 1
    hidden: int | None = None
    length: int = 256
    norm: str = "pre"
    final_norm: bool | None = None
    attention: str = "softmax"
    positions: str = "learned"
    no_attention: tuple[int, ...] = ()
    no_mlp: tuple[int, ...] = ()
    linear_mlp: tuple[int, ...] = ()
    no_attention_norm: tuple[int, ...] = ()
    no_mlp_norm: tuple[int, ...] = ()
    tie_output: bool = False
    no_wv: bool = False
    no_wo: bool = False
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens_BN: Array,
        interventions: Interventions | None = None,
        capture: Sequence[str] = (),
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Logits of the next token.

        Args:
          tokens_BN: ids, N up to ``length``.
          interventions: changes to the pass; None for none.
          capture: names out of :data:`CAPTURES`: ``scores`` before the mask and ``attention``
            ``(L, B, H, N, N)``; ``values`` ``(L, B, H, N, d)`` after the head's slice of W_O, and
            ``raw_values`` ``(L, B, H, N, d/H)`` before it; the residual stream ``(L, B, N, d)``
            after a layer, ``residual``, and between its halves, ``residual_mid``; the MLP's branch
            ``mlp_out``. What a layer does not have is nan, ``mlp_out`` 0.

        Returns:
          ``(B, N, V)``; with ``capture``, also a dict of arrays stacked over layers.
        """
        check(self, tokens_BN.shape[-1])
        for name in capture:
            if name not in CAPTURES:
                raise ValueError(f"capture={name!r} is not one{nearest(name, CAPTURES)}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = nn.Embed(
            self.vocab, self.width, embedding_init=nn.initializers.normal(1.0),
            name="token_embedding", **dtypes,
        )  # fmt: skip
        x_BND = embed(tokens_BN)
        x_BND += self._positions(*tokens_BN.shape[1:], x_BND.dtype)[None]
        trigger_BN = None
        if interventions is not None:
            same_BNK = tokens_BN[..., None] == interventions.triggers[None, None]
            trigger_BN = same_BNK.any(axis=-1)

        captured = []
        for l in range(self.depth):
            x_BND, seen = BackcopyBlock(
                self.heads, self.hidden or 4 * self.width, self.norm, self.attention,
                no_attention=l in self.no_attention, no_mlp=l in self.no_mlp,
                linear_mlp=l in self.linear_mlp, no_attention_norm=l in self.no_attention_norm,
                no_mlp_norm=l in self.no_mlp_norm, no_wv=self.no_wv, no_wo=self.no_wo,
                capture=tuple(capture), name=f"blocks_{l}", **dtypes,
            )(x_BND, trigger_BN, interventions and interventions.layer(l))  # fmt: skip
            captured.append(seen)

        final_norm = self.norm in ("pre", "rms") if self.final_norm is None else self.final_norm
        if final_norm:
            x_BND = _norm(self.norm, name="norm", **dtypes)(x_BND)
        if self.tie_output:
            logits_BNV = embed.attend(x_BND)
        else:
            logits_BNV = _linear(self.vocab, name="output", **dtypes)(x_BND)
        logits_BNV = logits_BNV.astype(jnp.promote_types(logits_BNV.dtype, jnp.float32))
        return (logits_BNV, self._stack(captured, x_BND)) if capture else logits_BNV

    def _positions(self, N: int, dtype) -> Array:
        if self.positions == "sincos":
            return jnp.asarray(sincos(N, self.width), dtype)
        table_ND = self.param(
            "pos_embedding", nn.initializers.normal(1.0), (self.length, self.width),
            jnp.dtype(self.param_dtype),
        )  # fmt: skip
        return table_ND[:N].astype(dtype)

    def _stack(self, captured: list[dict[str, Array | None]], x_BND: Array) -> dict[str, Array]:
        (B, N, D), H = x_BND.shape, self.heads
        shapes = {
            "scores": (B, H, N, N), "attention": (B, H, N, N), "values": (B, H, N, D),
            "raw_values": (B, H, N, D // H), "mlp_out": (B, N, D),
        }  # fmt: skip

        def of_layer(name, seen):
            if seen[name] is not None:
                return seen[name]
            return jnp.full(shapes[name], 0 if name == "mlp_out" else jnp.nan, x_BND.dtype)

        return {name: jnp.stack([of_layer(name, s) for s in captured]) for name in captured[0]}


def check(model: BackcopyTransformer, length: int | None = None) -> None:
    """Raises a ConfigError about the first field, or input length, that makes no sense."""
    named = {"norm": NORMS, "positions": POSITIONS, "attention": attention_maps.KINDS}
    for name, valid in named.items():
        value = getattr(model, name)
        if value not in valid:
            raise ConfigError(f"{name}={value!r} is not one{nearest(str(value), valid)}")
    for name in ("vocab", "width", "depth", "heads", "length"):
        if getattr(model, name) < 1:
            raise ConfigError(f"{name} must be at least 1; got {getattr(model, name)}.")
    if model.width % model.heads:
        raise ConfigError(f"width={model.width} does not divide over heads={model.heads}.")
    if model.positions == "sincos" and model.width % 2:
        raise ConfigError(f"sin-cos positions come in pairs; width={model.width} is odd.")
    for name in ("no_attention", "no_mlp", "linear_mlp", "no_attention_norm", "no_mlp_norm"):
        for l in getattr(model, name):
            if not 0 <= l < model.depth:
                raise ConfigError(
                    f"{name} names layer {l}; depth={model.depth} has layers 0 to "
                    f"{model.depth - 1}."
                )
    both = set(model.no_mlp) & set(model.linear_mlp)
    if both:
        raise ConfigError(f"layer {min(both)} is in no_mlp and in linear_mlp; take it out of one.")
    if length is not None and length > model.length:
        raise ConfigError(f"an input of {length} tokens is longer than length={model.length}.")


def sincos(length: int, width: int) -> np.ndarray:
    """``(N, d)``: sin and cos of ``n 10000^(-2i/d)`` in turn, i from 0 to d/2 - 1."""
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width)


def frozen_mask(params: Mapping, names: Sequence[str]):
    """A tree of booleans like ``params``, True where a parameter is frozen.

    ``optax.masked(optax.set_to_zero(), frozen_mask(params, names))`` as the last link of a chain
    freezes them, decay included.

    Args:
      params: of a :class:`BackcopyTransformer`.
      names: keys of :data:`FROZEN`.

    Raises:
      ConfigError: on an unknown name, or one that the model has no parameters of.
    """
    flat = traverse_util.flatten_dict(params)
    mask = dict.fromkeys(flat, False)
    for name in names:
        if name not in FROZEN:
            raise ConfigError(f"{name!r} cannot be frozen{nearest(name, FROZEN)}")
        held = [path for path in flat if set(path) & set(FROZEN[name])]
        if not held:
            raise ConfigError(f"{name!r} is to be frozen, but this model has no such parameters.")
        mask.update(dict.fromkeys(held, True))
    return traverse_util.unflatten_dict(mask)


def _linear(features: int, *, name: str, dtype: str | None, param_dtype: str) -> nn.Dense:
    return nn.Dense(
        features, use_bias=False, kernel_init=torch_uniform(), name=name,
        dtype=dtype, param_dtype=param_dtype,
    )  # fmt: skip


def _norm(kind: str, *, name: str, dtype: str | None, param_dtype: str) -> nn.Module:
    settings = {"epsilon": 1e-5, "name": name, "dtype": dtype, "param_dtype": param_dtype}
    if kind == "rms":
        return nn.RMSNorm(use_fast_variance=False, **settings)
    return nn.LayerNorm(use_fast_variance=False, **settings)
