"""CRATE, CRATE-alpha and ViT of equal width on CIFAR-10 from scratch, for one small GPU or a CPU.

    python -m crate_jax.main --config configs/cifar10.py:model=crate --workdir D \\
        --config.data.data_dir=TFDS

``TFDS`` is where the prepared data set lies; without it TFDS's own default.
Expected: no from-scratch figure is published; ours, of the ``cpu`` size, are in docs/results.md.
Cost: 200 epochs of a 384-wide model of 12 layers on 64 tokens; ``cpu`` is the short budget of
docs/results.md, minutes on two cores.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.recipe import choose, finish, parse_arg

SIZES = {
    "gpu": {"width": 384, "depth": 12, "heads": 6, "patch": 4},
    "cpu": {"width": 96, "depth": 4, "heads": 4, "patch": 4},
}


def get_config(arg=None):
    """Arguments: ``model`` (crate, crate_alpha, vit), ``size`` (gpu, cpu), ``smoke``,
    ``debug_nans``."""
    arg = parse_arg(arg, model="crate", size="gpu")
    choose("model", arg.model, models.MODELS)
    size = choose("size", arg.size, SIZES)
    config = default()
    config.model = models.settings(arg.model, scan_layers=True, **size)
    if arg.model == "crate":
        config.model.patching = "conv"
    config.data.update(
        source="tfds:cifar10", num_classes=10, image_size=32, channels=3,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop="pad", flip=True,
        eval_resize="square",
    )  # fmt: skip
    config.optimizer.update(name="adamw", learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_epochs=5.0)
    config.classify.label_smoothing = 0.1
    config.train.update(
        batch_size=512, epochs=200.0, eval_every=1000, checkpoint_every=500, log_every=20,
        eval_batch_size=400,
    )  # fmt: skip
    if arg.size == "gpu":
        config.model.dtype = "bfloat16"
        config.data.update(randaugment_layers=2, randaugment_magnitude=9.0, workers=8)
        config.classify.update(mixup_alpha=0.8, cutmix_alpha=1.0)
    else:
        config.schedule.update(warmup_epochs=0.0, warmup_steps=50)
        config.train.update(
            batch_size=128, epochs=None, steps=1000, eval_every=250, checkpoint_every=250
        )
    return finish(config, arg)
