"""Class token, positions, pooling, and the dtype of the head: what is around a stack of layers."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.positions import resample, sincos2d

POSITIONS = ("learned", "sincos2d")
POOLS = ("cls", "mean")


class ClassTokenAndPositions(nn.Module):
    """Prepends the class token and adds a position to every token, the class token included.

    A learned table is made on a square grid of patches and resampled on the fly for another one.

    Attributes:
      kind: ``learned``, or ``sincos2d`` (fixed; zero for the class token).
      resampling: ``torch_bicubic`` or ``linear``; see ``layers.positions.resample``.
      cls_init, position_init: initialisers.
      dtype: computation dtype; None promotes.
    """

    kind: str = "learned"
    resampling: str = "torch_bicubic"
    cls_init: Callable = nn.initializers.normal(1.0)
    position_init: Callable = nn.initializers.normal(1.0)
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, patches_BND: Array, grid: tuple[int, int]) -> Array:
        """``(B, h w, D)`` patches of a grid ``(h, w)`` to ``(B, 1 + h w, D)``."""
        B, N, D = patches_BND.shape
        cls_11D = self.param("cls_token", self.cls_init, (1, 1, D), self.param_dtype)
        if self.kind == "sincos2d":
            table = jnp.pad(jnp.asarray(sincos2d(grid, D), cls_11D.dtype), ((1, 0), (0, 0)))[None]
        elif self.has_variable("params", "pos_embedding"):
            # Read without self.param, which would insist on the shape of this grid.
            table = self.get_variable("params", "pos_embedding")
            table = resample(table, grid, method=self.resampling)
        elif grid[0] != grid[1]:
            raise ValueError(
                f"a learned position table is made on a square grid; got {grid[0]}x{grid[1]} "
                f"patches. Initialise on a square image, or use positions='sincos2d'."
            )
        else:
            shape = (1, 1 + N, D)
            table = self.param("pos_embedding", self.position_init, shape, self.param_dtype)
        patches_BND, cls_11D, table = nn.dtypes.promote_dtype(
            patches_BND, cls_11D, table, dtype=self.dtype
        )
        cls_B1D = jnp.broadcast_to(cls_11D, (B, 1, D))
        return jnp.concatenate([cls_B1D, patches_BND], axis=1) + table


def pool(z_BND: Array, kind: str) -> Array:
    """The class token, or the mean over all tokens with the class token among them."""
    return z_BND[:, 0] if kind == "cls" else z_BND.mean(axis=1)


def head_dtype(dtype: str | None) -> str | None:
    """The computation dtype of the head, float32 where the layers compute in half precision.

    With the 8 bits of bfloat16 the largest of 1,000 logits are often equal, and the argmax then
    takes the first of them.
    """
    return "float32" if dtype in ("bfloat16", "float16") else dtype
