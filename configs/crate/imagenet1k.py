"""CRATE on ImageNet-1k (Yu et al. 2023, arXiv 2306.01129, table 1), and ViT for comparison.

    python -m crate_jax.main --config configs/crate/imagenet1k.py:variant=B,preset=paper --workdir D

Expected top-1, as published: CRATE T 66.7, S 69.2, B 70.8, L 71.3; ViT T 71.5, S 72.4.
Cost, as published for B: 240 s an epoch on 16 A100-40GB, so 10 hours for 150 epochs.

Presets:
  paper     Lion 2.4e-4, decay 0.5, batch 2048, 5 epochs of warm-up, 150 epochs, cosine by step.
  repo      the released README: Lion 2e-4, decay 0.05, batch 512, 200 epochs, with the released
            schedule (once an epoch, a 20-epoch warm-up clipped into the cosine).
  defaults  the released main.py untouched: AdamW 4e-4, decay 0.1, batch 512, 90 epochs.
All decay every parameter, norms, positions and class token included, as the released code does.
Layers compute in bfloat16, where the official code trained under fp16 autocast;
--config.model.dtype=float32 switches.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.recipe import choose, finish, parse_arg

PRESETS = {
    "paper": {
        "optimizer": {"name": "lion", "learning_rate": 2.4e-4, "weight_decay": 0.5},
        "schedule": {"name": "cosine", "warmup_epochs": 5.0},
        "train": {"batch_size": 2048, "epochs": 150.0},
    },
    "repo": {
        "optimizer": {"name": "lion", "learning_rate": 2e-4, "weight_decay": 0.05},
        "schedule": {"name": "epoch_cosine", "warmup_epochs": 20.0},
        "train": {"batch_size": 512, "epochs": 200.0},
    },
    "defaults": {
        "optimizer": {"name": "adamw", "learning_rate": 4e-4, "weight_decay": 0.1},
        "schedule": {"name": "epoch_cosine", "warmup_epochs": 20.0},
        "train": {"batch_size": 512, "epochs": 90.0},
    },
}


def get_config(arg=None):
    """Arguments: ``model`` (crate, vit), ``variant`` (T, S, B, L), ``preset``, ``smoke``,
    ``debug_nans``."""
    arg = parse_arg(arg, model="crate", variant="B", preset="paper")
    config = default()
    choose("model", arg.model, {"crate": None, "vit": None})
    choose("variant", arg.variant.partition("/")[0], models.MODELS[arg.model][1])
    for section, settings in choose("preset", arg.preset, PRESETS).items():
        config[section].update(settings)
    config.model = models.settings(
        arg.model, variant=arg.variant, dtype="bfloat16", scan_layers=True
    )
    config.data.update(
        source="tfds:imagenet2012", train_split="train", eval_split="validation", num_classes=1000,
        image_size=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        crop="inception", flip=True, eval_resize="shorter", eval_resize_size=256, workers=16,
    )  # fmt: skip
    config.optimizer.decay_mask = "all"
    config.classify.label_smoothing = 0.1
    config.train.update(eval_every=2500, checkpoint_every=1000, log_every=50, eval_batch_size=1024)
    return finish(config, arg)
