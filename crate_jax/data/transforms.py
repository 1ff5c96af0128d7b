"""From a decoded image to the network's input, by numpy, Pillow and OpenCV.

Pillow's filters widen when they shrink an image, which is torchvision's ``antialias=True``.
"""

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from crate_jax.config import DataConfig
from crate_jax.data import color
from crate_jax.data.randaugment import randaugment

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
CROPS = ("inception", "pad", "pad_to", "center", "none")
EVAL_RESIZES = ("shorter", "square", "pad")
ASPECT = (3 / 4, 4 / 3)


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """``image`` at another size, antialiased; uint8 HWC."""
    if image.shape[:2] == (height, width):
        return image
    squeeze = image.shape[2] == 1
    pil = Image.fromarray(image[:, :, 0] if squeeze else image)
    out = np.asarray(pil.resize((width, height), FILTERS[interpolation]))
    return out[:, :, None] if squeeze else out


def inception_crop(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop box ``(top, left, h, w)``.

    Area uniform in ``area``, log aspect ratio uniform between 3/4 and 4/3; after ten boxes that do
    not fit, the largest central box of an allowed ratio.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*np.log(ASPECT)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = width / height
    if ratio < ASPECT[0]:
        w, h = width, round(width / ASPECT[0])
    elif ratio > ASPECT[1]:
        w, h = round(height * ASPECT[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def pad_crop(
    rng: np.random.Generator, image: np.ndarray, padding: int, size: int | None = None
) -> np.ndarray:
    """Zero padding on all sides, then a crop at a uniform place, of the old size or ``size``."""
    H, W, _ = image.shape
    padded = np.zeros((H + 2 * padding, W + 2 * padding, image.shape[2]), image.dtype)
    padded[padding : padding + H, padding : padding + W] = image
    if size is None:
        top, left = rng.integers(2 * padding + 1, size=2)
        return padded[top : top + H, left : left + W]
    top, left = (rng.integers(n + 2 * padding - size + 1) for n in (H, W))
    return padded[top : top + size, left : left + size]


def center_pad(image: np.ndarray, size: int) -> np.ndarray:
    """Zeros around an image no larger than ``size``, to a square of it."""
    H, W, C = image.shape
    out = np.zeros((size, size, C), image.dtype)
    top, left = (size - H) // 2, (size - W) // 2
    out[top : top + H, left : left + W] = image
    return out


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square, rounded as torchvision rounds."""
    H, W, _ = image.shape
    top, left = round((H - size) / 2), round((W - size) / 2)
    return image[top : top + size, left : left + size]


def resize_shorter(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """The shorter side to ``size``, the longer in proportion, rounded down as torchvision's."""
    H, W, _ = image.shape
    if H <= W:
        return resize(image, size, int(size * W / H), interpolation)
    return resize(image, int(size * H / W), size, interpolation)


@functools.lru_cache(maxsize=8)
def _normalised_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """``(v / 255 - mean) / std`` of every byte v, float32 ``(1, 256, C)``."""
    scale = (1.0 / (255.0 * np.asarray(std, np.float32))).astype(np.float32)
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return np.arange(256, dtype=np.float32)[None, :, None] * scale - shift


def normalise(images: Sequence[np.ndarray], config: DataConfig) -> np.ndarray:
    """``(x / 255 - mean) / std`` of uint8 images of one size, as one float32 batch.

    A byte has 256 values, so each image is one pass over a table, straight to its place.

    Raises:
      ValueError: on images of several sizes.
    """
    table = _normalised_levels(config.mean, config.std)
    batch = np.empty((len(images), *images[0].shape), np.float32)
    for row, image in zip(batch, images, strict=True):
        if image.shape != row.shape:  # OpenCV would write elsewhere
            raise ValueError(f"a batch holds images of {row.shape} and of {image.shape}.")
        cv2.LUT(image, table, row)
    return batch


def train_transform(image: np.ndarray, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Crop, flip, colours, RandAugment: uint8 ``(H, W, C)`` to ``(size, size, C)``, not normalised
    yet."""
    size = config.image_size
    if config.crop == "inception":
        top, left, h, w = inception_crop(rng, *image.shape[:2], config.crop_area)
        patch = image[top : top + h, left : left + w]
        image = resize(np.ascontiguousarray(patch), size, size, config.interpolation)
    elif config.crop == "pad":
        image = pad_crop(rng, resize(image, size, size, config.interpolation), config.crop_padding)
    elif config.crop == "pad_to":
        image = pad_crop(rng, image, config.crop_padding, size)
    elif config.crop == "center":
        image = center_crop(resize_shorter(image, size, config.interpolation), size)
    else:
        image = resize(image, size, size, config.interpolation)
    if config.flip and rng.random() < 0.5:
        image = cv2.flip(image, 1).reshape(image.shape)
    if any(config.jitter) and rng.random() < config.jitter_probability:
        image = color.jitter(image, rng, config.jitter)
    if config.grayscale and rng.random() < config.grayscale:
        image = color.grayscale(image)
    if config.randaugment_layers:
        image = randaugment(
            image, rng, kind=config.randaugment_kind,
            layers=config.randaugment_layers, magnitude=config.randaugment_magnitude,
        )  # fmt: skip
    return image


def eval_transform(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """The shorter side resized and the centre cropped, or the whole squeezed to a square, or padded
    to one; uint8."""
    size = config.image_size
    if config.eval_resize == "shorter":
        image = resize_shorter(image, config.eval_resize_size, config.eval_interpolation)
        image = center_crop(image, size)
    elif config.eval_resize == "pad":
        image = center_pad(image, size)
    else:
        image = resize(image, size, size, config.eval_interpolation)
    return image
