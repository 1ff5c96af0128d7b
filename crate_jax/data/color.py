"""Random changes of an image's colours, as torchvision's ColorJitter and RandomGrayscale."""

import cv2
import numpy as np
from PIL import Image, ImageEnhance

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter(
    image: np.ndarray, rng: np.random.Generator, strengths: tuple[float, float, float, float]
) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed by random amounts, in a random order.

    Args:
      image: uint8 ``(H, W, 3)``.
      rng: generator.
      strengths: s of each; the first three are multiplied by ``U(max(0, 1 - s), 1 + s)``, the hue
        moves by ``U(-s, s)`` of a turn.
    """
    *spreads, turn = strengths
    factors = [rng.uniform(max(0.0, 1.0 - s), 1.0 + s) for s in spreads]
    shift = rng.uniform(-turn, turn)
    picture = Image.fromarray(image)
    for operation in rng.permutation(4):
        if operation < 3:
            picture = _ENHANCERS[operation](picture).enhance(factors[operation])
        else:
            picture = _turn_hue(picture, shift)
    return np.asarray(picture)


def _turn_hue(picture: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.asarray(hue, np.int16) + int(shift * 255)) % 256
    channels = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", channels).convert("RGB")


def grayscale(image: np.ndarray) -> np.ndarray:
    """The luminance of a colour image, in all three channels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(grey[:, :, None], 3, axis=2)
