"""CRATE-alpha pre-training on ImageNet-21k, 19,167 classes (arXiv 2405.20299).

    python -m crate_jax.main --config configs/crate_alpha/imagenet21k.py:variant=L/14 --workdir D

TFDS has no ImageNet-21k: register a builder of that name with the 19,167 classes of the Winter 2021
release, or lay the images out in folders and give ``--config.data.source=folder:PATH`` with
``--config.data.eval_split=NAME``, a folder under PATH as ``train`` is.
The release has no validation split: evaluation is on 51,200 of the training images unless
``--config.data.eval_split`` says otherwise.
Expected: nothing is published at this stage; after fine-tuning (finetune_imagenet1k.py) see there.
Cost, training FLOPs of 91 epochs of 13.15 M images: L/32 1.65e20, B/16 1.86e20, L/14 8.6e20,
L/8 2.8e21.

``ladder`` takes the rows of the ablation one by one, each with what is above it: vanilla,
overcomplete, decoupled, residual (the full model, the default).
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
        source="tfds:imagenet21k", train_split="train", eval_split="train[:51200]",
        num_classes=19167, image_size=224, channels=3, mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225), crop="inception", flip=True, eval_resize="shorter",
        eval_resize_size=256, eval_interpolation="area", workers=32,
    )  # fmt: skip
    batch = 4096
    config.optimizer.update(
        name="adamw", learning_rate=5e-5 * batch / 256, weight_decay=0.1, b1=0.9, b2=0.95,
        eps=1e-8, mu_dtype="bfloat16", decay_mask="kernels", clip_norm=1.0,
    )  # fmt: skip
    config.schedule.update(
        name="cosine", warmup_epochs=10.0, final=1e-6 / config.optimizer.learning_rate
    )
    config.classify.update(mixup_alpha=0.8, cutmix_alpha=1.0)
    config.train.update(
        batch_size=batch, epochs=91.0, eval_every=5000, checkpoint_every=2000, log_every=50,
        eval_batch_size=1024,
    )  # fmt: skip
    return finish(config, arg)
