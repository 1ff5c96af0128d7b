"""From the ConfigDict of a config file to frozen dataclasses, once.

A config file exports ``get_config(arg)`` and starts from :func:`default`. :func:`resolve` turns
the ConfigDict, command-line overrides included, into a :class:`Config`; an unknown key is an error
that names the nearest valid one. :func:`digest` names the experiment: two runs with the same digest
compute the same numbers. Everything that cannot change a number (where to log, how many loader
workers), or decides only whether a run gives up, lies outside the digest.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """What is wrong with a config, where, and what to write instead."""


def beyond_digest(default, *, per_host: bool = False):
    """A field that changes how a run is carried out, or when it gives up, and no number.

    Args:
      default: of the field.
      per_host: whether the processes of one run may each have their own.
    """
    return dataclasses.field(default=default, metadata={"digest": False, "per_host": per_host})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how an image becomes an array.

    Attributes:
      source: ``digits``, ``tfds:NAME`` (any prepared TFDS data set, ``tfds:NAME:VERSION`` too),
        ``folder:PATH`` (one folder a class), ``array:NAME`` (see ``data.register_arrays``) or
        ``synthetic`` (random images, for benchmarks).
      data_dir: root of the TFDS files; None means TFDS's own default.
      train_split, eval_split: TFDS split expressions, or ``train`` / ``test``.
      num_classes: number of classes of the data set.
      image_size: side of the square image that the model sees, in pixels.
      channels: image channels, 1 or 3.
      mean, std: per-channel normalisation on the scale [0, 1].
      crop: ``inception`` (random resized crop), ``pad`` (reflect-free zero pad and crop),
        ``center`` or ``none``, in training.
      crop_area: area range of the inception crop, as fractions.
      crop_padding: pixels of zero padding before a ``pad`` crop.
      interpolation: ``bilinear``, ``bicubic``, ``area`` or ``lanczos``.
      flip: random horizontal flip in training.
      randaugment_layers: operations drawn for each image by RandAugment; 0 is off.
      randaugment_magnitude: RandAugment's magnitude, on its scale of 10 (30 for ``torchvision``).
      randaugment_kind: ``timm`` (increasing, each operation with probability 0.5, noise 0.5) or
        ``torchvision``.
      eval_resize: ``shorter`` side to ``eval_resize_size`` and centre crop, or ``square``.
      eval_resize_size: pixels of the shorter side at evaluation.
      eval_interpolation: as ``interpolation``, at evaluation.
      on_bad_image: ``fail``, or ``skip``: counted, in training replaced by the next readable
        record, in evaluation left out.
      workers: loader processes; 0 decodes in the main process. Any number gives the same batches.
    """

    source: str = "digits"
    data_dir: str | None = beyond_digest(None, per_host=True)
    train_split: str = "train"
    eval_split: str = "test"
    num_classes: int = 10
    image_size: int = 8
    channels: int = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop: str = "none"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_padding: int = 4
    interpolation: str = "bilinear"
    flip: bool = False
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_kind: str = "timm"
    eval_resize: str = "square"
    eval_resize_size: int = 256
    eval_interpolation: str = "bilinear"
    on_bad_image: str = beyond_digest("fail")
    workers: int = beyond_digest(0, per_host=True)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name with its hyperparameters; None means the optimizer's own default.

    A hyperparameter that the named optimizer does not have must stay None.

    Attributes:
      name: a key of ``crate_jax.optim.OPTIMIZERS``.
      learning_rate: peak learning rate, the factor on the schedule.
      weight_decay: decoupled weight decay where the optimizer has it, L2 in the gradient where it
        does not.
      decay_mask: which parameters decay: ``all``, ``matrices`` (the kernels, dictionaries and
        embeddings, by path) or ``kernels`` (names that end in ``/kernel``: CRATE-alpha's rule).
      clip_norm: global-norm clip of the gradient before everything else (under ``sam`` of the
        gradient that the step takes, at the perturbed point); None is off.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float | None = None
    decay_mask: str = "matrices"
    clip_norm: float | None = None
    b1: float | None = None
    b2: float | None = None
    b3: float | None = None
    eps: float | None = None
    momentum: float | None = None
    decay: float | None = None
    mu_dtype: str | None = None
    rho: float | None = None
    ns_steps: int | None = None
    d_coef: float | None = None
    gamma: float | None = None
    trust_coefficient: float | None = None
    update_interval: int | None = None
    initial_accumulator_value: float | None = None
    factored: bool | None = None
    min_dim_size_to_factor: int | None = None


HYPERPARAMETERS = tuple(
    field.name
    for field in dataclasses.fields(OptimizerConfig)
    if field.name not in ("name", "learning_rate", "weight_decay", "decay_mask", "clip_norm")
)
"""The settings of an optimizer that another may not have."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate factor over the run: 0 -> 1 over the warm-up, then the named decay.

    Attributes:
      name: ``cosine``, ``linear``, ``rsqrt``, ``constant`` or ``epoch_cosine`` (the CRATE code's:
        once an epoch, ``min((e+1)/warmup_epochs, (1 + cos(pi e/E))/2)``).
      warmup_steps, warmup_epochs: length of the linear warm-up; one of them at most is non-zero.
      final: the last learning rate as a fraction of the peak (cosine, linear).
      rsqrt_timescale: steps after which rsqrt has fallen to ``1/sqrt(2)``.
    """

    name: str = "cosine"
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    final: float = 0.0
    rsqrt_timescale: int = 10_000


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """The classification task's loss and its on-device augmentation.

    Attributes:
      label_smoothing: s; the target is ``(1-s) onehot + s/K``, unless ``off_value`` is given.
      on_value, off_value: explicit targets (CRATE-alpha fine-tuning: 0.9 and 1e-4).
      mixup_alpha, cutmix_alpha: Beta parameters; 0 is off. Where both are on, one is drawn a step.
      ortho_penalty: factor on ``sum_k ||U_k^T U_k - I||_F^2`` over layers and heads; 0 is off.
    """

    label_smoothing: float = 0.0
    on_value: float | None = None
    off_value: float | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    ortho_penalty: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of a run.

    Attributes:
      batch_size: global batch, over all devices and accumulation steps.
      steps, epochs: length; exactly one of them is set.
      accumulate: microbatches whose gradients are averaged before one update.
      ema_decay: decay of the exponential moving average of parameters; 0 is off.
      eval_every, checkpoint_every, log_every: in steps; 0 is off (evaluation and checkpoint still
        come at the end).
      eval_batch_size: global batch at evaluation.
      measure_batch: images of the fixed validation batch that measures the layers; 0 is off.
      init_from: a run's workdir or a converted checkpoint to start the parameters from.
      init_checkpoint: which of its checkpoints: ``latest``, ``best`` or a step.
      init_skip: path prefixes left at their fresh values when starting from ``init_from``.
      max_bad_steps: consecutive non-finite steps before the run aborts.
      keep_last, keep_best: checkpoints kept; best by ``best_metric``.
      best_metric: ``eval/`` and a metric of the system; higher is better, but for ``eval/loss``.
    """

    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    accumulate: int = 1
    ema_decay: float = 0.0
    eval_every: int = beyond_digest(0)
    checkpoint_every: int = beyond_digest(0)
    log_every: int = beyond_digest(10)
    eval_batch_size: int = 256
    measure_batch: int = 64
    init_from: str | None = None
    init_checkpoint: str = "latest"
    init_skip: tuple[str, ...] = ()
    max_bad_steps: int = beyond_digest(5)
    keep_last: int = beyond_digest(2)
    keep_best: int = beyond_digest(1)
    best_metric: str = beyond_digest("eval/accuracy")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out; changes no number beyond rounding.

    Attributes:
      preset: ``dp`` (copies of everything), ``fsdp`` (parameters, moments and averages split over
        all devices), ``fsdp_tp`` (over half of them, heads and atoms over pairs) or ``hybrid``
        (fsdp within a slice, copies between slices).
      slice, data, fsdp, tensor: devices along an axis, instead of the preset's; -1 takes what is
        left (one axis at most).
    """

    preset: str = "dp"
    slice: int | None = None
    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      system: the task.
      seed: of the parameters, the order and augmentation of the data, and all noise.
      model: ``name`` plus any field of that model, checked by ``models.create``.
      profile: trace a few steps into ``WORKDIR/profile``, for XProf.
      debug_nans: stop at the first step that is not finite, name the operation, and write down what
        it was given; slower, and ``FILE:debug_nans`` for short.
    """

    system: str = "classify"
    seed: int = 0
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    classify: ClassifyConfig = dataclasses.field(default_factory=ClassifyConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata={"digest": False})
    profile: bool = beyond_digest(False)
    debug_nans: bool = beyond_digest(False)


def default() -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change; optional ones are placeholders."""
    return to_config_dict(Config())


def _optional_type(annotation):
    """``T`` of ``T | None``, else None."""
    if isinstance(annotation, types.UnionType):
        inner = [t for t in typing.get_args(annotation) if t is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return None


def to_config_dict(section) -> ml_collections.ConfigDict:
    """The ConfigDict of a dataclass; an optional field that is None becomes a placeholder."""
    out = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(value, Mapping):
            value = ml_collections.ConfigDict(dict(value))
        elif value is None:
            value = ml_collections.config_dict.placeholder(_optional_type(hints[field.name]))
        out[field.name] = value
    return out


def resolve(raw: ml_collections.ConfigDict | Mapping) -> Config:
    """The frozen :class:`Config` of a ConfigDict.

    Raises:
      ConfigError: on an unknown key, a value of the wrong type, or settings that contradict.
    """
    plain = raw.to_dict() if isinstance(raw, ml_collections.ConfigDict) else dict(raw)
    config = section(Config, plain, "config")
    _check(config)
    return config


def nearest(name: str, valid) -> str:
    """``; did you mean 'x'? Valid: ...``, for the end of an error about ``name``."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Valid: {', '.join(valid)}."


def section(cls, plain: Mapping, path: str):
    """An instance of the dataclass ``cls`` from a plain dict.

    Args:
      cls: a frozen dataclass; fields may be dataclasses themselves.
      plain: its fields by name; those left out keep their defaults.
      path: how an error names the section, ``config.train`` say.

    Raises:
      ConfigError: on an unknown key, with the nearest valid one, or a value of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{path} is a section of settings; got {plain!r}.")
    hints = typing.get_type_hints(cls)
    for key in plain:
        if key not in hints:
            raise ConfigError(f"{path}.{key} is not a setting{nearest(key, hints)}")
    return cls(**{key: _value(hints[key], value, f"{path}.{key}") for key, value in plain.items()})


def _value(annotation, value, path: str):
    if dataclasses.is_dataclass(annotation):
        return section(annotation, value, path)
    optional = _optional_type(annotation)
    if optional is not None:
        return None if value is None else _value(optional, value, path)
    origin = typing.get_origin(annotation)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path} must be a list; got {value!r}.")
        kinds = typing.get_args(annotation)
        if Ellipsis not in kinds and len(value) != len(kinds):
            raise ConfigError(f"{path} must have {len(kinds)} entries; got {value!r}.")
        return tuple(_value(kinds[0], v, path) for v in value)
    if origin is not None:  # the model's mapping: models.create checks it
        return _plain(value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise ConfigError(f"{path} must be {annotation.__name__}; got {value!r}.")
    return value


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


_DTYPES = ("float32", "bfloat16")

_RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        {"data": ("image_size", "num_classes"),
         "train": ("batch_size", "accumulate", "eval_batch_size")},
    ),
    (
        "at least 0", lambda x: x >= 0,
        {"data": ("workers", "crop_padding", "randaugment_layers"),
         "optimizer": ("learning_rate", "weight_decay"),
         "schedule": ("warmup_steps", "warmup_epochs"),
         "classify": ("mixup_alpha", "cutmix_alpha", "ortho_penalty"),
         "train": ("measure_batch", "eval_every", "checkpoint_every", "log_every", "keep_last",
                   "keep_best", "max_bad_steps")},
    ),
    (
        "at least 0 and below 1", lambda x: 0 <= x < 1,
        {"train": ("ema_decay",), "classify": ("label_smoothing",)},
    ),
    ("above 0", lambda x: x > 0, {"optimizer": ("clip_norm",)}),
    ("above 0 in every entry", lambda xs: all(x > 0 for x in xs), {"data": ("std",)}),
    (
        "two fractions LOW <= HIGH, above 0 and at most 1", lambda xs: 0 < xs[0] <= xs[1] <= 1,
        {"data": ("crop_area",)},
    ),
    (" or ".join(_DTYPES), lambda x: x in _DTYPES, {"optimizer": ("mu_dtype",)}),
)  # fmt: skip
"""What is allowed, its test, and the settings that it is asked of; None passes where it may stand.

A test is written so that nan fails it.
"""


def check_ranges(config, ranges, path: str = "config") -> None:
    """Raises about the first setting that is not allowed.

    Args:
      config: a dataclass of settings.
      ranges: see :data:`_RANGES`; the section "" is the dataclass itself.
      path: how an error names it.
    """
    for allowed, test, sections in ranges:
        for section, names in sections.items():
            part = getattr(config, section) if section else config
            for name in names:
                value = getattr(part, name)
                if value is not None and not test(value):
                    where = ".".join(filter(None, (path, section, name)))
                    raise ConfigError(f"{where} must be {allowed}; got {value!r}.")


def _check(config: Config) -> None:
    train, data, schedule = config.train, config.data, config.schedule
    check_ranges(config, _RANGES)
    if (train.steps is None) == (train.epochs is None):
        raise ConfigError("set exactly one of config.train.steps and config.train.epochs.")
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"config.train.batch_size={train.batch_size} does not divide over "
            f"config.train.accumulate={train.accumulate}; change one of them."
        )
    if schedule.warmup_steps and schedule.warmup_epochs:
        raise ConfigError("set config.schedule.warmup_steps or .warmup_epochs, not both.")
    for name in ("mean", "std"):
        if len(getattr(data, name)) not in (1, data.channels):
            raise ConfigError(
                f"config.data.{name} has {len(getattr(data, name))} entries for "
                f"config.data.channels={data.channels}; write one, or one a channel."
            )
    if config.classify.label_smoothing and config.classify.on_value is not None:
        raise ConfigError("set config.classify.label_smoothing or .on_value, not both.")
    if (config.classify.on_value is None) != (config.classify.off_value is None):
        raise ConfigError("set config.classify.on_value and .off_value together.")


def as_dict(config) -> dict:
    """Plain nested dict of a config or of one section, for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Mapping, new: Mapping, path: str = "config") -> list[str]:
    """One line for each key at which two plain dicts differ, ``config.a.b: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{path}.{key}")
        elif a != b:
            lines.append(f"{path}.{key}: {a!r} -> {b!r}")
    return lines


def numeric_part(config) -> dict:
    """The part of a config, or of a study's settings, that decides its numbers, as a plain dict."""
    return _part(config, lambda metadata: metadata.get("digest", True))


def common_settings(config) -> dict[str, str]:
    """The settings that all processes of a run must share, ``{"config.train.steps": "800"}``."""
    flat = {}

    def spread(value, path):
        if isinstance(value, Mapping) and value:
            for key, part in value.items():
                spread(part, f"{path}.{key}")
        else:
            flat[path] = json.dumps(value)

    spread(_part(config, lambda metadata: not metadata.get("per_host", False)), "config")
    return flat


def _part(config, wanted) -> dict:
    """The fields, nested, whose metadata is ``wanted``, as a plain dict."""

    def keep(section):
        out = {}
        for field in dataclasses.fields(section):
            if wanted(field.metadata):
                value = getattr(section, field.name)
                out[field.name] = keep(value) if dataclasses.is_dataclass(value) else value
        return out

    return json.loads(json.dumps(keep(config)))


def digest(config) -> str:
    """Twelve hex digits that name the numbers of a run."""
    text = json.dumps(numeric_part(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
