import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from crate_jax.config import DataConfig
from crate_jax.data import color, transforms
from crate_jax.data.randaugment import OPERATIONS, randaugment

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_normalise_in_float64():
    config = DataConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels=3)
    want = (PHOTO / 255.0 - np.array(config.mean)) / np.array(config.std)
    got = transforms.normalise([PHOTO], config)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_the_float32_formula_to_the_bit(channels):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(channels, axis=2)
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    scale = (1.0 / (255.0 * np.array(std, np.float32))).astype(np.float32)
    want = levels.astype(np.float32) * scale - np.array(mean, np.float32) / np.array(
        std, np.float32
    )
    for image in (levels, levels[:, ::-1], levels[3:9, 2:5]):
        got = transforms.normalise([image], DataConfig(mean=mean, std=std, channels=channels))[0]
        assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, want[3:9, 2:5])
    got = transforms.normalise([levels], DataConfig(mean=mean, std=std, channels=channels))[0]
    np.testing.assert_array_equal(got, want)


def test_a_batch_has_images_of_one_size():
    with pytest.raises(ValueError, match="images of"):
        transforms.normalise([PHOTO, PHOTO[1:]], DataConfig(channels=3, mean=(0.5,), std=(0.5,)))


def test_the_official_resize_and_crop():
    """torchvision's Resize(20) and CenterCrop(16): shorter side, longer one rounded down."""
    resized = transforms.resize_shorter(PHOTO, 20, "bilinear")
    assert resized.shape == (20, 26, 3)
    want = np.asarray(Image.fromarray(PHOTO).resize((26, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized, want)
    np.testing.assert_array_equal(transforms.center_crop(resized, 16), resized[2:18, 5:21])
    assert transforms.resize_shorter(PHOTO.transpose(1, 0, 2), 20, "area").shape == (26, 20, 3)


def test_area_resizing_by_two_is_a_mean_over_blocks():
    got = transforms.resize(PHOTO, 15, 20, "area")
    want = PHOTO.reshape(15, 2, 20, 2, 3).mean((1, 3))
    np.testing.assert_allclose(got, want, atol=1.0)  # two passes, each rounded


def test_random_resized_crop_follows_its_law():
    rng = np.random.default_rng(1)
    boxes = np.array([transforms.inception_crop(rng, 300, 300, (0.2, 0.6)) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= 300).all() and (left + w <= 300).all()
    area, log_ratio = h * w / 300**2, np.log(w / h)
    np.testing.assert_allclose([area.mean(), area.std()], [0.4, 0.4 / 12**0.5], atol=0.01)
    bound = np.log(4 / 3)
    np.testing.assert_allclose(
        [log_ratio.mean(), log_ratio.std()], [0, 2 * bound / 12**0.5], atol=0.01
    )


def test_a_box_that_never_fits_falls_back_to_the_centre():
    rng = np.random.default_rng(2)
    assert transforms.inception_crop(rng, 10, 100, (0.9, 1.0)) == (0, 43, 10, 13)
    assert transforms.inception_crop(rng, 100, 10, (0.9, 1.0)) == (43, 0, 13, 10)


def test_pad_crop_is_a_shift_with_zeros():
    rng = np.random.default_rng(3)
    image = np.full((6, 6, 1), 9, np.uint8)
    sums = {int(transforms.pad_crop(rng, image, 2).sum()) // 9 for _ in range(300)}
    assert sums == {a * b for a in (4, 5, 6) for b in (4, 5, 6)}


def test_flips_half_of_the_time():
    config = DataConfig(image_size=2, flip=True)
    image = np.array([[[0], [255]], [[0], [255]]], np.uint8)
    rng = np.random.default_rng(4)
    flipped = [transforms.train_transform(image, config, rng)[0, 0, 0] > 127 for _ in range(1000)]
    assert 0.45 < np.mean(flipped) < 0.55


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_every_operation_keeps_shape_and_type(kind):
    assert len(OPERATIONS[kind]) == {"timm": 15, "torchvision": 14}[kind]
    for name, operation in OPERATIONS[kind].items():
        for level in (0.0, 0.5, 1.0):
            out = operation(PHOTO, level, -1, (1, 2, 3), Image.Resampling.NEAREST)
            assert out.shape == PHOTO.shape and out.dtype == np.uint8, name


def test_operations_with_a_closed_form():
    def run(kind, name, level, sign=1):
        out = OPERATIONS[kind][name](PHOTO, level, sign, (7, 7, 7), Image.Resampling.NEAREST)
        return out.astype(int)

    photo = PHOTO.astype(int)
    np.testing.assert_array_equal(run("timm", "invert", 0.3), 255 - photo)
    np.testing.assert_array_equal(
        run("timm", "solarize", 0.5), np.where(photo < 128, photo, 255 - photo)
    )
    np.testing.assert_array_equal(
        run("timm", "solarize_add", 0.5), np.where(photo < 128, np.minimum(photo + 55, 255), photo)
    )
    np.testing.assert_array_equal(run("timm", "posterize", 0.5), photo & 0b11000000)
    np.testing.assert_array_equal(run("torchvision", "posterize", 0.5), photo & 0b11111100)
    np.testing.assert_array_equal(run("torchvision", "identity", 0.5), photo)
    shifted = run("torchvision", "translate_x", 0.5)
    pixels = int(150 / 331 * 0.5 * 40)
    np.testing.assert_array_equal(shifted[:, : 40 - pixels], photo[:, pixels:])
    np.testing.assert_array_equal(shifted[:, 40 - pixels :], 7)
    for name in (
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x",
        "brightness",
        "color",
        "contrast",
        "sharpness",
    ):
        for kind in ("timm", "torchvision"):
            np.testing.assert_array_equal(run(kind, name, 0.0), photo, err_msg=f"{kind} {name}")
    bright = run("torchvision", "brightness", 14 / 30)
    np.testing.assert_allclose(bright, np.minimum(photo * (1 + 0.9 * 14 / 30), 255), atol=1)


def _enhanced(Enhancer):
    return lambda im, v, s: Enhancer(im).enhance(max(0.1, 1 + 0.9 * v * s))


def _solarized_add(im, v, s):
    amount = min(128, int(110 * v))
    return im.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)


PILLOWS = {
    ("timm", "auto_contrast"): lambda im, v, s: ImageOps.autocontrast(im),
    ("timm", "equalize"): lambda im, v, s: ImageOps.equalize(im),
    ("timm", "color"): _enhanced(ImageEnhance.Color),
    ("timm", "contrast"): _enhanced(ImageEnhance.Contrast),
    ("timm", "brightness"): _enhanced(ImageEnhance.Brightness),
    ("timm", "sharpness"): _enhanced(ImageEnhance.Sharpness),
    ("timm", "invert"): lambda im, v, s: ImageOps.invert(im),
    ("timm", "posterize"): lambda im, v, s: (
        ImageOps.posterize(im, max(1, 4 - int(4 * v))) if v < 1 else im.point(lambda _: 0)
    ),
    ("timm", "solarize"): lambda im, v, s: ImageOps.solarize(im, 256 - min(256, int(256 * v))),
    ("timm", "solarize_add"): _solarized_add,
    ("torchvision", "posterize"): lambda im, v, s: ImageOps.posterize(im, 8 - round(4 * v)),
    ("torchvision", "solarize"): lambda im, v, s: ImageOps.solarize(im, 255 * (1 - v)),
}
"""The operations that do not move pixels, by Pillow alone."""


@pytest.mark.parametrize(("kind", "name"), list(PILLOWS))
def test_operations_give_the_bytes_of_pillow(kind, name):
    """On noise, a smooth picture of few values, one colour, and pictures a pixel or two wide."""
    ramp = np.arange(90, 150, dtype=np.uint8)[:, None, None] + np.zeros((1, 70, 3), np.uint8)
    ramp[..., 1] //= 3
    one_colour = np.full((9, 9, 3), (3, 130, 250), np.uint8)
    for image in (PHOTO, ramp, one_colour, PHOTO[:2, :2], PHOTO[:1, :7], PHOTO[:40, :1]):
        for level in (0.0, 0.07, 0.5, 0.93, 1.0):
            for sign in (-1, 1):
                got = OPERATIONS[kind][name](image, level, sign, (1, 2, 3), None)
                want = PILLOWS[kind, name](Image.fromarray(image), level, sign)
                np.testing.assert_array_equal(got, np.asarray(want), err_msg=f"{level} {sign}")


def test_timm_applies_an_operation_half_of_the_time():
    rng = np.random.default_rng(5)
    same = [
        np.array_equal(randaugment(PHOTO, rng, kind="timm", layers=1, magnitude=9.0), PHOTO)
        for _ in range(600)
    ]
    assert 0.45 < np.mean(same) < 0.6


def test_pad_to_crops_the_size_asked_for_out_of_zeros():
    config = DataConfig(channels=3, image_size=32, crop="pad_to", crop_padding=8)
    image = np.full((28, 28, 3), 200, np.uint8)
    seen = set()
    for _ in range(60):
        out = transforms.train_transform(image, config, RNG)
        assert out.shape == (32, 32, 3) and set(np.unique(out)) <= {0, 200}
        seen.add((int((out[:, :, 0] > 0).any(1).argmax()), int((out[:, :, 0] > 0).any(0).argmax())))
    assert len(seen) > 20  # places differ
    padded = transforms.eval_transform(image, DataConfig(image_size=32, eval_resize="pad"))
    np.testing.assert_array_equal(padded[2:30, 2:30], image)
    assert padded.sum() == image.sum()


def test_jitter_is_pillows_enhancers_in_a_random_order():
    class Fixed:
        """Factors 1.2, 0.9, 1.4 and no turn, in the order contrast, saturation, brightness, hue."""

        def __init__(self):
            self.values = iter([1.2, 0.9, 1.4, 0.0])

        def uniform(self, low, high):
            value = next(self.values)
            assert low <= value <= high
            return value

        def permutation(self, n):
            return np.array([1, 2, 0, 3])

    want = Image.fromarray(PHOTO)
    for Enhancer, factor in (
        (ImageEnhance.Contrast, 0.9), (ImageEnhance.Color, 1.4), (ImageEnhance.Brightness, 1.2),
    ):  # fmt: skip
        want = Enhancer(want).enhance(factor)
    want = np.asarray(want.convert("HSV").convert("RGB"))
    got = color.jitter(PHOTO, Fixed(), (0.4, 0.4, 0.4, 0.1))
    np.testing.assert_array_equal(got, want)


def test_a_third_of_a_turn_makes_red_green():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    got = color._turn_hue(Image.fromarray(red), 1 / 3)
    assert np.asarray(got)[0, 0, 1] == 255 and np.asarray(got)[0, 0, 0] <= 6


def test_grey_is_the_luminance_in_every_channel():
    got = color.grayscale(PHOTO)
    want = PHOTO @ np.array([0.299, 0.587, 0.114])
    assert np.abs(got - want[..., None]).max() <= 1 and got.shape == PHOTO.shape
