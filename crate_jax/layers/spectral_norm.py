"""Layers whose kernel is divided by its largest singular value (Miyato et al. 2018, 1802.05957).

One power iteration a forward pass from the vector u of the last one, which training keeps in the
collection ``spectral``. The singular vectors are constants of the gradient, sigma is not: what
torch-mimicry does. A kernel is the matrix of its outputs against all else.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from crate_jax.layers.initializers import torch_uniform

COLLECTION = "spectral"
SMALLEST_NORM = 1e-12


def _unit(v: Array) -> Array:
    return v / jnp.maximum(jnp.linalg.norm(v), SMALLEST_NORM)


def spectral_norm(kernel: Array, u: Array, iterations: int = 1) -> tuple[Array, Array]:
    """``sigma = u^T W v`` and the new u.

    Args:
      kernel: ``(..., outputs)``.
      u: ``(outputs,)``, left vector of the last call.
      iterations: power iterations, at least 1.
    """
    W = kernel.reshape(-1, kernel.shape[-1])
    fixed = lax.stop_gradient(W)
    for _ in range(iterations):
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
    return v @ W @ u, u


class _Spectral(nn.Module):
    """A kernel, its spectral norm and its bias.

    Attributes:
      features: outputs.
      kernel_init: of the kernel; the bias is PyTorch's.
    """

    features: int
    kernel_init: nn.initializers.Initializer
    dtype: str | None = None
    param_dtype: str = "float32"

    def scaled(self, x: Array, shape: tuple[int, ...], train: bool) -> tuple[Array, Array, Array]:
        """The input, the kernel over its norm and the bias, in one dtype."""
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        fan_in = kernel[..., 0].size
        bias = self.param("bias", torch_uniform(fan_in), (self.features,), self.param_dtype)
        u = self.variable(
            COLLECTION, "u",
            lambda: nn.initializers.normal(1.0)(
                self.make_rng("params"), (self.features,), self.param_dtype
            ),
        )  # fmt: skip
        sigma, new = spectral_norm(kernel, u.value)
        if train and self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            u.value = new
        return nn.dtypes.promote_dtype(x, kernel / sigma, bias, dtype=self.dtype)


class SpectralConv(_Spectral):
    """A convolution of stride 1 that keeps the side of an image; ``kernel`` is (k, k, C, M)."""

    side: int = 3

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        shape = (self.side, self.side, x_BHWC.shape[-1], self.features)
        x, kernel, bias = self.scaled(x_BHWC, shape, train)
        out = lax.conv_general_dilated(
            x, kernel, (1, 1), [(self.side // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return out + bias.reshape(1, 1, 1, -1)


class SpectralDense(_Spectral):
    """A linear map; ``kernel`` is (inputs, outputs)."""

    @nn.compact
    def __call__(self, x_BD: Array, *, train: bool = False) -> Array:
        x, kernel, bias = self.scaled(x_BD, (x_BD.shape[-1], self.features), train)
        return x @ kernel + bias.reshape(1, -1)
