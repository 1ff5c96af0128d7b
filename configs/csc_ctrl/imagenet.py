"""Closed-loop transcription of ImageNet at 128 x 128 (2302.09347, 2111.06636).

    python -m crate_jax.main --config configs/csc_ctrl/imagenet.py --workdir runs/csc_imagenet
    python -m crate_jax.main --config configs/csc_ctrl/imagenet.py:encoder=conv --workdir ...

CTRL's released settings: the spectrally normalised residual net of 128 pixels with
``encoder=conv``, 128 features, batch 300, 450,000 steps, the binary objective, uniform noise of up
to 1/128 on the training images, Adam at 1.5e-4 with betas (0, 0.9), linearly to 0. CSC-CTRL has
published none: ``encoder=csc`` takes these with stages of 64 to 1,024 atoms. Here the central
square of an image goes to 128 pixels, there what lies within 112 pixels of its centre.

Expected: no reference that could be verified.
Cost: not run.
"""

from crate_jax.recipe import finish, parse_arg
from crate_jax.recipe_ctrl import SNGAN_BETAS, closed_loop


def get_config(arg=None):
    """Arguments: ``encoder`` (csc, conv), ``objective`` (binary, multi, alternating), ``tied``
    (false, init, true), ``smoke``, ``debug_nans``."""
    arg = parse_arg(arg, encoder="csc", objective="binary", tied="false")
    config = closed_loop(
        arg, variant="128", nz=128, batch_size=300, steps=450_000, betas=SNGAN_BETAS, sngan=True,
        source="tfds:imagenet2012", eval_split="validation", image_size=128, channels=3,
        num_classes=1000, workers=16,
    )  # fmt: skip
    config.data.update(crop="center", eval_resize="shorter", eval_resize_size=128)
    config.ctrl.dither = 1 / 128
    config.train.update(eval_every=10_000, checkpoint_every=1000)
    return finish(config, arg)
