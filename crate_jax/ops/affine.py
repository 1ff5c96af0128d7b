"""Images turned and scaled about their centre."""

import jax
import jax.numpy as jnp
from jax import Array


def turn_and_scale(x_BHWC: Array, angle: Array, scale: Array, *, fill: float) -> Array:
    """Each image turned by an angle and enlarged by a factor, bilinear, in the frame it had.

    Args:
      x_BHWC: images.
      angle: radians, ``(B,)``, counter-clockwise on screen.
      scale: ``(B,)``.
      fill: what comes in from outside the frame.
    """
    H, W, _ = x_BHWC.shape[1:]
    rows, columns = jnp.meshgrid(
        jnp.arange(H) - (H - 1) / 2, jnp.arange(W) - (W - 1) / 2, indexing="ij"
    )

    def one(image, angle, scale):
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        source = [
            cos * rows + sin * columns + (H - 1) / 2,
            -sin * rows + cos * columns + (W - 1) / 2,
        ]
        sample = jax.scipy.ndimage.map_coordinates
        return jax.vmap(
            lambda channel: sample(channel, source, order=1, mode="constant", cval=fill), 2, 2
        )(image)

    return jax.vmap(one)(x_BHWC, angle, scale)
