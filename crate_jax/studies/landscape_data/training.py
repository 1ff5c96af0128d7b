"""Samples of the first classes, and the perceptron's full-batch ascent on them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crate_jax.config import ConfigError, DataConfig
from crate_jax.data.sources import open_source
from crate_jax.models import create
from crate_jax.ops.regularised_rate import regularised_rate_reduction
from crate_jax.studies.landscape_data.settings import Settings

Array = jax.Array

CROP, PADDING = 32, 8
"""Pixels of ``crop_flip``."""

LOOKS = (1, 2, 5, 10, 20, 50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800)
"""Epochs after which the features are looked at, besides the last."""


class Look(NamedTuple):
    """Features ``Z: (N, d)`` of the samples as they are, in the order of their classes."""

    epoch: int
    Z: np.ndarray


def load(settings: Settings) -> np.ndarray:
    """The samples, ``(N, H, W, C)`` in [0, 1], float32, in the order of their classes.

    The source is read in an order that the seed draws, and the first ``per_class`` of every class
    are taken.
    """
    data = DataConfig(
        source=settings.source, data_dir=settings.data_dir, channels=settings.channels
    )
    source = open_source(data, settings.split)
    taken = [[] for _ in range(settings.classes)]
    for i in np.random.default_rng(settings.seed).permutation(len(source)):
        example = source[int(i)]
        label = int(example["label"])
        if label < settings.classes and len(taken[label]) < settings.per_class:
            taken[label].append(example["image"])
            if all(len(images) == settings.per_class for images in taken):
                break
    for label, images in enumerate(taken):
        if len(images) < settings.per_class:
            raise ConfigError(
                f"class {label} of {settings.source} has {len(images)} samples in "
                f"config.split={settings.split!r}; config.per_class={settings.per_class} is more."
            )
    images = [image for images in taken for image in images]
    if len({image.shape for image in images}) > 1:
        raise ConfigError(f"the images of {settings.source} are not all of one size.")
    return np.stack(images).astype(np.float32) / 255


def rate_at(epoch: Array | int, settings: Settings) -> Array:
    """Learning rate of an epoch counted from 0.

    ``lr (1 + cos(pi e/(E + 1)))/2 min(1, (e + 1)/warmup)``: both factors run from the start.
    """
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * epoch / (settings.epochs + 1)))
    return settings.learning_rate * cosine * jnp.minimum(1.0, (epoch + 1) / max(settings.warmup, 1))


def crop_flip(key: Array, images: Array) -> Array:
    """A crop of 32 x 32 of every image after a zero padding of 8, and a flip of half of them."""
    n, H, W, C = images.shape
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left, flip = jax.random.split(key, 3)
    rows = jax.random.randint(top, (n,), 0, H + 2 * PADDING - CROP + 1)
    columns = jax.random.randint(left, (n,), 0, W + 2 * PADDING - CROP + 1)

    def crop(image, row, column, mirrored):
        image = jax.lax.dynamic_slice(image, (row, column, 0), (CROP, CROP, C))
        return jnp.where(mirrored, image[:, ::-1], image)

    return jax.vmap(crop)(padded, rows, columns, jax.random.bernoulli(flip, 0.5, (n,)))


def train(
    settings: Settings, images: np.ndarray, report: Callable[[int, float], None]
) -> tuple[np.ndarray, list[Look]]:
    """Ascends F by AdamW, a step an epoch.

    Args:
      settings: of the study.
      images: ``(N, H, W, C)`` in the order of their classes.
      report: called with the epoch and F.

    Returns:
      F before the step of every epoch, ``(E,)`` nats, and the features at :data:`LOOKS`.

    Raises:
      ConfigError: where images are too small for ``crop_flip``, or training diverges.
    """
    if settings.augment == "crop_flip" and min(images.shape[1:3]) + 2 * PADDING < CROP:
        raise ConfigError(
            f"config.augment='crop_flip' wants images of {CROP - 2 * PADDING} pixels or more; "
            f"these have {images.shape[1]} x {images.shape[2]}. Set it to 'none'."
        )
    model = create(
        "mlp", hidden=settings.hidden, feature_dim=settings.d, unit_norm=settings.unit_norm
    )
    augmented = settings.augment == "crop_flip"
    start, augmentation = jax.random.split(jax.random.key(settings.seed))
    images, plain = jnp.asarray(images), jnp.asarray(images)
    if augmented:  # looked at: the middle of what is cropped
        plain = _middle(plain)
    params = jax.jit(model.init)(start, plain)
    optimizer = optax.adamw(
        lambda epoch: rate_at(epoch, settings), b1=settings.b1, b2=settings.b2,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    law = {"eps_sq": settings.eps_sq, "lmbda": settings.lmbda}

    def loss(params, inputs):
        Z = model.apply(params, inputs)
        return -regularised_rate_reduction(Z, settings.sizes, **law)

    def step(params, state, images, epoch):
        inputs = images
        if augmented:
            inputs = crop_flip(jax.random.fold_in(augmentation, epoch), images)
        value, gradient = jax.value_and_grad(loss)(params, inputs)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, -value

    step, features = jax.jit(step, donate_argnums=(0, 1)), jax.jit(model.apply)
    state, values, looks = optimizer.init(params), [], []
    for epoch in range(settings.epochs):
        params, state, value = step(params, state, images, epoch)
        values.append(value)
        if epoch + 1 in LOOKS or epoch + 1 == settings.epochs:
            looks.append(Look(epoch + 1, np.asarray(features(params, plain))))
            report(epoch + 1, float(value))
            if not np.isfinite(looks[-1].Z).all():
                raise ConfigError(
                    f"the features are not finite after epoch {epoch + 1}; lower "
                    "config.learning_rate."
                )
    return np.array(values), looks


def _middle(images: Array) -> Array:
    """The crop of 32 x 32 about the middle, padded with zeros where an image is smaller."""
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = ((size - CROP) // 2 for size in padded.shape[1:3])
    return padded[:, top : top + CROP, left : left + CROP]
