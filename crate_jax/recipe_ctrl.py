"""What the config files of closed-loop transcription share: nets, objective, optimizer, presets."""

from types import SimpleNamespace

from ml_collections import ConfigDict

from crate_jax import models
from crate_jax.config import default
from crate_jax.models.dcgan import ENCODERS, TIED
from crate_jax.objectives.closed_loop import OBJECTIVES
from crate_jax.recipe import choose

DCGAN_BETAS, SNGAN_BETAS = (0.5, 0.999), (0.0, 0.9)
"""Adam's, by the net of the plain encoder: the small one collapses with the other's."""


def closed_loop(
    arg: SimpleNamespace, *, variant: str, nz: int, batch_size: int, steps: int,
    betas: tuple[float, float] = DCGAN_BETAS, sngan: bool = False, **data,
) -> ConfigDict:  # fmt: skip
    """A run of the game by the released settings of CTRL.

    Args:
      arg: ``encoder``, ``objective`` and ``tied`` of the file.
      variant: a row of the model's size table.
      nz: numbers an image becomes.
      batch_size, steps: of the run.
      betas: Adam's.
      sngan: whether the plain encoder's net is the residual one.
      **data: settings of ``config.data``; images go to [-1, 1].
    """
    for name, words in (("encoder", ENCODERS), ("objective", OBJECTIVES), ("tied", TIED)):
        choose(name, getattr(arg, name), {word: word for word in words})
    config = default()
    config.system = "ctrl"
    if sngan and arg.encoder == "conv":
        config.model = models.settings("sngan", variant=variant, nz=nz)
    else:
        config.model = models.settings(
            "dcgan", variant=variant, encoder=arg.encoder, tied=arg.tied, nz=nz
        )
    config.data.update(mean=(0.5,), std=(0.5,), crop="none", eval_resize="square", **data)
    inner = 2 if arg.objective == "alternating" else 1
    config.ctrl.update(objective=arg.objective, encoder_steps=inner)
    config.optimizer.update(name="adam", learning_rate=1.5e-4, b1=betas[0], b2=betas[1])
    config.schedule.update(name="linear", final=0.0)
    config.train.update(
        batch_size=batch_size, steps=steps, eval_every=1000, checkpoint_every=500, log_every=50,
        eval_batch_size=400, measure_batch=0, best_metric="eval/psnr",
    )  # fmt: skip
    return config


def small(config: ConfigDict) -> None:
    """Makes a run one of a minute or two on a CPU core.

    So few steps of the game as released return no image: f, which normalises images and
    transcriptions apart, is blind to a wrong brightness, and its decoder lags behind. Here X^ is
    normalised as X, both players lower ``||z - z^||^2``, and the images have 16 x 16 pixels.
    """
    config.model.update(variant=None, widths=(16, 32), nz=32)
    config.data.image_size = 16
    config.ctrl.update(consistency=20.0, normalise_by="image")
    config.train.update(batch_size=128, steps=300, eval_every=100, log_every=10)
    config.optimizer.learning_rate = 3e-3


def digits(steps: int, encoder: str = "csc", seed: int = 0) -> ConfigDict:
    """A run of minutes on scikit-learn's 8 x 8 digits, for a look at the whole without data."""
    arg = SimpleNamespace(encoder=encoder, objective="multi", tied="false")
    config = closed_loop(
        arg, variant="8", nz=32, batch_size=256, steps=steps, source="digits", image_size=8,
        channels=1, num_classes=10,
    )  # fmt: skip
    config.seed = seed
    config.ctrl.update(consistency=20.0, normalise_by="image")
    config.optimizer.learning_rate = 3e-3
    config.train.update(eval_every=0, eval_batch_size=360, log_every=20)
    return config


def grid_member(settings, member) -> ConfigDict:
    """A run of the stability study: stages that halve the image to 4 pixels, widths that double."""
    side, stages = (8, 1) if settings.source == "digits" else (32, 3)
    arg = SimpleNamespace(encoder=member.encoder, objective=settings.objective, tied="false")
    config = closed_loop(
        arg, variant=str(side), nz=member.features, batch_size=member.batch, steps=settings.steps,
        source=settings.source, image_size=side,
        channels=1 if settings.source in ("digits", "tfds:mnist") else 3, num_classes=10,
    )  # fmt: skip
    config.seed, config.data.data_dir = member.seed, settings.data_dir
    config.model.update(variant=None, widths=tuple(member.width << i for i in range(stages)))
    config.ctrl.update(consistency=settings.consistency, normalise_by=settings.normalise_by)
    config.optimizer.learning_rate = member.rate
    every = max(settings.steps // settings.points, 1)
    config.train.update(
        eval_every=every, checkpoint_every=every, eval_batch_size=360, keep_best=0, log_every=every
    )
    return config
