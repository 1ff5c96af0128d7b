"""CRATE on scikit-learn's 1,797 handwritten digits of 8x8 pixels: the first thing to run.

    python -m crate_jax.main --config configs/quickstart.py --workdir runs/quickstart

Expected: at least 97.5 % test accuracy on the fixed 20 % split (ours: docs/results.md).
Cost: about a minute on two CPU cores, compilation included; no download.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.recipe import finish, parse_arg


def get_config(arg=None):
    """Arguments: ``smoke``, ``debug_nans``."""
    arg = parse_arg(arg)
    config = default()
    # A LayerNorm over four raw pixels would erase their contrast: hence patches by convolution.
    config.model = models.settings(
        "crate", width=64, depth=4, heads=4, patch=2, patching="conv", scan_layers=True
    )
    config.data.update(source="digits", image_size=8, channels=1, num_classes=10)
    config.optimizer.update(name="adamw", learning_rate=2e-3, weight_decay=0.5, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=50)
    config.classify.update(label_smoothing=0.1, mixup_alpha=0.2)
    config.train.update(
        batch_size=128, steps=800, eval_every=100, checkpoint_every=100, log_every=20
    )
    return finish(config, arg)
