"""CRATE: a transformer whose layers compress and sparsify (Yu et al. 2023, arXiv 2306.01129).

Each layer takes one step on the sparse rate reduction ``max R(Z) - R^c(Z | U) - lambda ||Z||_1``:
MSSA is a gradient step on the coding rate against the subspaces U, ISTA a proximal step on the
sparse code in the dictionary D.

    Z^{l+1/2} = Z^l + MSSA(LN(Z^l))
    Z^{l+1}   = relu(Y + eta D^T (Y - D Y) - eta lambda),   Y = LN(Z^{l+1/2})

This is the released code. It departs from the paper in an output map that is free and not U, in
softmax(G / sqrt(p)) for softmax(G), in the LayerNorms, and in coefficients 1 where the derivation
has 1 - kappa alpha and kappa alpha. The fields below switch the first two back.
"""

from collections.abc import Sequence
from functools import partial

from flax import linen as nn
from jax import Array

from crate_jax.layers.attention import MHSA, MSSA
from crate_jax.layers.initializers import kaiming_uniform, torch_uniform
from crate_jax.layers.ista import ISTA
from crate_jax.layers.mlp import MLP
from crate_jax.layers.patches import ConvPatches, LinearPatches
from crate_jax.layers.stack import DropPath, select, shared_fields, stack
from crate_jax.layers.tokens import ClassTokenAndPositions, head_dtype, pool

VARIANTS = {
    "T": {"width": 384, "depth": 12, "heads": 6},
    "S": {"width": 576, "depth": 12, "heads": 12},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
}


class CRATEBlock(nn.Module):
    """One layer; see :class:`CRATE` for the fields."""

    heads: int
    head_dim: int
    attention: str = "mssa"
    feedforward: str = "ista"
    out_map: str = "free+bias"
    attention_scale: float | None = None
    residual_from: str = "raw"
    ista_skip: bool = False
    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    ista_steps: int = 1
    norm_eps: float = 1e-5
    attention_implementation: str = "einsum"
    remat: str = "none"
    train: bool = False
    capture: tuple[str, ...] = ()
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, z_BND: Array, drop_rate: Array | None, D: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """``(Z^{l+1}, captured)``; ``drop_rate`` is of stochastic depth, ``D`` a shared one."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = partial(nn.LayerNorm, self.norm_eps, use_fast_variance=False, **dtypes)
        drop = DropPath(self.train, name="drop")
        sizes = {"heads": self.heads, "head_dim": self.head_dim, "name": "attention", **dtypes}
        sizes |= {
            "implementation": self.attention_implementation,
            "remat": self.remat == "attention",
        }
        if self.attention == "mssa":
            attention = MSSA(out_map=self.out_map, scale=self.attention_scale, **sizes)
        else:
            attention = MHSA(qkv_bias=False, **sizes)

        x_BND = norm(name="norm_attention")(z_BND)
        update_BND, seen = attention(x_BND)
        half_BND = (z_BND if self.residual_from == "raw" else x_BND) + drop(update_BND, drop_rate)

        y_BND = norm(name="norm_ista")(half_BND)
        if self.feedforward == "ista":
            a_BND, codes = ISTA(
                self.eta, self.lmbda, self.prox, self.ista_steps, name="ista", **dtypes
            )(y_BND, D)
            z_BND = half_BND + drop(a_BND, drop_rate) if self.ista_skip else a_BND
        else:
            update_BND, codes = MLP(4 * z_BND.shape[-1], name="mlp", **dtypes)(y_BND)
            z_BND = half_BND + drop(update_BND, drop_rate)

        seen |= codes | {"after_attention": half_BND, "tokens": z_BND}
        return z_BND, select(seen, self.capture)


class CRATE(nn.Module):
    """The CRATE classifier.

    Attributes:
      width, depth, heads: d, layers L, subspaces K.
      head_dim: p, the dimension of a subspace; None is d/K.
      num_classes: 0 gives the pooled, normalised features.
      patch: patch side in pixels.
      patching: ``linear`` (LayerNorm, linear map, LayerNorm) or ``conv``.
      positions: ``learned`` or ``sincos2d``.
      position_resampling: how learned positions follow another resolution.
      pool: ``cls``, or ``mean`` over all tokens.
      attention: ``mssa``, or ``mhsa`` (the CRATE-MHSA ablation).
      feedforward: ``ista``, or ``mlp`` with its residual (the CRATE-MLP ablation).
      out_map: ``free+bias`` (released code), ``free``, ``tied`` (theory).
      attention_scale: factor on the Gram matrix; None is p**-0.5. The theory's is 1.
      residual_from: ``raw`` (code), or ``ln`` as the journal's figures draw it.
      ista_skip: a residual around ISTA; the code has none.
      eta, lmbda: ISTA's step and sparsity. Constants, in no checkpoint.
      prox: ``relu`` (code), or ``soft`` as the journal's figure 7 has it.
      ista_steps: proximal steps a layer.
      share_dictionary: one D for all layers.
      norm_eps: epsilon of every LayerNorm.
      drop_path: stochastic depth of the last layer.
      attention_implementation: see ``ops.attention.attend``.
      scan_layers: compile one layer and loop.
      remat: what the backward pass recomputes, one of ``layers.stack.REMATS``.
      dtype: computation dtype, the head's as ``layers.tokens.head_dtype`` has it; None promotes
        inputs and parameters.
      param_dtype: dtype of fresh parameters.
    """

    width: int
    depth: int
    heads: int
    head_dim: int | None = None
    num_classes: int = 1000
    patch: int = 16
    patching: str = "linear"
    positions: str = "learned"
    position_resampling: str = "torch_bicubic"
    pool: str = "cls"
    attention: str = "mssa"
    feedforward: str = "ista"
    out_map: str = "free+bias"
    attention_scale: float | None = None
    residual_from: str = "raw"
    ista_skip: bool = False
    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    ista_steps: int = 1
    share_dictionary: bool = False
    norm_eps: float = 1e-5
    drop_path: float = 0.0
    attention_implementation: str = "einsum"
    scan_layers: bool = False
    remat: str = "none"
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image_BHWC: Array, *, train: bool = False, capture: Sequence[str] = ()
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Logits of images.

        Args:
          image_BHWC: ``(B, H, W, C)``, H and W multiples of ``patch``.
          train: draws stochastic depth from the ``dropout`` stream.
          capture: any of ``projections`` (L,B,N,K,p: U_k^T LN(z)), ``attention`` (L,B,K,N,N),
            ``after_attention``, ``tokens`` and ``codes`` (L,B,N,d).

        Returns:
          ``(B, num_classes)``; with ``capture``, also a dict of arrays stacked over layers.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        _, H, W, C = image_BHWC.shape
        if self.patching == "linear":
            embed = LinearPatches(self.width, self.patch, self.norm_eps, name="patches", **dtypes)
        else:
            embed = ConvPatches(
                self.width, self.patch, kernel_init=torch_uniform(C * self.patch**2),
                bias_init=torch_uniform(C * self.patch**2), name="patches", **dtypes,
            )  # fmt: skip
        z_BND = embed(image_BHWC)
        z_BND = ClassTokenAndPositions(
            self.positions, self.position_resampling, name="embedding", **dtypes
        )(z_BND, (H // self.patch, W // self.patch))

        D = None
        if self.share_dictionary and self.feedforward == "ista":
            shape = (self.width, self.width)
            D = self.param("D", kaiming_uniform, shape, self.param_dtype)
        block = shared_fields(CRATEBlock, self) | {
            "head_dim": self.head_dim or self.width // self.heads,
            "train": train,
            "capture": tuple(capture),
        }
        z_BND, captured = stack(
            CRATEBlock, block, self.depth, z_BND, D,
            drop_path=self.drop_path, scan=self.scan_layers, remat=self.remat,
        )  # fmt: skip

        features_BD = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name="norm", **dtypes)(
            pool(z_BND, self.pool)
        )
        out = features_BD
        if self.num_classes:
            out = nn.Dense(
                self.num_classes, kernel_init=torch_uniform(), bias_init=torch_uniform(self.width),
                name="head", dtype=head_dtype(self.dtype), param_dtype=self.param_dtype,
            )(features_BD)  # fmt: skip
        return (out, captured) if capture else out
