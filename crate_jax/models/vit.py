"""ViT, pre-norm (Dosovitskiy et al. 2021, arXiv 2010.11929): what white-box models are compared to.

X <- X + MHSA(LN(X))
X <- X + MLP(LN(X))
"""

from collections.abc import Sequence
from functools import partial

from flax import linen as nn
from jax import Array

from crate_jax.layers.attention import MHSA
from crate_jax.layers.mlp import MLP
from crate_jax.layers.patches import ConvPatches
from crate_jax.layers.stack import DropPath, select, shared_fields, stack
from crate_jax.layers.tokens import ClassTokenAndPositions, head_dtype, pool

VARIANTS = {
    "T": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
}


class ViTBlock(nn.Module):
    """One layer; see :class:`ViT` for the fields."""

    heads: int
    head_dim: int
    mlp_ratio: int = 4
    qkv_bias: bool = True
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
        drop = DropPath(self.train, name="drop")

        update_BND, seen = MHSA(
            self.heads, self.head_dim, self.qkv_bias,
            implementation=self.attention_implementation, remat=self.remat == "attention",
            name="attention", **dtypes,
        )(norm(name="norm_attention")(x_BND))  # fmt: skip
        half_BND = x_BND + drop(update_BND, drop_rate)
        update_BND, codes = MLP(self.mlp_ratio * x_BND.shape[-1], name="mlp", **dtypes)(
            norm(name="norm_mlp")(half_BND)
        )
        x_BND = half_BND + drop(update_BND, drop_rate)

        seen |= codes | {"after_attention": half_BND, "tokens": x_BND}
        return x_BND, select(seen, self.capture)


class ViT(nn.Module):
    """The ViT classifier.

    Attributes:
      width, depth, heads: d, L, K.
      head_dim: size of a head; None is d/K.
      num_classes: 0 gives the pooled, normalised features.
      patch: patch side in pixels.
      positions, position_resampling, pool: as in CRATE.
      mlp_ratio: hidden units a channel.
      qkv_bias: biases on queries, keys and values.
      norm_eps: epsilon of every LayerNorm.
      drop_path, attention_implementation, scan_layers, remat, dtype, param_dtype: as in CRATE.
    """

    width: int
    depth: int
    heads: int
    head_dim: int | None = None
    num_classes: int = 1000
    patch: int = 16
    positions: str = "learned"
    position_resampling: str = "torch_bicubic"
    pool: str = "cls"
    mlp_ratio: int = 4
    qkv_bias: bool = True
    norm_eps: float = 1e-6
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
          capture: as in CRATE; ``projections`` are the keys, ``codes`` the MLP's hidden units.

        Returns:
          ``(B, num_classes)``; with ``capture``, also a dict of arrays stacked over layers.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        _, H, W, _ = image_BHWC.shape
        x_BND = ConvPatches(self.width, self.patch, name="patches", **dtypes)(image_BHWC)
        x_BND = ClassTokenAndPositions(
            self.positions, self.position_resampling, cls_init=nn.initializers.normal(1e-6),
            position_init=nn.initializers.normal(0.02), name="embedding", **dtypes,
        )(x_BND, (H // self.patch, W // self.patch))  # fmt: skip
        block = shared_fields(ViTBlock, self) | {
            "head_dim": self.head_dim or self.width // self.heads,
            "train": train,
            "capture": tuple(capture),
        }
        x_BND, captured = stack(
            ViTBlock, block, self.depth, x_BND,
            drop_path=self.drop_path, scan=self.scan_layers, remat=self.remat,
        )  # fmt: skip
        x_BND = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name="norm", **dtypes)(x_BND)
        out = pool(x_BND, self.pool)
        if self.num_classes:
            out = nn.Dense(
                self.num_classes, kernel_init=nn.initializers.normal(0.02), name="head",
                dtype=head_dtype(self.dtype), param_dtype=self.param_dtype,
            )(out)  # fmt: skip
        return (out, captured) if capture else out
