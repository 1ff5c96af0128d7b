"""The initialisations that the official models were trained from."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def torch_uniform(fan_in: int | None = None):
    """``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``: torch's default for a linear layer, bias included.

    Args:
      fan_in: inputs of the layer; None reads it off the kernel, ``(inputs, outputs)``.
    """

    def init(key, shape, dtype=jnp.float32):
        bound = (fan_in or shape[0]) ** -0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


kaiming_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
"""``U(-sqrt(6/fan_in), sqrt(6/fan_in))``: what every dictionary D starts from."""
