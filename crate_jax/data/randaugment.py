"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719), in the two forms that the recipes use.

``timm``: the "increasing" operations, magnitude m on a scale of 10 with Gaussian noise of 0.5,
each drawn operation applied with probability 1/2, grey ImageNet mean where pixels are missing.
``torchvision``: m of 30, no noise, always applied, black where pixels are missing.

Both are defined by Pillow's operations. Those that look a value up, and the smoothing inside
sharpness, are computed here by numpy and OpenCV, which is faster and gives the same bytes; those
that move pixels stay Pillow's.
"""

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from crate_jax.config import ConfigError

KINDS = ("timm", "torchvision")
TIMM_FILL = (124, 116, 104)
TIMM_PROBABILITY = 0.5
TIMM_NOISE = 0.5

LEVELS = np.arange(256)
_RAMP = Image.fromarray(LEVELS.astype(np.uint8)[None])
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
"""Pillow's SMOOTH. No sum of bytes over 13 lies halfway between integers: rounding is exact."""


def _by_pillow(operation):
    """An operation on Pillow's images as one on arrays."""

    def apply(image, v, s, fill, how):
        return np.asarray(operation(Image.fromarray(image), v, s, fill, how))

    return apply


def _look_up(image, table):
    """``table`` (256,), or (256, 3) with a column a channel, at every value of ``image``."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, -1))


def _affine(im, matrix, fill, how):
    return im.transform(im.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)


def _auto_contrast(image, *_):
    """The values of each channel stretched to 0..255."""
    H, W, _ = image.shape
    lines = image.reshape(H, -1)
    low = lines.min(0).reshape(W, 3).min(0).astype(float)
    high = lines.max(0).reshape(W, 3).max(0).astype(float)
    scale = 255.0 / np.where(high > low, high - low, 255.0)
    return _look_up(image, LEVELS[:, None] * scale + np.where(high > low, -low * scale, 0.0))


def _equalize(image, *_):
    """The cumulative histogram of each channel as its table, rounded as Pillow rounds."""
    table = np.empty((256, 3), int)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(int)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        table[:, channel] = (step // 2 + below) // step if step else LEVELS
    return _look_up(image, table)


def _factor(v, s):
    return max(0.1, 1 + 0.9 * v * s)


def _from_grey(grey, factor):
    """The table that moves values away from ``grey`` by a factor; Pillow's own rounding."""
    return np.asarray(Image.blend(Image.new("L", _RAMP.size, grey), _RAMP, factor))[0]


def _contrast(image, v, s, *_):
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return _look_up(image, _from_grey(int(grey.mean() + 0.5), _factor(v, s)))


def _sharpness(image, v, s, *_):
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    blend = Image.blend(Image.fromarray(smooth), Image.fromarray(image), _factor(v, s))
    return np.asarray(blend)


def _solarize(image, threshold):
    return _look_up(image, np.where(LEVELS < threshold, LEVELS, 255 - LEVELS))


def _solarize_add(image, v, s, *_):
    return _look_up(image, np.where(LEVELS < 128, LEVELS + min(128, int(110 * v)), LEVELS))


def _keep_bits(image, bits):
    return image & np.uint8(256 - 2 ** (8 - bits))


def _translate(axis, fraction, whole):
    def apply(im, v, s, fill, how):
        pixels = fraction * v * s * im.size[axis]
        pixels = int(pixels) if whole else pixels
        shift = (1, 0, pixels, 0, 1, 0) if axis == 0 else (1, 0, 0, 0, 1, pixels)
        return _affine(im, shift, fill, how)

    return _by_pillow(apply)


def _shear(matrix):
    """``matrix`` of a shear by 1."""

    def apply(im, v, s, fill, how):
        return _affine(im, matrix(0.3 * v * s), fill, how)

    return _by_pillow(apply)


# An operation takes (uint8 image (H, W, 3), level in [0, 1], sign of -1 or 1, fill, resample).
_COMMON = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _by_pillow(lambda im, v, s, fill, how: im.rotate(30 * v * s, how, fillcolor=fill)),
    "shear_x": _shear(lambda shear: (1, shear, 0, 0, 1, 0)),
    "shear_y": _shear(lambda shear: (1, 0, 0, shear, 1, 0)),
    "color": _by_pillow(lambda im, v, s, *_: ImageEnhance.Color(im).enhance(_factor(v, s))),
    "contrast": _contrast,
    "brightness": lambda image, v, s, *_: _look_up(image, _from_grey(0, _factor(v, s))),
    "sharpness": _sharpness,
}

OPERATIONS = {
    "timm": _COMMON
    | {
        "invert": lambda image, *_: 255 - image,
        "posterize": lambda image, v, *_: _keep_bits(image, max(1, 4 - int(4 * v)) if v < 1 else 0),
        "solarize": lambda image, v, *_: _solarize(image, 256 - min(256, int(256 * v))),
        "solarize_add": _solarize_add,
        "translate_x": _translate(0, 0.45, whole=False),
        "translate_y": _translate(1, 0.45, whole=False),
    },
    "torchvision": _COMMON
    | {
        "identity": lambda image, *_: image,
        "posterize": lambda image, v, *_: _keep_bits(image, 8 - round(4 * v)),
        "solarize": lambda image, v, *_: _solarize(image, 255 * (1 - v)),
        "translate_x": _translate(0, 150 / 331, whole=True),
        "translate_y": _translate(1, 150 / 331, whole=True),
    },
}
"""Operations of each kind by name: 15 of timm's, 14 of torchvision's."""


def randaugment(
    image: np.ndarray, rng: np.random.Generator, *, kind: str, layers: int, magnitude: float
) -> np.ndarray:
    """``layers`` operations drawn with replacement, one after the other.

    Args:
      image: uint8 ``(H, W, 3)``.
      rng: source of all draws.
      kind: ``timm`` or ``torchvision``.
      layers: operations an image.
      magnitude: of 10 for timm, of 30 for torchvision.
    """
    if image.shape[2] != 3:
        raise ConfigError("RandAugment wants colour images; set config.data.randaugment_layers=0.")
    names = list(OPERATIONS[kind])
    for _ in range(layers):
        name = names[rng.integers(len(names))]
        sign = 1 if rng.random() < 0.5 else -1
        if kind == "timm":
            level = min(max(rng.normal(magnitude, TIMM_NOISE), 0.0), 10.0) / 10
            fill = TIMM_FILL
            how = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[rng.integers(2)]
            if rng.random() >= TIMM_PROBABILITY:
                continue
        else:
            level, fill, how = magnitude / 30, (0, 0, 0), Image.Resampling.NEAREST
        image = OPERATIONS[kind][name](image, level, sign, fill, how)
    return image
