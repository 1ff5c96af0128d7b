"""Images to patch tokens, in raster order."""

from collections.abc import Callable

from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import torch_uniform


def patchify(image_BHWC: Array, patch: int) -> Array:
    """Non-overlapping patches, ``(B, N, p p C)``: rows of patches, each flattened (p1 p2 c)."""
    B, H, W, C = image_BHWC.shape
    check_divisible(H, W, patch)
    grid = image_BHWC.reshape(B, H // patch, patch, W // patch, patch, C)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, patch * patch * C)


def check_divisible(H: int, W: int, patch: int) -> None:
    """Raises a sentence where the patch does not tile the image."""
    if H % patch or W % patch:
        raise ValueError(
            f"an image of {H}x{W} pixels does not divide into patches of {patch}x{patch}; change "
            f"config.data.image_size or the model's patch."
        )


class LinearPatches(nn.Module):
    """CRATE's embedding: flatten (p1 p2 c), LayerNorm, linear map, LayerNorm."""

    width: int
    patch: int
    norm_eps: float = 1e-5
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        def norm(name):
            return nn.LayerNorm(
                self.norm_eps, use_fast_variance=False, name=name,
                dtype=self.dtype, param_dtype=self.param_dtype,
            )  # fmt: skip

        x = norm("norm_pixels")(patchify(image_BHWC, self.patch))
        x = nn.Dense(
            self.width, kernel_init=torch_uniform(), bias_init=torch_uniform(x.shape[-1]),
            dtype=self.dtype, param_dtype=self.param_dtype, name="embed",
        )(x)  # fmt: skip
        return norm("norm_tokens")(x)


class ConvPatches(nn.Module):
    """A convolution of patch size and stride; kernel ``(p, p, C, d)``."""

    width: int
    patch: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        B, H, W, _ = image_BHWC.shape
        check_divisible(H, W, self.patch)
        size = (self.patch, self.patch)
        x = nn.Conv(
            self.width, size, strides=size, padding="VALID", use_bias=self.use_bias,
            kernel_init=self.kernel_init, bias_init=self.bias_init,
            dtype=self.dtype, param_dtype=self.param_dtype, name="embed",
        )(image_BHWC)  # fmt: skip
        return x.reshape(B, -1, self.width)
