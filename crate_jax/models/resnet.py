"""The residual networks of MCR^2 (Yu et al. 2020, arXiv 2006.08558): images to unit features.

    x <- relu(bn(conv3(x)))                                              stem, stride 1
    x <- relu(bn2(conv3(relu(bn1(conv3(x))))) + shortcut(x))             four stages
    z = W_2 relu(bn(W_1 mean(x))) + b_2,    z / ||z||                     with a head

The shortcut is the identity, or a 1x1 convolution with batch normalisation where the shape changes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.batch_norm import BatchNorm
from crate_jax.layers.convolution import conv
from crate_jax.layers.initializers import torch_uniform
from crate_jax.ops.sphere import unit

VARIANTS = {
    "18": {"depths": (2, 2, 2, 2)},
    "34": {"depths": (3, 4, 6, 3)},
    "18ctrl": {"depths": (2, 2, 2, 2), "head": False},
    "10mnist": {"depths": (1, 1, 1, 1), "head": False},
}
"""``18`` and ``34`` supervised, ``18ctrl`` self-supervised, ``10mnist`` for MNIST."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, the first with the stride."""

    width: int
    stride: int = 1
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(name, x):
            return BatchNorm(name=name, **dtypes)(x, train=train)

        y = conv(self.width, 3, stride=self.stride, padding=1, name="conv1", **dtypes)(x_BHWC)
        y = jax.nn.relu(norm("norm1", y))
        y = norm("norm2", conv(self.width, 3, padding=1, name="conv2", **dtypes)(y))
        if self.stride != 1 or x_BHWC.shape[-1] != self.width:
            x_BHWC = conv(self.width, 1, stride=self.stride, name="shortcut", **dtypes)(x_BHWC)
            x_BHWC = norm("norm_shortcut", x_BHWC)
        return jax.nn.relu(y + x_BHWC)


class ResNet(nn.Module):
    """The residual network.

    The released code pools 4x4 cells, all there is of its 32x32 images; here the mean is over
    whatever is left. Stages are ``width`` times 1, 2, 4 and 8 wide, the last one ``feature_dim``
    where there is no head.

    Attributes:
      depths: blocks of each of the four stages.
      feature_dim: d.
      width: channels of the stem and the first stage.
      head: two linear maps behind the pooling, as wide as the last stage; else the pooled channels
        are the features.
      unit_norm: features of unit length.
      dtype: computation dtype; the features are float32 or better.
      param_dtype: dtype of fresh parameters.
    """

    depths: tuple[int, ...]
    feature_dim: int = 128
    width: int = 64
    head: bool = True
    unit_norm: bool = True
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image_BHWC: Array, *, train: bool = False, capture: Sequence[str] = ()
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Features of images.

        Args:
          image_BHWC: images.
          train: normalise by the batch and move the running statistics.
          capture: ``pooled`` keeps what the head sees, ``(B, C)``.

        Returns:
          ``(B, feature_dim)``; with ``capture``, also a dict of arrays.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = conv(self.width, 3, padding=1, name="stem", **dtypes)(image_BHWC)
        x = jax.nn.relu(BatchNorm(name="norm_stem", **dtypes)(x, train=train))
        last = 8 * self.width if self.head else self.feature_dim
        stages = zip(self.depths, (self.width, 2 * self.width, 4 * self.width, last), strict=True)
        for s, (depth, width) in enumerate(stages, start=1):
            for b in range(depth):
                stride = 2 if s > 1 and b == 0 else 1
                x = ResidualBlock(width, stride, name=f"stage{s}_{b}", **dtypes)(x, train=train)
        seen = {"pooled": jnp.mean(x, axis=(1, 2))}
        z_BD = seen["pooled"]
        if self.head:
            hidden = nn.Dense(
                last, use_bias=False, kernel_init=torch_uniform(), name="hidden", **dtypes
            )(z_BD)
            hidden = jax.nn.relu(BatchNorm(name="norm_hidden", **dtypes)(hidden, train=train))
            z_BD = nn.Dense(
                self.feature_dim, kernel_init=torch_uniform(), bias_init=torch_uniform(last),
                name="features", **dtypes,
            )(hidden)  # fmt: skip
        z_BD = unit(z_BD) if self.unit_norm else z_BD.astype(jnp.promote_types(z_BD.dtype, "f4"))
        return (z_BD, {name: seen[name] for name in capture}) if capture else z_BD
