"""A look at a trained closed loop: reconstructions, features, samples, unseen data, noise.

    python -m crate_jax.main --config configs/csc_ctrl/transcription.py --workdir runs/look \\
        --config.run=runs/csc_mnist
    python -m crate_jax.main --config configs/csc_ctrl/transcription.py:transfer=tfds:mnist ...

The run's directory is read and stays as it is. Without ``run`` a small loop is trained on
scikit-learn's digits first. ``transfer`` names data sets that the run has not seen; CIFAR-100 for a
run on CIFAR-10 is the paper's (arXiv 2302.09347).

Expected: ``index.html`` with tables and figures; the published columns are empty, see there.
Cost: minutes on two CPU cores; the sweep of lambda is most of it.
"""

from crate_jax import studies
from crate_jax.recipe import parse_study_arg


def get_config(arg=None):
    """Arguments: ``run``, ``transfer``, ``smoke``."""
    arg = parse_study_arg(arg, run="digits", transfer="")
    config = studies.default("transcription")
    config.run, config.transfer = arg.run, arg.transfer
    if arg.smoke:
        config.update(
            run="digits", digits_steps=10, train_images=200, test_images=100, batch_size=100,
            noises="gaussian,impulse", levels=2, lambdas=2, noisy_images=50, spectrum=8,
        )  # fmt: skip
    return config
