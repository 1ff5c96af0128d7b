"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719), in the two forms that the recipes use.

``timm``: the "increasing" operations, magnitude m on a scale of 10 with Gaussian noise of 0.5,
each drawn operation applied with probability 1/2, grey ImageNet mean where pixels are missing.
``torchvision``: m of 30, no noise, always applied, black where pixels are missing.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from crate_jax.config import ConfigError

KINDS = ("timm", "torchvision")
TIMM_FILL = (124, 116, 104)
TIMM_PROBABILITY = 0.5
TIMM_NOISE = 0.5


def _affine(image, matrix, fill, resample):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def _solarize_add(image, amount):
    table = [min(255, v + amount) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


# An operation takes (image, level in [0, 1], sign of -1 or 1, fill, resample).
_COMMON = {
    "auto_contrast": lambda im, v, s, *_: ImageOps.autocontrast(im),
    "equalize": lambda im, v, s, *_: ImageOps.equalize(im),
    "rotate": lambda im, v, s, fill, how: im.rotate(30 * v * s, how, fillcolor=fill),
    "shear_x": lambda im, v, s, fill, how: _affine(im, (1, 0.3 * v * s, 0, 0, 1, 0), fill, how),
    "shear_y": lambda im, v, s, fill, how: _affine(im, (1, 0, 0, 0.3 * v * s, 1, 0), fill, how),
}

_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def _enhance(Enhancer):
    return lambda im, v, s, *_: Enhancer(im).enhance(max(0.1, 1 + 0.9 * v * s))


def _translate(axis, fraction, whole):
    def apply(im, v, s, fill, how):
        pixels = fraction * v * s * im.size[axis]
        pixels = int(pixels) if whole else pixels
        shift = (1, 0, pixels, 0, 1, 0) if axis == 0 else (1, 0, 0, 0, 1, pixels)
        return _affine(im, shift, fill, how)

    return apply


def _posterize_timm(im, v, s, *_):
    return ImageOps.posterize(im, max(1, 4 - int(4 * v))) if v < 1 else im.point(lambda _: 0)


OPERATIONS = {
    "timm": _COMMON
    | {name: _enhance(Enhancer) for name, Enhancer in _ENHANCERS.items()}
    | {
        "invert": lambda im, v, s, *_: ImageOps.invert(im),
        "posterize": _posterize_timm,
        "solarize": lambda im, v, s, *_: ImageOps.solarize(im, 256 - min(256, int(256 * v))),
        "solarize_add": lambda im, v, s, *_: _solarize_add(im, min(128, int(110 * v))),
        "translate_x": _translate(0, 0.45, whole=False),
        "translate_y": _translate(1, 0.45, whole=False),
    },
    "torchvision": _COMMON
    | {name: _enhance(Enhancer) for name, Enhancer in _ENHANCERS.items()}
    | {
        "identity": lambda im, *_: im,
        "posterize": lambda im, v, s, *_: ImageOps.posterize(im, 8 - round(4 * v)),
        "solarize": lambda im, v, s, *_: ImageOps.solarize(im, 255 * (1 - v)),
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
    pil, names = Image.fromarray(image), list(OPERATIONS[kind])
    for _ in range(layers):
        name = names[rng.integers(len(names))]
        sign = 1 if rng.random() < 0.5 else -1
        if kind == "timm":
            level = np.clip(rng.normal(magnitude, TIMM_NOISE), 0, 10) / 10
            fill = TIMM_FILL
            how = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[rng.integers(2)]
            if rng.random() >= TIMM_PROBABILITY:
                continue
        else:
            level, fill, how = magnitude / 30, (0, 0, 0), Image.Resampling.NEAREST
        pil = OPERATIONS[kind][name](pil, float(level), sign, fill, how)
    return np.asarray(pil)
