"""Closed-loop transcription of CIFAR-10: CSC-CTRL (arXiv 2302.09347), plain CTRL (2111.06636).

    python -m crate_jax.main --config configs/csc_ctrl/cifar10.py --workdir runs/csc_cifar10
    python -m crate_jax.main --config configs/csc_ctrl/cifar10.py:encoder=conv --workdir ...
    python -m crate_jax.main --config configs/csc_ctrl/cifar10.py:size=cpu,objective=multi ...

CTRL's released settings: mini-DCGAN, 100 features, batch 1,600 (200 serves the binary objective),
45,000 steps, the alternating objective with two encoder steps, Adam at 1.5e-4 with betas
(0.5, 0.999), linearly to 0. CSC-CTRL has published none: ``encoder=csc`` takes the same.
``size=cpu`` is ``recipe_ctrl.small``.

Expected: published for CTRL, nearest-subspace accuracy 73.05 % (github.com/Delay-Xili/LDR). For
CSC-CTRL no table was at hand. Ours: docs/results.md.
Cost: the full size was not run.
"""

from crate_jax.recipe import choose, finish, parse_arg
from crate_jax.recipe_ctrl import closed_loop, small

SIZES = ("full", "cpu")


def get_config(arg=None):
    """Arguments: ``encoder`` (csc, conv), ``objective`` (binary, multi, alternating), ``tied``
    (false, init, true), ``size`` (full, cpu), ``smoke``, ``debug_nans``."""
    arg = parse_arg(arg, encoder="csc", objective="alternating", tied="false", size="full")
    choose("size", arg.size, dict.fromkeys(SIZES))
    config = closed_loop(
        arg, variant="32", nz=100, batch_size=1600, steps=45_000, source="tfds:cifar10",
        image_size=32, channels=3, num_classes=10,
    )  # fmt: skip
    config.evaluate.update(evaluators=("nearest_subspace",), components=10)
    if arg.size == "cpu":
        small(config)
    return finish(config, arg)
