"""Decoder-only language models: Llama (2, 3, 3.1, SmolLM), OLMo, OLMo-2 and GPT-2.

One network, of which an :class:`Architecture` says what the families differ in:

    x_0     = E[tokens]  (+ P[positions], GPT-2)
    x_mid   = x_l + Attention(norm(x_l))          OLMo-2: x_l + norm(Attention(x_l))
    x_{l+1} = x_mid + MLP(norm(x_mid))            OLMo-2: x_mid + norm(MLP(x_mid))
    logits  = W norm(x_L)

Made to be looked into: a block returns what ``capture`` names, and takes :class:`Interventions` as
arrays, so that many of them run under ``vmap``. Each part is a module of its own, and a report can
stream over layers with the weights of one at a time.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.rotary import Rope, rotate, tables
from crate_jax.layers.stack import select
from crate_jax.models.decoder_interventions import Interventions, intervene
from crate_jax.ops.attention_maps import attention_map, causal_mask

NORMS = ("rms", "rms_cast_last", "layer", "plain_layer")
MLPS = ("swiglu", "gelu")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a checkpoint's config says of the network.

    Attributes:
      family: ``llama``, ``olmo``, ``olmo2`` or ``gpt2``: how the weights are named.
      vocab, width, depth: V, C and L.
      heads, kv_heads, head_dim: H query heads of size D; head h reads key and value
        ``h // (H / kv_heads)``.
      hidden: width F of the MLP.
      max_length: tokens that the model was made for.
      norm: ``rms`` (Llama: to the input's dtype, then times the scale), ``rms_cast_last`` (OLMo-2:
        times the scale, then to the dtype), ``layer`` (GPT-2) or ``plain_layer`` (OLMo: without
        parameters). All are computed in float32 or better.
      norm_eps: epsilon of the norms.
      norm_at: ``input`` or ``output`` of the sublayers.
      qk_norm: a norm over all queries of a token together, and over all keys.
      clip_qkv: queries, keys and values are clamped to plus or minus this.
      scale_scores: scores are divided by the square root of D.
      scale_by_layer: those of layer l are divided by ``l + 1`` too (some GPT-2s).
      mlp: ``swiglu``, ``W_down (silu(W_gate x) * W_up x)``, or ``gelu`` with the tanh form.
      attention_bias, mlp_bias: biases of the linear maps.
      rope: rotary positions; None means a learned table.
      rope_in_float32: rotations stay in float32 where the rest is in bfloat16 (OLMo).
      tied: the head is the embedding.
    """

    family: str
    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    max_length: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_at: str = "input"
    qk_norm: bool = False
    clip_qkv: float | None = None
    scale_scores: bool = True
    scale_by_layer: bool = False
    mlp: str = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: Rope | None = Rope()
    rope_in_float32: bool = False
    tied: bool = False


class Norm(nn.Module):
    """RMS or layer norm over the last axis, in float32 or better."""

    kind: str
    eps: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x.astype(_precise(x))
        if self.kind in ("layer", "plain_layer"):
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        if self.kind == "plain_layer":
            return y.astype(x.dtype)
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features, self.param_dtype)
        if self.kind == "rms":
            return _along_last(scale.astype(x.dtype), x) * y.astype(x.dtype)
        y = y * _along_last(scale, x).astype(y.dtype)
        if self.kind == "layer":
            bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
            y = y + _along_last(bias, x).astype(y.dtype)
        return y.astype(x.dtype)


class Attention(nn.Module):
    """Causal softmax attention with grouped keys and values; see :class:`Architecture`."""

    arch: Architecture
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BTC: Array,
        intervention: Interventions | None,
        wanted: Sequence[str],
        layer: int | Array,
    ):
        """Output ``(B, T, C)`` and a dict of what is ``wanted``, see :class:`DecoderBlock`."""
        a = self.arch
        B, T, _ = x_BTC.shape
        dense = {
            "use_bias": a.attention_bias, "dtype": self.dtype, "param_dtype": self.param_dtype,
        }  # fmt: skip

        def project(name, heads):
            y_BTF = nn.Dense(heads * a.head_dim, name=name, **dense)(x_BTC)
            if a.qk_norm and name != "value":
                y_BTF = Norm(a.norm, a.norm_eps, self.param_dtype, name=f"{name}_norm")(y_BTF)
            if a.clip_qkv is not None:
                y_BTF = jnp.clip(y_BTF, -a.clip_qkv, a.clip_qkv)
            return y_BTF.reshape(B, T, heads, a.head_dim)

        q_BTHD = project("query", a.heads)
        k_BTKD, v_BTKD = project("key", a.kv_heads), project("value", a.kv_heads)
        if a.rope is not None:
            cos, sin = tables(a.rope, T, a.head_dim, _precise(x_BTC))
            if not a.rope_in_float32:
                cos, sin = cos.astype(q_BTHD.dtype), sin.astype(q_BTHD.dtype)
            q_BTHD, k_BTKD = (rotate(y, cos, sin).astype(y.dtype) for y in (q_BTHD, k_BTKD))
        group = a.heads // a.kv_heads
        k_BTHD, v_BTHD = (jnp.repeat(y, group, axis=2) for y in (k_BTKD, v_BTKD))

        scores_BHTT = jnp.einsum("bqhd,bkhd->bhqk", q_BTHD, k_BTHD)
        if a.scale_scores:
            scores_BHTT *= a.head_dim**-0.5
        if a.scale_by_layer:
            scores_BHTT /= jnp.asarray(layer + 1, scores_BHTT.dtype)
        scores_BHTT = scores_BHTT.astype(_precise(scores_BHTT))
        A_BHTT = attention_map(scores_BHTT, "softmax", causal_mask(T)[None, None])
        if intervention is not None:
            A_BHTT = intervene(A_BHTT, intervention)
        mixed_BTHD = jnp.einsum("bhqk,bkhd->bqhd", A_BHTT.astype(v_BTHD.dtype), v_BTHD)
        out = nn.Dense(a.width, name="out", **dense)
        y_BTC = out(mixed_BTHD.reshape(B, T, -1))

        seen = {
            "query": q_BTHD, "key": k_BTHD, "value": v_BTHD,
            "scores": scores_BHTT, "attention": A_BHTT,
        }  # fmt: skip
        if "value_norms" in wanted:
            kernel_HDC = out.variables["params"]["kernel"].reshape(a.heads, a.head_dim, a.width)
            seen["value_norms"] = _norms_through(v_BTHD, kernel_HDC)
        return y_BTC, seen


class DecoderBlock(nn.Module):
    """One layer.

    Attributes:
      arch: the network's.
      dtype: of the computation; None means that of parameters and input.
      param_dtype: of the parameters.
    """

    arch: Architecture
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BTC: Array,
        intervention: Interventions | None = None,
        capture: Sequence[str] = (),
        layer: int | Array = 0,
    ) -> tuple[Array, dict[str, Array]]:
        """The layer's output and what ``capture`` names.

        Args:
          x_BTC: the residual stream.
          intervention: this layer's, as of :meth:`Interventions.at`.
          capture: of ``query``, ``key`` (after RoPE), ``value`` (all ``(B, T, H, D)``, keys and
            values repeated over their group), ``scores`` (scaled, before the mask) and
            ``attention`` (``(B, H, T, T)``), ``value_norms`` (``(B, H, T)``: the norm of each
            head's value after its slice of the output map), ``attention_out``, ``mlp_out``,
            ``residual_mid`` and ``residual`` (``(B, T, C)``: after attention, after the layer).
          layer: its number, for ``scale_by_layer``.
        """
        a = self.arch
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def sublayer(name, x, f):
            norm = Norm(a.norm, a.norm_eps, self.param_dtype, name=f"{name}_norm")
            return f(norm(x)) if a.norm_at == "input" else norm(f(x))

        seen = {}

        def attend(x):
            y, more = Attention(a, name="attention", **dtypes)(x, intervention, capture, layer)
            seen.update(more)
            return y

        attention_BTC = sublayer("attention", x_BTC, attend)
        if intervention is not None:
            attention_BTC *= intervention.attention_gain.astype(attention_BTC.dtype)
        mid_BTC = x_BTC + attention_BTC
        mlp_BTC = sublayer("mlp", mid_BTC, MLP(a, name="mlp", **dtypes))
        if intervention is not None:
            mlp_BTC *= intervention.mlp_gain.astype(mlp_BTC.dtype)
        y_BTC = mid_BTC + mlp_BTC
        seen |= {
            "attention_out": attention_BTC, "mlp_out": mlp_BTC,
            "residual_mid": mid_BTC, "residual": y_BTC, "value_norms": seen.get("value_norms"),
        }  # fmt: skip
        return y_BTC, select(seen, capture)


class MLP(nn.Module):
    """The feed-forward sublayer; see :class:`Architecture`."""

    arch: Architecture
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        a = self.arch

        def dense(features, name):
            return nn.Dense(
                features, a.mlp_bias, name=name, dtype=self.dtype, param_dtype=self.param_dtype
            )

        up_BTF = dense(a.hidden, "up")(x_BTC)
        if a.mlp == "swiglu":
            hidden_BTF = nn.silu(dense(a.hidden, "gate")(x_BTC)) * up_BTF
        else:
            hidden_BTF = nn.gelu(up_BTF, approximate=True)
        return dense(a.width, "down")(hidden_BTF)


class Head(nn.Module):
    """The final norm and the logits."""

    arch: Architecture
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTC: Array, table_VC: Array | None = None) -> tuple[Array, Array]:
        """``(B, T, V)`` logits, in float32 or better, and the normed stream ``(B, T, C)``.

        Args:
          x_BTC: the last layer's output.
          table_VC: the embedding, where it is the head too.
        """
        a = self.arch
        x_BTC = Norm(a.norm, a.norm_eps, self.param_dtype, name="norm")(x_BTC)
        if not a.tied:
            init = nn.initializers.normal(0.02)
            table_VC = self.param("table", init, (a.vocab, a.width), self.param_dtype)
        logits_BTV = jnp.einsum(
            "btc,vc->btv", x_BTC, table_VC.astype(x_BTC.dtype),
            preferred_element_type=_precise(x_BTC),
        )  # fmt: skip
        return logits_BTV, x_BTC


class Decoder(nn.Module):
    """The whole network; ``module.apply(variables, tokens_BT)`` gives the logits.

    Attributes:
      arch: sizes and switches.
      dtype: of the computation; None means that of the parameters.
      param_dtype: of the parameters.
    """

    arch: Architecture
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        interventions: Interventions | None = None,
        capture: Sequence[str] = (),
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Logits ``(B, T, V)``.

        Args:
          tokens_BT: ids.
          interventions: None changes nothing.
          capture: names of :class:`DecoderBlock`, which come stacked over layers on a new leading
            axis, and ``embedding`` and ``final``, ``(B, T, C)``: the stream before the first layer,
            and after the final norm.

        Returns:
          the logits; with ``capture``, also a dict.
        """
        a = self.arch
        T = tokens_BT.shape[1]
        if a.rope is None and T > a.max_length:
            raise ValueError(f"texts of {T} tokens, and the model has {a.max_length} positions")
        init = nn.initializers.normal(0.02)
        table_VC = self.param("tokens", init, (a.vocab, a.width), self.param_dtype)
        x_BTC = table_VC[tokens_BT].astype(self.dtype or table_VC.dtype)
        if a.rope is None:
            shape = (a.max_length, a.width)
            positions_NC = self.param("positions", init, shape, self.param_dtype)
            x_BTC += positions_NC[None, :T].astype(x_BTC.dtype)
        single = {"embedding": x_BTC}
        of_layers = [name for name in capture if name not in ("embedding", "final")]
        layers = []
        for l in range(a.depth):
            block = DecoderBlock(a, self.dtype, self.param_dtype, name=f"blocks_{l}")
            here = None if interventions is None else interventions.at(l)
            x_BTC, seen = block(x_BTC, here, of_layers, l)
            layers.append(seen)
        head = Head(a, self.dtype, self.param_dtype, name="head")
        logits_BTV, single["final"] = head(x_BTC, table_VC)
        if not capture:
            return logits_BTV
        captured = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
        return logits_BTV, captured | {name: single[name] for name in capture if name in single}


def next_token_loss(logits_BTV: Array, tokens_BT: Array) -> Array:
    """Mean cross-entropy of the next token in nats, ``(B,)``: one number a text."""
    log_p = jax.nn.log_softmax(logits_BTV[:, :-1], axis=-1)
    picked = jnp.take_along_axis(log_p, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return -jnp.mean(picked, axis=-1)


def count_layer_parameters(arch: Architecture) -> int:
    """Parameters of one layer."""
    block = DecoderBlock(arch)
    shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 2, arch.width)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _precise(x: Array):
    """float32, or float64 where the numbers are."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _along_last(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _norms_through(v_BTHD: Array, kernel_HDC: Array) -> Array:
    """``||v W_O^h||``, ``(B, H, T)``: head by head, for all at once would be ``H`` streams."""
    precise = _precise(v_BTHD)

    def norm(head):
        v_BTD, kernel_DC = head
        return jnp.linalg.norm(jnp.einsum("btd,dc->btc", v_BTD, kernel_DC), axis=-1)

    v_HBTD = jnp.moveaxis(v_BTHD, 2, 0).astype(precise)
    return jnp.moveaxis(jax.lax.map(norm, (v_HBTD, kernel_HDC.astype(precise))), 0, 1)
