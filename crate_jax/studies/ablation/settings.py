"""What the ablation varies and how long it trains; one static combination is a cell."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crate_jax.config import ConfigError, added, beyond_digest, check_ranges, nearest
from crate_jax.data import backcopy, bigram
from crate_jax.models import backcopy as transformer
from crate_jax.models.backcopy import FROZEN, NORMS, POSITIONS, BackcopyTransformer
from crate_jax.ops import attention_maps
from crate_jax.studies.ablation import optimizers
from crate_jax.studies.ablation.optimizers import LearningRates

BLOCKS = {"TF": (), "Attn": ("no_mlp",), "MLP": ("no_attention",), "Lin": ("linear_mlp",)}
"""Kinds of layers, with the model's switches that make them: a whole one, attention alone, MLP
alone, and attention with a linear map for the MLP."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A combination that needs a compilation of its own.

    Attributes:
      layers: how many, or their kinds from the first on, ``TF+TF+MLP``; see :data:`BLOCKS`.
      attention: a key of ``attention_maps.KINDS``.
      optimizer: one of the sweep's, with hyperparameters if need be: ``adamw:b2=0.999:eps=1e-6``.
      norm: ``pre``, ``post``, ``none`` or ``rms``.
      triggers: number k of trigger tokens.
      task: of the data.
    """

    layers: str = "1"
    attention: str = "softmax"
    optimizer: str = "adamw"
    norm: str = "pre"
    triggers: int = 3
    task: str = "backcopy"

    @property
    def blocks(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return ("TF",) * int(self.layers) if self.layers.isdecimal() else (*self.layers.split("+"),)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def attentive(self) -> tuple[int, ...]:
        """The layers that have attention."""
        return tuple(l for l, kind in enumerate(self.blocks) if kind != "MLP")

    @property
    def name(self) -> str:
        """Names its files and rows; what is as in the paper's main experiment is left out."""
        parts = [self.layers, self.attention, self.optimizer.replace(":", "-")]
        parts += [self.norm] * (self.norm != "pre")
        parts += [f"k{self.triggers}"] * (self.triggers != 3)
        return "_".join([*parts, *[self.task] * (self.task != "backcopy")])


@dataclasses.dataclass(frozen=True)
class Grid:
    """The axes of the ablation: every combination is a cell."""

    layers: tuple[str, ...] = ("1",)
    attention: tuple[str, ...] = ("softmax",)
    optimizer: tuple[str, ...] = ("adamw",)
    norm: tuple[str, ...] = ("pre",)
    triggers: tuple[int, ...] = (3,)
    task: tuple[str, ...] = ("backcopy",)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs inside a cell: seeds x learning rates x weight decays, all in one compiled step.

    Attributes:
      seeds: how many; seed s starts from the same weights and sees the same data in all its runs.
      learning_rate_factors: on the learning rate of the optimizer; of several, and of several
        decays, those with the least loss speak for the cell.
      weight_decays: decoupled, or L2 for the optimizers of the SGD family.
      devices: along the mesh axis that the runs are split over; 0 takes as many of those that are
        here as divide the runs.
      data_devices: along the mesh axis that the batch is split over.
    """

    seeds: int = 5
    learning_rate_factors: tuple[float, ...] = (1.0,)
    weight_decays: tuple[float, ...] = (1e-4,)
    devices: int = beyond_digest(0)
    data_devices: int = beyond_digest(1)


@dataclasses.dataclass(frozen=True)
class Model:
    """The transformer, apart from what the cells vary; see ``models.backcopy``."""

    width: int = 256
    heads: int = 1
    hidden: int | None = None
    positions: str = "learned"
    final_norm: bool | None = None
    tie_output: bool = False
    no_wv: bool = False
    no_wo: bool = False
    frozen: tuple[str, ...] = ()
    no_attention_norm: tuple[int, ...] = added(())
    no_mlp_norm: tuple[int, ...] = added(())


@dataclasses.dataclass(frozen=True)
class Data:
    """The sequences.

    Attributes:
      law: of the transitions: ``synthetic``, ``tfds:tiny_shakespeare``, ``text:PATH`` or
        ``npz:PATH``.
      data_dir: root of the TFDS files.
      length: N, tokens that the model sees.
      batch: sequences a step, all of them new.
      n_bos: beginnings of sequence, 0, 1 or 2.
      delimiter: probability that an ordinary token is followed by the delimiter.
      copy_probability: of the interpolated task.
    """

    law: str = "synthetic"
    data_dir: str | None = beyond_digest(None)
    length: int = 256
    batch: int = 512
    n_bos: int = 1
    delimiter: float = 0.0
    copy_probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Train:
    """Length and rhythm.

    Attributes:
      steps: updates of every run.
      every, every_until, every_after: the metrics are taken every ``every`` updates up to
        ``every_until``, and every ``every_after`` beyond, at 0 and at the end.
      evaluation_batch: sequences of the fixed batch that they are taken on.
      official_evaluation: take them on the sequences of the official notebooks, which have the
        published numbers, with the law of tiny Shakespeare; of ``backcopy`` alone.
      checkpoint_seconds: at least so long between checkpoints of a cell under way.
    """

    steps: int = 10_000
    every: int = 20
    every_until: int = 10_000
    every_after: int = 200
    evaluation_batch: int = 512
    official_evaluation: bool = added(False)
    checkpoint_seconds: float = beyond_digest(60.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The ablation study.

    Attributes:
      study: its name.
      seed: of everything random.
      grid: axes whose product the cells are.
      cells: where not empty, the cells one by one instead, ``layers=3,optimizer=sgdm`` each; what
        one leaves out is the first of the grid's axis.
      sweep: the runs inside a cell.
      learning_rate: by optimizer.
      model, data, train: common to all cells.
    """

    study: str = "ablation"
    seed: int = 0
    grid: Grid = dataclasses.field(default_factory=Grid)
    cells: tuple[str, ...] = ()
    sweep: Sweep = dataclasses.field(default_factory=Sweep)
    learning_rate: LearningRates = dataclasses.field(default_factory=LearningRates)
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    train: Train = dataclasses.field(default_factory=Train)


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs inside a cell."""

    seed: int
    learning_rate: float
    weight_decay: float


def list_cells(settings: Settings) -> list[Cell]:
    """The cells in order.

    Raises:
      ConfigError: on a field or a value that is none.
    """
    axes = dataclasses.asdict(settings.grid)
    for axis, values in axes.items():
        if not values:
            raise ConfigError(f"config.grid.{axis} is empty; write one value at least.")
    if not settings.cells:
        cells = [Cell(*values) for values in itertools.product(*axes.values())]
    else:
        first = {axis: values[0] for axis, values in axes.items()}
        cells = [_parse_cell(text, first) for text in settings.cells]
    for cell in cells:
        _check_cell(cell)
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the cell {twice[0]} is asked for twice; take one out.")
    return cells


def list_runs(settings: Settings, cell: Cell) -> list[Run]:
    """The runs of a cell: seeds vary fastest."""
    sweep = settings.sweep
    rate = optimizers.learning_rate(
        settings.learning_rate, cell.optimizer, cell.attention, cell.depth
    )
    return [
        Run(seed, rate * factor, decay)
        for factor in sweep.learning_rate_factors
        for decay in sweep.weight_decays
        for seed in range(sweep.seeds)
    ]


def log_steps(train: Train) -> list[int]:
    """The updates after which metrics are taken."""
    dense = range(0, min(train.every_until, train.steps) + 1, train.every)
    sparse = range(train.every_until + train.every_after, train.steps + 1, train.every_after)
    return sorted({*dense, *sparse, train.steps})


def task_of(settings: Settings, cell: Cell) -> backcopy.Task:
    """The data of a cell."""
    data = settings.data
    return backcopy.Task(
        cell.task, data.length, data.n_bos, cell.triggers, data.delimiter, data.copy_probability
    )


def make_model(settings: Settings, cell: Cell, vocab: int) -> BackcopyTransformer:
    """The transformer of a cell."""
    switches = {
        name: tuple(l for l, kind in enumerate(cell.blocks) if name in BLOCKS[kind])
        for name in ("no_attention", "no_mlp", "linear_mlp")
    }
    model = settings.model
    return BackcopyTransformer(
        vocab=vocab, width=model.width, depth=cell.depth, heads=model.heads, hidden=model.hidden,
        length=settings.data.length, norm=cell.norm, final_norm=model.final_norm,
        attention=cell.attention, positions=model.positions, tie_output=model.tie_output,
        no_wv=model.no_wv, no_wo=model.no_wo, no_attention_norm=model.no_attention_norm,
        no_mlp_norm=model.no_mlp_norm, **switches,
    )  # fmt: skip


def _parse_cell(text: str, first: dict) -> Cell:
    values = dict(first)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in values:
            raise ConfigError(f"config.cells: {text!r} has no axis {key!r}{nearest(key, values)}")
        values[key] = value
    try:
        values["triggers"] = int(values["triggers"])
    except ValueError:
        raise ConfigError(f"config.cells: {text!r}: triggers must be a number.") from None
    return Cell(**values)


def _check_cell(cell: Cell) -> None:
    tables = {
        "attention": attention_maps.KINDS, "norm": NORMS, "task": backcopy.TASKS,
    }  # fmt: skip
    for axis, valid in tables.items():
        value = getattr(cell, axis)
        if value not in valid:
            raise ConfigError(f"config.grid.{axis}: {value!r} is none{nearest(value, valid)}")
    if cell.layers.isdecimal():
        if int(cell.layers) < 1:
            raise ConfigError("config.grid.layers must be at least 1.")
    else:
        for kind in cell.blocks:
            if kind not in BLOCKS:
                raise ConfigError(
                    f"config.grid.layers: {cell.layers!r} must be a number of layers, or their "
                    f"kinds joined by +; {kind!r} is none{nearest(kind, BLOCKS)}"
                )
    if not cell.attentive:
        raise ConfigError(f"config.grid.layers: {cell.layers!r} has no attention to look at.")
    optimizers.parse(cell.optimizer)


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first thing wrong, before any compile.

    What depends on a law that has to be read is checked with it: see :func:`check_with_law`.
    """
    positive: Callable = lambda x: x > 0  # noqa: E731
    ranges = (
        ("at least 1", lambda x: x >= 1, {
            "sweep": ("seeds", "data_devices"), "model": ("width", "heads", "hidden"),
            "data": ("batch",), "train": ("steps", "every", "every_after", "evaluation_batch"),
        }),
        ("at least 3", lambda x: x >= 3, {"data": ("length",)}),
        ("at least 0", lambda x: x >= 0, {
            "sweep": ("devices",), "train": ("every_until", "checkpoint_seconds"),
        }),
        ("more than 0", positive, {
            "learning_rate": tuple(f.name for f in dataclasses.fields(LearningRates)),
        }),
    )  # fmt: skip
    check_ranges(settings, ranges)
    for name, test in (("learning_rate_factors", positive), ("weight_decays", lambda x: x >= 0)):
        values = getattr(settings.sweep, name)
        if not values or not all(map(test, values)):
            raise ConfigError(
                f"config.sweep.{name} must be numbers of the right sign; got {values!r}."
            )
        if len(set(values)) < len(values):
            raise ConfigError(
                f"config.sweep.{name}={values!r} has a value twice; more runs of one kind are "
                f"config.sweep.seeds."
            )
    if settings.model.positions not in POSITIONS:
        raise ConfigError(
            f"config.model.positions={settings.model.positions!r}"
            f"{nearest(settings.model.positions, POSITIONS)}"
        )
    for name in settings.model.frozen:
        if name not in FROZEN:
            raise ConfigError(f"config.model.frozen: {name!r} is none{nearest(name, FROZEN)}")
    if settings.model.width % settings.model.heads:
        raise ConfigError(
            f"config.model.width={settings.model.width} does not divide over "
            f"config.model.heads={settings.model.heads}."
        )
    bigram.check_source(settings.data.law, "config.data.law")
    for cell in list_cells(settings):
        backcopy.check_task(task_of(settings, cell), "config.data")
        if settings.train.official_evaluation and cell.task != "backcopy":
            raise ConfigError(
                f"config.train.official_evaluation: the official sequences are of backcopy, the "
                f"cell {cell.name} is of {cell.task}; set it to False."
            )
        _check_model(settings, cell)
    if settings.data.law == "synthetic":
        check_with_law(settings, bigram.load("synthetic", seed=settings.seed))


def check_with_law(settings: Settings, law: bigram.Law) -> None:
    """Raises a ConfigError about the first cell whose task the law of the transitions forbids."""
    for cell in list_cells(settings):
        backcopy.check(task_of(settings, cell), law, "config.data")


def _check_model(settings: Settings, cell: Cell) -> None:
    """Raises a ConfigError where the switches of the model do not fit each other or the cell."""
    model = make_model(settings, cell, vocab=1)
    transformer.check(model)
    if settings.model.frozen:
        tokens = jnp.zeros((1, 1), jnp.int32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        transformer.frozen_mask(shapes, settings.model.frozen)
