"""Closed-loop transcription of STL-10's unlabelled images at 48 x 48 (2302.09347, 2111.06636).

    python -m crate_jax.main --config configs/csc_ctrl/stl10.py --workdir runs/csc_stl10
    python -m crate_jax.main --config configs/csc_ctrl/stl10.py:encoder=conv --workdir ...

CTRL's released settings: the spectrally normalised residual net of 48 pixels with
``encoder=conv``, 128 features, batch 300, 450,000 steps, the binary objective, Adam at 1.5e-4 with
betas (0, 0.9), linearly to 0. CSC-CTRL has published none: ``encoder=csc`` takes these with
sparse-coding stages of 64, 128, 256 and 512 atoms and its decoder's mirror of them.

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
        arg, variant="48", nz=128, batch_size=300, steps=450_000, betas=SNGAN_BETAS, sngan=True,
        source="tfds:stl10", train_split="unlabelled", eval_split="test", image_size=48, channels=3,
        num_classes=10, workers=8,
    )  # fmt: skip
    config.train.update(eval_every=10_000, checkpoint_every=1000)
    return finish(config, arg)
