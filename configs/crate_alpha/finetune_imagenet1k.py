"""Fine-tuning CRATE-alpha on ImageNet-1k after ImageNet-21k (arXiv 2405.20299).

    python -m crate_jax.main --config configs/crate_alpha/finetune_imagenet1k.py:variant=L/14 \\
        --config.train.init_from=CHECKPOINT --workdir D

``CHECKPOINT`` is the workdir of a pre-training run, or what ``crate_jax.convert`` wrote. It may
have another patch side: positions and patch kernel are resized, so a /32 model trains on at /14
or /8, the paper's cheaper way to them.
Expected top-1, as published: B/32 76.5, B/16 81.2, B/8 83.2, L/32 80.2, L/14 83.9, L/8 85.1; of
the ladder at B/32: vanilla 68.5, overcomplete 73.8, decoupled 75.8, residual 76.5.
Cost: 91 epochs of 1.28 M images; a B/16 image is 155.6 GFLOP a step, L/14 719, L/8 2,316.

Layers compute in bfloat16, where the official code did in float32; --config.model.dtype=float32
switches.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.models.crate_alpha import LADDER, VARIANTS
from crate_jax.recipe import choose, finish, parse_arg


def get_config(arg=None):
    """Arguments: ``variant`` (Ti, S, B, L, H with /32, /16, /14 or /8), ``ladder``, ``smoke``,
    ``debug_nans``."""
    arg = parse_arg(arg, variant="L/14", ladder="residual")
    choose("variant", arg.variant.partition("/")[0], VARIANTS)
    config = default()
    config.model = models.settings(
        "crate_alpha", variant=arg.variant, dtype="bfloat16", scan_layers=True, remat="full",
        **choose("ladder", arg.ladder, LADDER),
    )  # fmt: skip
    config.data.update(
        source="tfds:imagenet2012", train_split="train", eval_split="validation", num_classes=1000,
        image_size=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        crop="inception", flip=True, randaugment_layers=2, randaugment_magnitude=9.0,
        randaugment_kind="timm", eval_resize="shorter", eval_resize_size=256,
        eval_interpolation="area", workers=32,
    )  # fmt: skip
    batch = 4096
    config.optimizer.update(
        name="adamw", learning_rate=1e-5 * batch / 256, weight_decay=0.1, b1=0.9, b2=0.95,
        eps=1e-8, mu_dtype="bfloat16", decay_mask="kernels", clip_norm=1.0,
    )  # fmt: skip
    config.schedule.update(
        name="cosine", warmup_epochs=10.0, final=1e-6 / config.optimizer.learning_rate
    )
    config.classify.update(mixup_alpha=0.8, cutmix_alpha=1.0, on_value=0.9, off_value=1e-4)
    config.train.update(
        batch_size=batch, epochs=91.0, init_skip=("head",), eval_every=1000, checkpoint_every=500,
        log_every=50, eval_batch_size=1024,
    )  # fmt: skip
    return finish(config, arg)
