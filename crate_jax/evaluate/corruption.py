"""Noise on images, by kind and level, as SDNet's robustness experiment has it.

Images are intensities in [0, 1], ``(B, H, W, C)`` of numpy; noisy ones are clipped to [0, 1], and
go through 8 bits as a file would.
"""

import numpy as np

LEVELS = {
    "gaussian": tuple(np.arange(0.02, 0.21, 0.02).round(2)),
    "shot": tuple(range(60, 3, -6)),
    "speckle": tuple(np.arange(0.1, 0.65, 0.1).round(1)),
    "impulse": tuple(np.arange(0.03, 0.29, 0.03).round(2)),
}
"""Deviation; photons of a white pixel; deviation of the factor; fraction of pixels. By kind."""


def corrupt(x: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """Images with noise of a kind of ``LEVELS``."""
    if kind == "gaussian":
        noisy = x + level * rng.normal(size=x.shape)
    elif kind == "shot":
        noisy = rng.poisson(x * level) / level
    elif kind == "speckle":
        noisy = x * (1 + level * rng.normal(size=x.shape))
    else:  # salt and pepper in equal parts, each entry by itself
        hit, salt = rng.random(x.shape) < level, rng.random(x.shape) < 0.5
        noisy = np.where(hit, salt.astype(x.dtype), x)
    return (np.floor(np.clip(noisy, 0, 1) * 255) / 255).astype(x.dtype)
