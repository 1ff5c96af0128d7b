"""Encoded images to arrays."""

import io

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # one image is one thread's work; parallelism is the loader's


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """A JPEG, PNG or other image as uint8 ``(H, W, channels)``; 1 is grey, 3 is RGB.

    The orientation tag is ignored, as torchvision's loader does.

    Raises:
      ValueError: when the bytes are no image.
    """
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    buffer = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(buffer, flag | cv2.IMREAD_IGNORE_ORIENTATION) if buffer.size else None
    if image is None:
        image = _decode_by_pillow(encoded, channels)
    return image[:, :, None] if channels == 1 else image


def _decode_by_pillow(encoded: bytes, channels: int) -> np.ndarray:
    """The formats that OpenCV does not read (GIF, CMYK JPEG)."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({len(encoded)} bytes): {error}") from error
