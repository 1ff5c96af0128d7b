"""The transformer's two-layer perceptron, for comparison with sparse coding."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array


class MLP(nn.Module):
    """``W_2 gelu(W_1 x + b_1) + b_2``; the exact gelu unless ``tanh_gelu``."""

    hidden: int
    tanh_gelu: bool = False
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.normal(1e-6)
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BND: Array) -> tuple[Array, dict[str, Array]]:
        """Returns the output, and the hidden activations as ``codes``."""

        def dense(features, name):
            return nn.Dense(
                features, name=name, kernel_init=self.kernel_init, bias_init=self.bias_init,
                dtype=self.dtype, param_dtype=self.param_dtype,
            )  # fmt: skip

        hidden = jax.nn.gelu(dense(self.hidden, "up")(x_BND), approximate=self.tanh_gelu)
        return dense(x_BND.shape[-1], "down")(hidden), {"codes": hidden}
