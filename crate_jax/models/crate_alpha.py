"""CRATE-alpha: CRATE scaled by three changes to its sparse layer (Yang et al. 2024, 2405.20299).

    X <- X + MSSA(LN(X))
    X <- X + ODL(LN(X))

    ODL(y) = D_1 z_2,   z_1 = relu(eta D^T y - eta lambda)
                        z_2 = relu(z_1 - eta D^T (D z_1 - y) - eta lambda)

The dictionary is *overcomplete* (4d atoms), the decoder D_1 is *decoupled* from D, and there is a
*residual* around the layer; each is a switch, and all three off is CRATE's own layer behind the
convolutional stem. Attention has no biases. The released code hard-wires two proximal steps.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.attention import MSSA
from crate_jax.layers.initializers import kaiming_uniform
from crate_jax.layers.ista import ISTA, Decoded, OvercompleteISTA
from crate_jax.layers.patches import ConvPatches
from crate_jax.layers.stack import DropPath, select, shared_fields, stack
from crate_jax.layers.tokens import ClassTokenAndPositions, head_dtype, pool

VARIANTS = {
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 576, "depth": 12, "heads": 12},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "H": {"width": 1280, "depth": 32, "heads": 16},
    "g": {"width": 1408, "depth": 40, "heads": 16},
    "G": {"width": 1664, "depth": 48, "heads": 16},
    "e": {"width": 1792, "depth": 56, "heads": 16},
}

LADDER = {
    "vanilla": {"overcomplete": False, "decoupled": False, "residual": False},
    "overcomplete": {"overcomplete": True, "decoupled": False, "residual": False},
    "decoupled": {"overcomplete": True, "decoupled": True, "residual": False},
    "residual": {"overcomplete": True, "decoupled": True, "residual": True},
}
"""The rows of the ablation, each with what is above it; the last is CRATE-alpha."""

normal_02 = nn.initializers.normal(0.02)


class CRATEAlphaBlock(nn.Module):
    """One layer; see :class:`CRATEAlpha` for the fields."""

    heads: int
    head_dim: int
    overcomplete: bool = True
    decoupled: bool = True
    residual: bool = True
    expansion: int = 4
    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    ista_steps: int = 2
    attention_scale: float | None = None
    layer_scale: float | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-6
    attention_implementation: str = "einsum"
    remat: str = "none"
    train: bool = False
    capture: tuple[str, ...] = ()
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BND: Array, drop_rate: Array | None) -> tuple[Array, dict[str, Array]]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = partial(nn.LayerNorm, self.norm_eps, use_fast_variance=False, **dtypes)

        def regularised(update_BND, name):
            """LayerScale, dropout and stochastic depth of an update."""
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                shape = (update_BND.shape[-1],)
                scale = self.param(f"layer_scale_{name}", init, shape, self.param_dtype)
                update_BND, scale = nn.dtypes.promote_dtype(update_BND, scale, dtype=self.dtype)
                update_BND *= jnp.broadcast_to(scale, update_BND.shape)
            update_BND = nn.Dropout(self.dropout, deterministic=not self.train)(update_BND)
            return DropPath(self.train, name=f"drop_{name}")(update_BND, drop_rate)

        update_BND, seen = MSSA(
            self.heads, self.head_dim, out_map="free", scale=self.attention_scale,
            implementation=self.attention_implementation, remat=self.remat == "attention",
            kernel_init=normal_02, out_init=normal_02, name="attention", **dtypes,
        )(norm(name="norm_attention")(x_BND))  # fmt: skip
        half_BND = x_BND + regularised(update_BND, "attention")

        y_BND = norm(name="norm_ista")(half_BND)
        if self.overcomplete:
            code_BND, codes = OvercompleteISTA(
                self.expansion, self.decoupled, self.eta, self.lmbda, self.prox, self.ista_steps,
                name="ista", **dtypes,
            )(y_BND)  # fmt: skip
        else:
            code_BND, codes = ISTA(self.eta, self.lmbda, self.prox, name="ista", **dtypes)(y_BND)
            if self.decoupled:
                code_BND = Decoded(name="decoder", **dtypes)(code_BND)
        x_BND = half_BND + regularised(code_BND, "ista") if self.residual else code_BND

        seen |= codes | {"after_attention": half_BND, "tokens": x_BND}
        return x_BND, select(seen, self.capture)


class CRATEAlpha(nn.Module):
    """The CRATE-alpha classifier.

    Attributes:
      width, depth, heads: d, L, K.
      head_dim: size of a head; None is d/K.
      num_classes: 0 gives the pooled, normalised features.
      patch: patch side in pixels.
      stem_bias, head_bias: off in the vision-language towers.
      positions: ``learned`` or ``sincos2d``; both cover the class token (zero for sincos).
      position_resampling: how learned positions follow another resolution; ``linear`` here.
      pool: ``cls``, or ``mean`` over all tokens.
      overcomplete, decoupled, residual: the three changes, in the order of the paper's ladder.
      expansion: atoms a channel of the overcomplete dictionary.
      eta, lmbda, prox: as in CRATE.
      ista_steps: proximal steps of the overcomplete layer, from zero codes.
      attention_scale: factor on the Gram matrix; None is ``head_dim**-0.5``.
      layer_scale: initial LayerScale; None is off.
      dropout, drop_path: regularisation; 0 in every released recipe.
      norm_eps: epsilon of every LayerNorm.
      head_norm_eps: epsilon of the last one; None is ``norm_eps``. The released torch code: 1e-5.
      attention_implementation, scan_layers, remat, dtype, param_dtype: as in CRATE.
    """

    width: int
    depth: int
    heads: int
    head_dim: int | None = None
    num_classes: int = 1000
    patch: int = 16
    stem_bias: bool = True
    head_bias: bool = True
    positions: str = "learned"
    position_resampling: str = "linear"
    pool: str = "cls"
    overcomplete: bool = True
    decoupled: bool = True
    residual: bool = True
    expansion: int = 4
    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    ista_steps: int = 2
    attention_scale: float | None = None
    layer_scale: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    head_norm_eps: float | None = None
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
          train: draws dropout and stochastic depth from the ``dropout`` stream.
          capture: any of ``projections`` (L,B,N,K,h), ``attention`` (L,B,K,N,N),
            ``after_attention`` and ``tokens`` (L,B,N,d), ``codes`` (the last codes z_2, L,B,N,4d)
            and ``first_codes`` (z_1, overcomplete only).

        Returns:
          ``(B, num_classes)``; with ``capture``, also a dict of arrays stacked over layers.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        _, H, W, _ = image_BHWC.shape
        x_BND = ConvPatches(
            self.width, self.patch, self.stem_bias, kernel_init=kaiming_uniform, name="patches",
            **dtypes,
        )(image_BHWC)  # fmt: skip
        x_BND = ClassTokenAndPositions(
            self.positions, self.position_resampling, cls_init=nn.initializers.normal(1e-6),
            position_init=normal_02, name="embedding", **dtypes,
        )(x_BND, (H // self.patch, W // self.patch))  # fmt: skip
        x_BND = nn.Dropout(self.dropout, deterministic=not train)(x_BND)
        block = shared_fields(CRATEAlphaBlock, self) | {
            "head_dim": self.head_dim or self.width // self.heads,
            "train": train,
            "capture": tuple(capture),
        }
        x_BND, captured = stack(
            CRATEAlphaBlock, block, self.depth, x_BND,
            drop_path=self.drop_path, scan=self.scan_layers, remat=self.remat,
        )  # fmt: skip
        eps = self.norm_eps if self.head_norm_eps is None else self.head_norm_eps
        x_BND = nn.LayerNorm(eps, use_fast_variance=False, name="norm", **dtypes)(x_BND)
        out = pool(x_BND, self.pool)
        if self.num_classes:
            out = nn.Dense(
                self.num_classes, use_bias=self.head_bias, kernel_init=normal_02, name="head",
                dtype=head_dtype(self.dtype), param_dtype=self.param_dtype,
            )(out)  # fmt: skip
        return (out, captured) if capture else out
