"""The residual nets of CTRL on STL-10 (48 x 48) and CelebA, LSUN and ImageNet (128 x 128).

Spectrally normalised GAN's (1802.05957) as torch-mimicry 0.1.16 has them, with the discriminator's
last map to nz numbers on the unit sphere instead of one logit (github.com/Delay-Xili/LDR). Spectral
norm is the encoder's alone, BatchNorm the decoder's.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.batch_norm import BatchNorm
from crate_jax.layers.convolution import conv
from crate_jax.layers.initializers import torch_uniform
from crate_jax.layers.spectral_norm import SpectralConv, SpectralDense
from crate_jax.ops.sphere import unit

VARIANTS = {
    "48": {
        "image_size": 48, "down": (64, 128, 256, 512), "flat": 1024,
        "bottom": 512, "up": (256, 128, 64),
    },
    "128": {
        "image_size": 128, "down": (64, 128, 256, 512, 1024), "flat": 1024,
        "bottom": 1024, "up": (1024, 512, 256, 128, 64),
    },
}  # fmt: skip
"""Channels by the side of the image in pixels."""


def _xavier(gain: float):
    """``U(-a, a)`` with ``a = gain sqrt(6 / (fan_in + fan_out))``."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


_ROOT = math.sqrt(2.0)


def _halve(x_BHWC: Array) -> Array:
    return nn.avg_pool(x_BHWC, (2, 2), (2, 2))


def _double(x_BHWC: Array) -> Array:
    """Bilinear interpolation to twice the side, corners not aligned."""
    B, H, W, C = x_BHWC.shape
    return jax.image.resize(x_BHWC, (B, 2 * H, 2 * W, C), "bilinear")


class Down(nn.Module):
    """Residual block of the encoder.

    Attributes:
      channels: of the output. The hidden ones are the input's, or in the first block the output's.
      first: the block on the image: no ReLU before, and the shortcut halves before its map.
      halve: whether the side is halved.
    """

    channels: int
    first: bool = False
    halve: bool = True
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        def spectral(features, side, gain, name):
            return SpectralConv(
                features, _xavier(gain), self.dtype, self.param_dtype, side=side, name=name
            )

        inputs = x_BHWC.shape[-1]
        hidden = self.channels if self.first else inputs
        h = x_BHWC if self.first else nn.relu(x_BHWC)
        h = spectral(hidden, 3, _ROOT, "conv1")(h, train=train)
        h = spectral(self.channels, 3, _ROOT, "conv2")(nn.relu(h), train=train)
        h = _halve(h) if self.halve else h
        if not self.halve and inputs == self.channels:
            return h + x_BHWC
        shortcut = spectral(self.channels, 1, 1.0, "shortcut")
        if self.first:
            return h + shortcut(_halve(x_BHWC), train=train)
        x_BHWC = shortcut(x_BHWC, train=train)
        return h + (_halve(x_BHWC) if self.halve else x_BHWC)


class Up(nn.Module):
    """Residual block of the decoder, to twice the side and so many channels."""

    channels: int
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def biased(side, gain, name, inputs):
            return conv(
                self.channels, side, padding=side // 2, use_bias=True, kernel_init=_xavier(gain),
                bias_init=torch_uniform(side * side * inputs), name=name, **dtypes,
            )  # fmt: skip

        inputs = x_BHWC.shape[-1]
        h = nn.relu(BatchNorm(name="norm1", **dtypes)(x_BHWC, train=train))
        h = biased(3, _ROOT, "conv1", inputs)(_double(h))
        h = nn.relu(BatchNorm(name="norm2", **dtypes)(h, train=train))
        h = biased(3, _ROOT, "conv2", self.channels)(h)
        return h + biased(1, 1.0, "shortcut", inputs)(_double(x_BHWC))


class Encoder(nn.Module):
    """Images to unit features: residual blocks, ReLU, the sum over places, a linear map."""

    nz: int
    down: tuple[int, ...]
    flat: int
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x_BHWC
        for i, channels in enumerate(self.down):
            h = Down(channels, first=i == 0, name=f"block_{i}", **dtypes)(h, train=train)
        h = Down(self.flat, halve=False, name=f"block_{len(self.down)}", **dtypes)(h, train=train)
        h = nn.relu(h).sum(axis=(1, 2))
        features = SpectralDense(self.nz, torch_uniform(self.flat), name="features", **dtypes)
        return unit(features(h, train=train))


class Decoder(nn.Module):
    """Features to images in [-1, 1]: a linear map, residual blocks, BatchNorm, ReLU, conv, tanh."""

    channels: int
    image_size: int
    bottom: int
    up: tuple[int, ...]
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, z_BD: Array, *, train: bool = False) -> Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        side = self.image_size >> len(self.up)
        h = nn.Dense(
            side * side * self.bottom, kernel_init=_xavier(1.0),
            bias_init=torch_uniform(z_BD.shape[-1]), name="expand", **dtypes,
        )(z_BD)  # fmt: skip
        h = h.reshape(-1, side, side, self.bottom)
        for i, channels in enumerate(self.up):
            h = Up(channels, name=f"block_{i}", **dtypes)(h, train=train)
        h = nn.relu(BatchNorm(name="norm", **dtypes)(h, train=train))
        h = conv(
            self.channels, 3, padding=1, use_bias=True, kernel_init=_xavier(1.0),
            bias_init=torch_uniform(9 * h.shape[-1]), name="to_image", **dtypes,
        )(h)  # fmt: skip
        return jnp.tanh(h)


class SNGANTranscription(nn.Module):
    """Encoder f and decoder g of one transcription, as ``models.dcgan.DCGANTranscription``.

    Attributes:
      image_size: of the square images.
      down, flat: channels of the encoder's halving blocks, and of the one that keeps the side.
      bottom, up: channels of the decoder's smallest image, and after each doubling block.
      channels: of the images.
      nz: numbers an image becomes.
    """

    image_size: int
    down: tuple[int, ...]
    flat: int
    bottom: int
    up: tuple[int, ...]
    channels: int = 3
    nz: int = 128
    dtype: str | None = None
    param_dtype: str = "float32"

    def setup(self):
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.f = Encoder(self.nz, self.down, self.flat, **dtypes)
        self.g = Decoder(self.channels, self.image_size, self.bottom, self.up, **dtypes)

    def __call__(self, x_BHWC: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Features Z = f(X) and the transcription g(Z)."""
        z = self.encode(x_BHWC, train=train)
        return z, self.decode(z, train=train)

    def encode(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """``f(X)``, ``(B, nz)``."""
        return self.f(x_BHWC, train=train)

    def decode(self, z_BD: Array, *, train: bool = False) -> Array:
        """``g(Z)``, ``(B, H, W, C)``."""
        return self.g(z_BD, train=train)

    def project(self, params: dict) -> dict:
        """Parameters as they are: there are no atoms."""
        return params

    def renew(self, variables: dict) -> dict:
        """Variables as they are: there is no step to renew."""
        return variables
