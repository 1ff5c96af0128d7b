"""MixUp (arXiv 1710.09412) and CutMix (1905.04899) on the device.

As in the CRATE-alpha code, one coefficient serves the batch and the partner of an image is its
mirror in the batch. There both are drawn per device; here for the global batch, so that a run's
numbers do not depend on how many devices carry it.
"""

import jax
import jax.numpy as jnp
from jax import Array


def mixup(rng: Array, image: Array, target: Array, alpha: float) -> tuple[Array, Array]:
    """``lam x_i + (1 - lam) x_{B-1-i}`` of images and targets, ``lam ~ Beta(alpha, alpha)``."""
    lam = jax.random.beta(rng, alpha, alpha)

    def mix(x):
        w = lam.astype(x.dtype)
        return w * x + (1 - w) * x[::-1]

    return mix(image), mix(target)


def cutmix(rng: Array, image: Array, target: Array, alpha: float) -> tuple[Array, Array]:
    """A box of side ``sqrt(1 - lam)`` comes from the partner; targets go by the clipped area."""
    lam_rng, row_rng, column_rng = jax.random.split(rng, 3)
    side = jnp.sqrt(1.0 - jax.random.beta(lam_rng, alpha, alpha))
    H, W = image.shape[1:3]

    def span(rng, size):
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(rng, (), 0, size)
        low, high = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
        return (low <= jnp.arange(size)) & (jnp.arange(size) < high)

    rows, columns = span(row_rng, H), span(column_rng, W)
    box_HW = rows[:, None] & columns[None, :]
    image = jnp.where(box_HW[None, :, :, None], image[::-1], image)
    lam = (1.0 - box_HW.mean()).astype(target.dtype)
    return image, lam * target + (1 - lam) * target[::-1]


def mix(
    rng: Array, image: Array, target: Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Array, Array]:
    """Whichever is on; with both, one of them at even odds each step.

    Args:
      rng: key.
      image: ``(B, H, W, C)``.
      target: ``(B, classes)``.
      mixup_alpha, cutmix_alpha: Beta parameters; 0 is off.
    """
    choice_rng, rng = jax.random.split(rng)
    if mixup_alpha and cutmix_alpha:
        return jax.lax.cond(
            jax.random.bernoulli(choice_rng),
            lambda: cutmix(rng, image, target, cutmix_alpha),
            lambda: mixup(rng, image, target, mixup_alpha),
        )
    if mixup_alpha:
        return mixup(rng, image, target, mixup_alpha)
    if cutmix_alpha:
        return cutmix(rng, image, target, cutmix_alpha)
    return image, target
