"""Convolutions and linear maps as torch makes them."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


def conv(features: int, kernel: int, *, stride: int = 1, padding: int = 0, **options) -> nn.Conv:
    """A square convolution; without a bias, and torch's default initialisation, unless told."""
    defaults = {"use_bias": False, "kernel_init": torch_conv_uniform}
    return nn.Conv(
        features, (kernel, kernel), strides=stride, padding=padding, **defaults | options
    )


def torch_conv_uniform(key, shape, dtype=jnp.float32):
    """``U(-1/sqrt(fan_in), 1/sqrt(fan_in))`` of a kernel ``(k, k, in, out)``."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
