"""The settings of a run, as frozen dataclasses.

A config file exports ``get_config(arg)`` and starts from :func:`default`. :func:`resolve` turns
the ConfigDict, command-line overrides included, into a :class:`Config`; an unknown key is an error
that names the nearest valid one. :func:`digest` names the experiment: two runs with the same digest
compute the same numbers. Everything that cannot change a number (where to log, how many loader
workers), or decides only whether a run gives up, lies outside the digest, and so do the sections
of tasks that are not the run's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from crate_jax.settings import (
    ConfigError,
    added,
    as_dict,
    beyond_digest,
    check_ranges,
    check_type,
    common_settings,
    differences,
    digest,
    nearest,
    numeric_part,
    section,
    to_config_dict,
)

__all__ = [
    "CTRLConfig",
    "ClassifyConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "MCR2Config",
    "MeshConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "added",
    "as_dict",
    "beyond_digest",
    "check_ranges",
    "check_type",
    "common_settings",
    "default",
    "differences",
    "digest",
    "nearest",
    "numeric_part",
    "resolve",
    "section",
    "to_config_dict",
]


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
        ``pad_to`` (the same to ``image_size`` instead of the image's own), ``center`` or ``none``,
        in training.
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
      jitter: strengths of brightness, contrast, saturation and hue (torchvision's ColorJitter) in
        training, colour images only; zeros are off.
      jitter_probability: of an image to be jittered.
      grayscale: probability of an image to lose its colours, in training.
      label_noise: fraction of the training labels that are replaced by uniform draws.
      label_noise_seed: of the choice of these labels and of the draws, once for the run.
      views: images of a batch that come from one record, view 0 without augmentation; a batch is
        ``batch_size / views`` records.
      shuffle: whether the training records are read in a new random order each epoch.
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
    jitter: tuple[float, float, float, float] = added((0.0, 0.0, 0.0, 0.0))
    jitter_probability: float = added(0.8)
    grayscale: float = added(0.0)
    label_noise: float = added(0.0)
    label_noise_seed: int = added(10)
    views: int = added(1)
    shuffle: bool = added(True)
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
      name: ``cosine``, ``linear``, ``rsqrt``, ``constant``, ``multistep`` or ``epoch_cosine`` (the
        CRATE code's: once an epoch, ``min((e+1)/warmup_epochs, (1 + cos(pi e/E))/2)``).
      warmup_steps, warmup_epochs: length of the linear warm-up; one of them at most is non-zero.
      final: the last learning rate as a fraction of the peak (cosine, linear).
      rsqrt_timescale: steps after which rsqrt has fallen to ``1/sqrt(2)``.
      milestones: epochs at which multistep multiplies the rate by ``step_factor``.
    """

    name: str = "cosine"
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    final: float = 0.0
    rsqrt_timescale: int = 10_000
    milestones: tuple[float, ...] = added(())
    step_factor: float = added(0.1)


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
class MCR2Config:
    """Rate reduction of the features: what system ``mcr2`` minimises.

        R^c(Z|Pi) - gamma2/2 logdet(I + gamma1 d/(N eps^2) Z^T Z) + lmbda/2 ||Z||_F^2

    Attributes:
      eps_sq: the papers' epsilon squared (what the released code calls ``eps``).
      gamma1, gamma2: factors of the expansion, 1 and 1 when supervised.
      lmbda: weight of the regularised problem (landscape paper), for features that are not
        normalised; 0 is off.
      lmb: the released code's name for ``lmbda / 2``; write one of them.
      classes: what a class is: ``labels``, or ``images``, where all views of an image are one.
      smoothing: s of soft memberships ``(1-s) onehot + s/K``; 0 is hard.
    """

    eps_sq: float = 0.5
    gamma1: float = 1.0
    gamma2: float = 1.0
    lmbda: float = 0.0
    lmb: float | None = None
    classes: str = "labels"
    smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class CTRLConfig:
    """The closed-loop game of system ``ctrl``, see ``objectives.closed_loop``.

    Attributes:
      objective: ``binary``, ``multi`` or ``alternating``.
      eps_sq: the papers' epsilon squared.
      gammas: weights of the three terms of ``multi``.
      encoder_steps: updates of the encoder, each against a detached transcription, before the
        decoder's one; all on the same batch.
      consistency: weight of ``mean ||z - z^||^2``, which both players lower; 0 is off.
      normalise_by: whose statistics the encoder's BatchNorm takes for a transcription in training:
        ``own``, the batch of transcriptions', as released, or ``image``, those of the images.
      dither: uniform noise from 0 to this that is added to a training image, on the scale of its
        normalised pixels; 0 is off.
      transform: of each training image: ``none``, or ``tmnist``, one of identity, 1.5 and 0.5 times
        the size, and 45 degrees to either side, drawn at random.
    """

    objective: str = "multi"
    eps_sq: float = 0.5
    gammas: tuple[float, float, float] = (1.0, 1.0, 1.0)
    encoder_steps: int = 1
    consistency: float = 0.0
    normalise_by: str = "own"
    dither: float = 0.0
    transform: str = "none"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is found out about the features at the end of a run, and by ``--mode=eval``.

    Attributes:
      evaluators: names from ``crate_jax.evaluate.EVALUATORS``.
      components: dimensions of each class's subspace.
      neighbors: k of the nearest neighbours, by cosine.
      svm_c: inverse weight of the linear SVM's regularisation.
      ensc_gamma, ensc_tau: weight of the fit and share of the l1 norm in elastic-net subspace
        clustering.
      cluster_samples: examples that are clustered; spectral methods cost their square.
    """

    evaluators: tuple[str, ...] = ()
    components: int = 30
    neighbors: int = 5
    svm_c: float = 1.0
    ensc_gamma: float = 300.0
    ensc_tau: float = 1.0
    cluster_samples: int = 2000


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


def _of_task(name: str, cls):
    """A section that only runs of one task have in their digest."""
    return dataclasses.field(default_factory=cls, metadata={"system": name})


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
    classify: ClassifyConfig = _of_task("classify", ClassifyConfig)
    mcr2: MCR2Config = _of_task("mcr2", MCR2Config)
    ctrl: CTRLConfig = _of_task("ctrl", CTRLConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(
        default_factory=EvaluateConfig, metadata={"digest": False}
    )
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata={"digest": False})
    profile: bool = beyond_digest(False)
    debug_nans: bool = beyond_digest(False)


def default() -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change; optional ones are placeholders."""
    return to_config_dict(Config())


def resolve(raw: ml_collections.ConfigDict | Mapping) -> Config:
    """The frozen :class:`Config` of a ConfigDict.

    Raises:
      ConfigError: on an unknown key, a value of the wrong type, or settings that contradict.
    """
    plain = raw.to_dict() if isinstance(raw, ml_collections.ConfigDict) else dict(raw)
    config = section(Config, plain, "config")
    _check(config)
    return config


_DTYPES = ("float32", "bfloat16")

_RANGES = (
    (
        "at least 1", lambda x: x >= 1,
        {"data": ("image_size", "num_classes", "views"),
         "evaluate": ("components", "neighbors", "cluster_samples"),
         "ctrl": ("encoder_steps",),
         "train": ("batch_size", "accumulate", "eval_batch_size")},
    ),
    (
        "at least 0", lambda x: x >= 0,
        {"data": ("workers", "crop_padding", "randaugment_layers"),
         "optimizer": ("learning_rate", "weight_decay"),
         "schedule": ("warmup_steps", "warmup_epochs"),
         "classify": ("mixup_alpha", "cutmix_alpha", "ortho_penalty"),
         "mcr2": ("gamma2", "lmbda", "lmb"), "ctrl": ("consistency", "dither"),
         "train": ("measure_batch", "eval_every", "checkpoint_every", "log_every", "keep_last",
                   "keep_best", "max_bad_steps")},
    ),
    (
        "at least 0 and below 1", lambda x: 0 <= x < 1,
        {"train": ("ema_decay",), "classify": ("label_smoothing",), "mcr2": ("smoothing",)},
    ),
    (
        "a fraction from 0 to 1", lambda x: 0 <= x <= 1,
        {"data": ("jitter_probability", "grayscale", "label_noise")},
    ),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, {"evaluate": ("ensc_tau",)}),
    (
        "above 0", lambda x: x > 0,
        {"optimizer": ("clip_norm",), "schedule": ("step_factor",), "mcr2": ("eps_sq", "gamma1"),
         "ctrl": ("eps_sq",),
         "evaluate": ("svm_c", "ensc_gamma")},
    ),
    (
        "at least 0 in every entry", lambda xs: all(x >= 0 for x in xs),
        {"data": ("jitter",), "schedule": ("milestones",)},
    ),
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
    if train.batch_size % data.views:
        raise ConfigError(
            f"config.train.batch_size={train.batch_size} does not divide over "
            f"config.data.views={data.views}; change one of them."
        )
    if config.mcr2.lmbda and config.mcr2.lmb is not None:
        raise ConfigError("set config.mcr2.lmbda or .lmb, not both; lmb is lmbda / 2.")
    if config.classify.label_smoothing and config.classify.on_value is not None:
        raise ConfigError("set config.classify.label_smoothing or .on_value, not both.")
    if (config.classify.on_value is None) != (config.classify.off_value is None):
        raise ConfigError("set config.classify.on_value and .off_value together.")
