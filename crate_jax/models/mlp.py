"""The two-layer perceptron of the landscape paper's experiments (ICML 2024): pixels to features.

    z = W_2 relu(LN(W_1 x)) + b_2

The released code calls it by the names of residual networks whose trunk it builds and never uses.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import torch_uniform
from crate_jax.ops.sphere import unit

VARIANTS = {
    "mnist": {"hidden": 2048, "unit_norm": False},
    "cifar": {"hidden": 4096, "unit_norm": True},
}
"""The released ``resnet10mnist`` and ``resnet18``; the inputs are as many as the image has."""


class MLPEncoder(nn.Module):
    """The perceptron.

    Attributes:
      hidden: units between the two maps.
      feature_dim: d.
      unit_norm: features of unit length; the regularised problem wants them free.
      norm_eps: epsilon of the LayerNorm.
      dtype: computation dtype; the features are float32 or better.
      param_dtype: dtype of fresh parameters.
    """

    hidden: int
    feature_dim: int = 128
    unit_norm: bool = False
    norm_eps: float = 1e-5
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image_BHWC: Array, *, train: bool = False, capture: Sequence[str] = ()
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Features of images ``(B, ...)``, flattened; ``capture`` may name ``hidden``."""
        del train
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x_BP = image_BHWC.reshape(image_BHWC.shape[0], -1)
        h = nn.Dense(
            self.hidden, use_bias=False, kernel_init=torch_uniform(), name="hidden", **dtypes
        )(x_BP)
        norm = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name="norm", **dtypes)
        h = jax.nn.relu(norm(h))
        z_BD = nn.Dense(
            self.feature_dim, kernel_init=torch_uniform(), bias_init=torch_uniform(self.hidden),
            name="features", **dtypes,
        )(h)  # fmt: skip
        z_BD = unit(z_BD) if self.unit_norm else z_BD.astype(jnp.promote_types(z_BD.dtype, "f4"))
        seen = {"hidden": h}
        return (z_BD, {name: seen[name] for name in capture}) if capture else z_BD
