"""Fine-tuning CRATE from ImageNet weights (arXiv 2306.01129, transfer table).

    python -m crate_jax.main --config configs/crate/finetune.py:data=cifar10,variant=B \\
        --config.train.init_from=CHECKPOINT --workdir D

``CHECKPOINT`` is the workdir of an ImageNet run, or what ``crate_jax.convert`` wrote.
Expected top-1, as published (T, S, B, L):
  cifar10 95.5 96.0 96.8 97.2     cifar100 78.9 81.0 82.7 83.6
  flowers 84.6 87.1 88.7 88.3     pets     81.4 84.9 85.3 87.4
Cost: B/16 is 38 GFLOP an image and step, so 9.8 TFLOP a step; 200 epochs of CIFAR are 39,000
steps.

The whole classifier head, its LayerNorm included, starts afresh, as in the released code. That
code steps its cosine two epochs late, which is not copied. Flowers trains on its 1,020 training
images alone.
Layers compute in bfloat16, where the official code trained under fp16 autocast;
--config.model.dtype=float32 switches.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.recipe import choose, finish, parse_arg

DATA = {
    "cifar10": {"tfds": "cifar10", "classes": 10, "lr": 5e-5, "epochs": 200.0},
    "cifar100": {"tfds": "cifar100", "classes": 100, "lr": 5e-5, "epochs": 200.0},
    "flowers": {"tfds": "oxford_flowers102", "classes": 102, "lr": 1e-4, "epochs": 400.0},
    "pets": {"tfds": "oxford_iiit_pet", "classes": 37, "lr": 1e-4, "epochs": 400.0},
}


def get_config(arg=None):
    """Arguments: ``data`` (a key of ``DATA``), ``variant`` (T, S, B, L), ``smoke``,
    ``debug_nans``."""
    arg = parse_arg(arg, data="cifar10", variant="B")
    row = choose("data", arg.data, DATA)
    choose("variant", arg.variant.partition("/")[0], models.MODELS["crate"][1])
    config = default()
    config.model = models.settings("crate", variant=arg.variant, dtype="bfloat16", scan_layers=True)
    config.data.update(
        source=f"tfds:{row['tfds']}", num_classes=row["classes"], image_size=224, channels=3,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop="inception", flip=True,
        randaugment_layers=2, randaugment_magnitude=14.0, randaugment_kind="torchvision",
        eval_resize="square", workers=16,
    )  # fmt: skip
    config.optimizer.update(
        name="adamw", learning_rate=row["lr"], weight_decay=0.01, decay_mask="all"
    )
    config.schedule.name = "epoch_cosine"
    config.train.update(
        batch_size=256, epochs=row["epochs"], init_skip=("head", "norm"), eval_every=1000,
        checkpoint_every=500, log_every=50,
    )  # fmt: skip
    return finish(config, arg)
