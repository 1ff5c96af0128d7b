"""Closed-loop transcription of MNIST: CSC-CTRL (arXiv 2302.09347) beside plain CTRL (2111.06636).

    python -m crate_jax.main --config configs/csc_ctrl/mnist.py --workdir runs/csc_mnist
    python -m crate_jax.main --config configs/csc_ctrl/mnist.py:encoder=conv --workdir ...
    python -m crate_jax.main --config configs/csc_ctrl/mnist.py:size=cpu --workdir ...
    python -m crate_jax.main --config configs/csc_ctrl/mnist.py:data=digits --workdir ...

CTRL's released settings: 32 x 32 pixels, mini-DCGAN, 128 features, batch 2,048, 4,500 steps, the
multi-class objective, Adam at 1.5e-4 with betas (0.5, 0.999), linearly to 0. CSC-CTRL has published
none: ``encoder=csc`` takes the same, and which of its parts are ours is in ``models.dcgan``.
``transform=tmnist`` turns and scales the images at random. ``size=cpu`` is ``recipe_ctrl.small``;
``data=digits`` is scikit-learn's 8 x 8 digits, without a download, played as there.

Expected: published for CTRL, nearest-subspace accuracy 97.69 % (github.com/Delay-Xili/LDR). For
CSC-CTRL no table was at hand. Ours: docs/results.md.
Cost: the full size was not run; ``size=cpu`` trains in half a minute on two shared CPU cores.
"""

from crate_jax.recipe import choose, finish, parse_arg
from crate_jax.recipe_ctrl import closed_loop, small

DATA = {
    "mnist": {"source": "tfds:mnist", "image_size": 32, "variant": "32", "nz": 128},
    "digits": {"source": "digits", "image_size": 8, "variant": "8", "nz": 32},
}
SIZES = ("full", "cpu")


def get_config(arg=None):
    """Arguments: ``encoder`` (csc, conv), ``objective`` (binary, multi, alternating), ``tied``
    (false, init, true), ``transform`` (none, tmnist), ``data`` (mnist, digits), ``size`` (full,
    cpu), ``smoke``, ``debug_nans``."""
    arg = parse_arg(
        arg, encoder="csc", objective="multi", tied="false", transform="none", data="mnist",
        size="full",
    )  # fmt: skip
    choose("size", arg.size, dict.fromkeys(SIZES))
    row = choose("data", arg.data, DATA)
    config = closed_loop(arg, batch_size=2048, steps=4500, channels=1, num_classes=10, **row)
    config.ctrl.transform = arg.transform
    config.evaluate.update(evaluators=("nearest_subspace",), components=10)
    if arg.size == "cpu":
        small(config)
    if arg.data == "digits":
        config.model.update(variant=None, widths=(32,))
        config.train.update(batch_size=128, steps=600, eval_every=200, log_every=20)
        config.ctrl.update(consistency=20.0, normalise_by="image")
        config.optimizer.learning_rate = 3e-3
    return finish(config, arg)
