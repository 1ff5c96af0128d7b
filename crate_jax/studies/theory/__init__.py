"""Checks the simplified theory of attention sinks: closed forms against integrated flows.

"Active-Dormant Attention Heads" (arXiv 2410.13835) explains sinks, drains and residual peaks by a
model of one head (``ops.sink_dynamics``). This study integrates its gradient flows in float64, over
many laws and starts at once, and holds each closed form against them: what the sink logits grow to,
where the value of ``<s>`` goes, where both end together, what ReLU attention does instead, and what
SGD and Adam make of the residual peak. It ends in a verdict table, ``results.json``, a page and its
figures.
"""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import rich.table
from rich.console import Console

from crate_jax import config as configs
from crate_jax.config import ConfigError, nearest
from crate_jax.data import bigram
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.studies.claims import COLUMNS, verdict_table
from crate_jax.studies.precision import float64_on_cpu
from crate_jax.studies.theory import figures
from crate_jax.studies.theory import simple as simple_model
from crate_jax.studies.theory.laws import load_law, make_ensemble
from crate_jax.studies.theory.peak import check_peak
from crate_jax.studies.theory.relu import check_relu
from crate_jax.studies.theory.simple import SimpleSettings, check_simple, train_both
from crate_jax.studies.theory.softmax import CLOSE, Growth, check_drain, check_growth, check_joint
from crate_jax.train import whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is integrated.

    Attributes:
      study: the name of this study.
      seed: of the laws and the starts.
      source: ``dirichlet`` (random dense laws, the last row with one successor) or a source of
        ``data.bigram.load``: ``synthetic``, ``tfds:tiny_shakespeare``, ``text:PATH``, ``npz:PATH``.
      data_dir: root of the TFDS files; None means TFDS's own default.
      vocabulary, concentration, laws: of ``dirichlet``: tokens, the Dirichlet parameter, how many
        laws.
      triggers: of the other sources: the most frequent tokens, whose rows are left out.
      starts: random starts a law.
      length: expected number W of other tokens that a query sees.
      horizon: time to which the flows run.
      points: times at which a flow is kept.
      logits: fixed sink logits of the drain.
      optimizer_steps: of SGD and Adam on the law of the residual peak.
      sgd_rate, adam_rate: their learning rates.
      train_simple: whether the simplified model is trained on its task too.
      simple: how.
    """

    study: str = "theory"
    seed: int = 0
    source: str = "dirichlet"
    data_dir: str | None = configs.beyond_digest(None)
    vocabulary: int = 8
    concentration: float = 1.0
    laws: int = 4
    triggers: int = 3
    starts: int = 8
    length: int = 8
    horizon: float = 1e8
    points: int = 81
    logits: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0)
    optimizer_steps: int = 100_000
    sgd_rate: float = 0.03
    adam_rate: float = 3e-4
    train_simple: bool = False
    simple: SimpleSettings = dataclasses.field(default_factory=SimpleSettings)


_RANGES = (
    ("at least 3", lambda x: x >= 3, {"": ("vocabulary",)}),
    ("at least 1", lambda x: x >= 1, {"": ("laws", "starts", "length")}),
    ("at least 0", lambda x: x >= 0, {"": ("triggers",)}),
    ("at least 11", lambda x: x >= 11, {"": ("points",)}),
    ("at least 20000", lambda x: x >= 20_000, {"": ("optimizer_steps",)}),
    ("above 0", lambda x: 0 < x < float("inf"), {"": ("concentration", "sgd_rate", "adam_rate")}),
    ("from 1e4 to 1e30", lambda x: 1e4 <= x <= 1e30, {"": ("horizon",)}),
)
"""See ``config.check_ranges``."""


def check(settings: Settings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    configs.check_ranges(settings, _RANGES)
    if not settings.logits or not all(abs(a) <= 20 for a in settings.logits):
        raise ConfigError(
            f"config.logits must be one or more numbers from -20 to 20; got {settings.logits}."
        )
    kinds = ("dirichlet", *bigram.SOURCES)
    if settings.source.partition(":")[0] not in kinds:
        raise ConfigError(f"config.source={settings.source!r}{nearest(settings.source, kinds)}")
    if settings.source.partition(":")[0] == "dirichlet":
        if settings.source != "dirichlet":
            raise ConfigError(f"config.source={settings.source!r}: write dirichlet alone.")
    else:
        bigram.check_source(settings.source, "config.source")
    if settings.source == "synthetic":
        load_law(settings)
    check_simple(settings.simple)


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Integrates, compares, writes; returns 0 whatever the verdicts are."""
    start = time.perf_counter()
    with float64_on_cpu("theory"):
        ensemble = make_ensemble(settings)
        done = _integrate(settings, ensemble, console)
    courses = {}
    if settings.train_simple:
        with console.status("the simplified model, trained ..."):
            courses = train_both(settings.simple, settings.seed, settings.data_dir)
    claims = [claim for part, _ in done.values() for claim in part]
    curves = {name: part[1] for name, part in done.items()}
    E, R, V = ensemble.p.shape
    about = {
        "law": settings.source,
        "starts": f"{E}",
        "query tokens": f"{R}",
        "output tokens": f"{V}",
        "other tokens seen (W)": f"{settings.length}",
        "horizon": f"{settings.horizon:g}",
        f"sink logits within {CLOSE} of their limit by then": _inside(
            curves["growth"], ensemble.moves
        ),
        "verdict": f"{sum(c.holds for c in claims)} of {len(claims)} claims hold",
    }
    console.print(verdict_table(claims, "Theory"))
    trained = simple_model.rows(courses, settings.simple) if courses else []
    if trained:
        table = rich.table.Table(*simple_model.COLUMNS, title=_TRAINED[0])
        for row in trained:
            table.add_row(*row)
        console.print(table)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        parts = [
            _INTRODUCTION,
            Table("What was integrated", ("", ""), list(about.items())),
            Table("Verdicts", COLUMNS, [claim.cells() for claim in claims], _VERDICTS),
            *_draw(workdir, ensemble.moves, curves),
        ]
        if trained:
            figures.simple_figure(courses, workdir / "simple.png")
            parts.append(Table(_TRAINED[0], simple_model.COLUMNS, trained, _TRAINED[1]))
            parts.append(Picture("Its course", workdir / "simple.png", _TRAINED[2]))
        write_page(workdir / "index.html", "Theory of attention sinks", parts)
        _save(workdir / "results.json", about, claims, trained)
    seconds = f"{time.perf_counter() - start:.1f}"
    console.print(facts(**about, seconds=seconds, page=str(workdir / "index.html")))
    return 0


def _inside(growth: Growth, moves: np.ndarray) -> str:
    """How many rows the horizon itself is late enough for."""
    at = growth.horizon
    near = np.abs(growth.alpha - growth.limit)[moves.reshape(-1), at] < CLOSE
    return f"{near.sum()} of {near.size}"


def _integrate(settings: Settings, ensemble, console: Console) -> dict:
    """By part, its claims and its curves."""
    horizon, points = settings.horizon, settings.points
    parts = {
        "growth": lambda: check_growth(ensemble, horizon, points),
        "drain": lambda: check_drain(ensemble, settings.logits, points),
        "joint": lambda: check_joint(ensemble, horizon, points),
        "relu": lambda: check_relu(ensemble, horizon, points),
        "peak": lambda: check_peak(
            settings.seed, settings.starts, settings.optimizer_steps, settings.sgd_rate,
            settings.adam_rate,
        ),
    }  # fmt: skip
    done = {}
    for name, part in parts.items():
        with console.status(f"{name} ..."):
            done[name] = part()
    return done


def _draw(workdir: pathlib.Path, moves: np.ndarray, curves: dict) -> list[Picture]:
    """Draws every part; the pictures in the order of the page."""
    paths = {name: workdir / f"{name}.png" for name in curves}
    figures.growth_figure(curves["growth"], moves, paths["growth"])
    figures.drain_figure(curves["drain"], paths["drain"])
    figures.joint_figure(curves["joint"], moves, paths["joint"])
    figures.relu_figure(curves["relu"], paths["relu"])
    figures.peak_figure(curves["peak"], paths["peak"])
    return [Picture(title, paths[name], note) for name, (title, note) in _CAPTIONS.items()]


def _save(path: pathlib.Path, about: dict, claims, trained: list[tuple[str, ...]]) -> None:
    """``results.json``; an earlier one stays whole until the new one is."""
    results = {"about": about, "claims": [claim.record() for claim in claims]}
    if trained:
        results["simple"] = [dict(zip(simple_model.COLUMNS, row, strict=True)) for row in trained]
    whole.write_text(path, json.dumps(results, indent=2) + "\n")


_INTRODUCTION = (
    "The simplified model of arXiv 2410.13835: one head, in which the query v attends to <s> with "
    "the logit alpha_v and to all else with logit 0; <s> has the value beta. Its gradient flows "
    "are integrated in float64, from time 1 on, and held against closed forms."
)

_VERDICTS = (
    "Measured is the largest distance between the two sides of a closed form, of a ratio's value "
    "to 1, over every law, start and row. The constant and the next term of the growth, the ReLU "
    "rate and balance, and the laws of the optimizers are worked out in crate_jax/ops/"
    "sink_dynamics.py."
)

_CAPTIONS = {
    "growth": (
        "Growth of the sink logits",
        "Left: flows of one start and their limits. Right: distance of every row from its limit, "
        "which falls like 1/sqrt(t), and from the limit with its next term.",
    ),
    "drain": (
        "Drain of the value",
        "Left: the part of beta that softmax can see, over that of B, for fixed sink logits. "
        "Right: where it ends.",
    ),
    "joint": (
        "Both together",
        "Left: the logits of one start. Right: their spread, the distance of the value from what "
        "the logits ask of it, and the loss, for every start.",
    ),
    "relu": (
        "ReLU attention",
        "Left: logits with the value fixed, over each row's own time; all slopes end at -1. Right: "
        "with both free, the difference of the two squares is conserved, so one of them stays.",
    ),
    "peak": (
        "Residual peak under SGD and Adam",
        "Left: the reduced law, m' = ln t / (m^3 t), as a gradient under both optimizers, from "
        "three sizes. Adam stays behind its slow law because its second moment remembers the "
        "first, larger gradients. Right: the slow law long after, where the gradient is below eps.",
    ),
}
"""Title and note of a figure, in the order of the page."""

_TRAINED = (
    "The simplified model, trained",
    "Risks in nats on held-out sequences, at triggers (0 at best) and elsewhere (the exact "
    "oracle's at best); the value's size is that of beta less its mean over the tokens that occur, "
    "before and after.",
    "Left: risks. Right: sink logits of the tokens that are no triggers, and the size of beta.",
)
"""Title, note of the table, note of the figure."""
