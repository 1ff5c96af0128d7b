"""How near an image is to another: PSNR and SSIM, of images in [0, 1]."""

import jax.numpy as jnp
from jax import Array, lax

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(x: Array, y: Array) -> Array:
    """``-10 log10 mean((x - y)^2)`` of each image, dB; ``(B,)`` from ``(B, H, W, C)``."""
    return -10.0 * jnp.log10(jnp.mean((x - y) ** 2, axis=(1, 2, 3)))


def ssim(x: Array, y: Array) -> Array:
    """Structural similarity (Wang et al. 2004) of each image, ``(B,)`` from ``(B, H, W, C)``.

    Gaussian window of 11 pixels and deviation 1.5, where the image is as large, else the largest
    odd window that it holds; constants 0.01 and 0.03; a mean over the places where the window lies
    within the image, and over channels.
    """
    side = min(WINDOW, *x.shape[1:3])
    side -= 1 - side % 2
    offset = jnp.arange(side, dtype=x.dtype) - side // 2
    kernel = jnp.exp(-(offset**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    C = x.shape[-1]

    def blur(image):
        for shape, axes in (((side, 1), (1, 2, 3)), ((1, side), (0, 2, 3))):
            window = jnp.broadcast_to(jnp.expand_dims(kernel, axes), (*shape, 1, C))
            image = lax.conv_general_dilated(
                image, window, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=C, precision=lax.Precision.HIGHEST,
            )  # fmt: skip
        return image

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * cov + K2**2) / (var_x + var_y + K2**2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))
