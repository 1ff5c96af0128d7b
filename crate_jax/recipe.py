"""What config files share: their arguments after the colon, and the size that runs anywhere."""

from types import SimpleNamespace

from ml_collections import ConfigDict

from crate_jax.config import ConfigError, nearest

_SMALL = {
    "width": 8, "hidden": 32, "feature_dim": 16, "widths": (8,), "nz": 8, "down": (8, 8),
    "flat": 8, "bottom": 8, "up": (8, 8), "depths": (1, 1, 1, 1),
}  # fmt: skip
"""Sizes of a network without patches, where it has them."""

_WORDS = {"true": True, "false": False, "1": True, "0": False}


def parse_arg(arg: str | None, **defaults) -> SimpleNamespace:
    """``variant=B,smoke`` as attributes; a bare word is a switch turned on.

    Args:
      arg: what follows the colon of ``--config FILE:ARG``.
      **defaults: every argument of the file, with its default; the default's type is kept. All
        files of runs have ``smoke`` and ``debug_nans``, see :func:`finish`.

    Raises:
      ConfigError: on an unknown argument, or a value of the wrong type.
    """
    return _parse(arg, {"smoke": False, "debug_nans": False} | defaults)


def parse_study_arg(arg: str | None, **defaults) -> SimpleNamespace:
    """As :func:`parse_arg`, for the file of a study: all have ``smoke``."""
    return _parse(arg, {"smoke": False} | defaults)


def _parse(arg: str | None, values: dict) -> SimpleNamespace:
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in values:
            raise ConfigError(f"this config file has no argument {key!r}{nearest(key, values)}")
        kind = type(values[key])
        try:
            if kind is bool:
                values[key] = _WORDS[text.lower()] if equals else True
            elif not equals:
                raise ValueError
            else:
                values[key] = kind(text)
        except (KeyError, ValueError):
            raise ConfigError(
                f"config argument {item!r}: write {key}= and a value of type {kind.__name__}."
            ) from None
    return SimpleNamespace(**values)


def choose(name: str, value: str, table: dict):
    """``table[value]``, or a sentence that lists what the argument ``name`` takes."""
    if value not in table:
        raise ConfigError(f"config argument {name}={value!r}{nearest(value, table)}")
    return table[value]


def finish(config: ConfigDict, arg: SimpleNamespace) -> ConfigDict:
    """What every config file returns: its config, with the arguments that all files have."""
    config.debug_nans = arg.debug_nans
    return shrink(config) if arg.smoke else config


def shrink(config: ConfigDict) -> ConfigDict:
    """The ``:smoke`` size of a recipe: two steps of a tiny model on synthetic images.

    Optimizer, augmentation, loss and the model's switches stay as they are, and so does the
    schedule but for its warm-up, which goes, or is one step where it is counted in steps. A network
    without patches keeps the size of its images.
    """
    model, data, train = config.model, config.data, config.train
    if "patch" in model:
        patch = model.patch or int(model.variant.partition("/")[2])
        model.update(variant=None, width=32, depth=2, heads=4, patch=patch)
        data.image_size, data.eval_resize_size = 2 * patch, 2 * patch + 4
    else:
        model.update({key: size for key, size in _SMALL.items() if key in model})
        if "nz" in model:  # a transcription has no size but that of its stages
            model.variant, data.image_size, data.eval_resize_size = None, 16, 16
    data.source, data.data_dir, data.workers = "synthetic", None, 0
    data.train_split, data.eval_split = "train", "test"
    data.views = min(data.views, 4)
    config.evaluate.update(cluster_samples=max(64, 2 * (data.num_classes or 0)), components=4)
    train.update(
        steps=2, epochs=None, batch_size=16, eval_batch_size=16, measure_batch=4,
        eval_every=0, checkpoint_every=0, log_every=1, init_from=None,
    )  # fmt: skip
    config.schedule.warmup_steps = min(config.schedule.warmup_steps, 1)
    config.schedule.warmup_epochs = 0.0
    return config
