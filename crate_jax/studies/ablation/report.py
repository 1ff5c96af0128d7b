"""The end of the study: the verdict table, the figures, and the page that holds both."""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from crate_jax.data import backcopy, bigram
from crate_jax.interpret import page
from crate_jax.studies.ablation import figures, verdicts
from crate_jax.studies.ablation.settings import Cell, Settings, list_runs, task_of
from crate_jax.studies.ablation.verdicts import Verdict
from crate_jax.train import whole

NOTE = (
    "Median over seeds [10 %, 90 % quantile]. Attn_<s>: the largest of the heads, mean over "
    f"non-trigger queries; sink: above {verdicts.SINK}. Value ratio: norm of the value of <s> in "
    f"that head, through W_O, over the mean of the other tokens; drain: below {verdicts.DRAIN}. "
    "Residual ratio: norm of the residual of <s> over the mean of the others, the largest of the "
    f"layers; peak: above {verdicts.PEAK:g}; end / half: that residual norm of <s> over the one "
    "half-way, 1 where it has stopped growing. Excess risks in nats over the exact oracle. The "
    "paper's columns are of arXiv 2410.13835 at width 256, length 256, batch 512 on tiny "
    "Shakespeare, one seed; - where it has none."
)
TABLE_WIDTH = 200
BESIDE = (
    "Published / ours, median over seeds; - where no metric was taken at that update. Published: "
    "width 256, length 256, batch 512, tiny Shakespeare, one seed. Other sizes and laws move "
    "every number."
)


def write(
    settings: Settings, law: bigram.Law, results: Mapping[Cell, Mapping[str, np.ndarray]],
    workdir: pathlib.Path, console: Console,
) -> list[Verdict]:  # fmt: skip
    """Writes ``report/`` with PNGs, ``index.html`` and ``verdicts.json``, and prints the table.

    Args:
      settings: of the study.
      law: of the transitions.
      results: the arrays of every cell's ``result.npz``.
      workdir: the study's.
      console: where the table goes.
    """
    directory = workdir / "report"
    directory.mkdir(exist_ok=True)
    found = [
        verdict
        for cell, result in results.items()
        for verdict in verdicts.judge(cell, list_runs(settings, cell), result)
    ]
    rows = [verdict.row() for verdict in found]
    _print(rows, console)
    parts: list = [
        describe(settings, law),
        page.Table("Sink, drain and peak", verdicts.COLUMNS, rows, NOTE),
        *_beside_published(settings, results),
        _comparison(settings, results, directory / "comparison.png"),
    ]
    for cell, result in results.items():
        parts += _of_cell(settings, law, cell, result, directory)
    page.write_page(directory / "index.html", "Attention sinks: the ablation", parts)
    plain = [_plain(verdict) for verdict in found]
    whole.write_text(directory / "verdicts.json", json.dumps(plain, indent=2) + "\n")
    console.print(f"Report: {directory / 'index.html'}", highlight=False, soft_wrap=True)
    return found


def describe(settings: Settings, law: bigram.Law) -> str:
    """A sentence on what was trained."""
    data, model, train, sweep = settings.data, settings.model, settings.train, settings.sweep
    return (
        f"{sweep.seeds} seeds, {train.steps:,} updates on batches of {data.batch} sequences of "
        f"{data.length} tokens; width {model.width}, {model.heads} head(s); transitions: "
        f"{data.law} ({len(law.tokens)} tokens); metrics on {train.evaluation_batch} sequences."
    )


def _print(rows, console: Console) -> None:
    """The verdicts; where nothing says how wide the output may be, as wide as the table."""
    table = Table(title="Sink, drain, peak", box=None, pad_edge=False)
    for column in verdicts.COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def _beside_published(settings: Settings, results) -> list[page.Table]:
    parts = []
    one = Cell("1", "softmax", "adamw")
    if one in results:
        columns = ("step", "Attn_<s>", "sink logit", "value norm", "backcopy risk", "bigram risk")
        rows = verdicts.trajectory(list_runs(settings, one), results[one])
        parts.append(page.Table("One layer, softmax, AdamW over time", columns, rows, BESIDE))
    three = [Cell("3", *key) for key in verdicts.RESIDUALS]
    steps = next(iter(verdicts.RESIDUALS.values()))
    rows = [
        [cell.name, *verdicts.residuals(cell, list_runs(settings, cell), results[cell])]
        for cell in three
        if cell in results
    ]
    if rows:
        title = "Three layers: residual norm of <s> after the first"
        parts.append(page.Table(title, ("cell", *(f"step {s:,}" for s in steps)), rows, BESIDE))
    return parts


def _first_rates(settings: Settings, cell: Cell) -> tuple[str, np.ndarray]:
    """What the figures show: the seeds of the first pair of rates, and how to say so."""
    (rate, decay), runs = next(iter(verdicts.groups(list_runs(settings, cell)).items()))
    return f"{cell.name}, rate {rate:g}, decay {decay:g}", runs


def _comparison(settings: Settings, results, path: pathlib.Path) -> page.Picture:
    shown = {
        cell.name: (result, _first_rates(settings, cell)[1]) for cell, result in results.items()
    }
    figures.comparison(shown, path)
    return page.Picture(
        "All cells over time", path, "Dotted: the thresholds of sink, drain and peak."
    )


def _of_cell(settings, law, cell: Cell, result, directory: pathlib.Path) -> list[page.Picture]:
    title, runs = _first_rates(settings, cell)
    run = int(runs[0])
    guess = math.log(backcopy.vocabulary(law, task_of(settings, cell)) - 1)

    def path(kind: str) -> pathlib.Path:
        return directory / f"{cell.name}_{kind}.png"

    figures.dynamics(cell, result, runs, guess, path("dynamics"), title)
    figures.attention_maps(cell, result, run, path("attention"), f"{title}, seed 0")
    figures.token_norms(cell, result, run, path("norms"), f"{title}, seed 0")
    figures.interventions(cell, result, runs, path("interventions"), title)
    figures.parameters(result, runs, path("parameters"), title)
    return [
        page.Picture(f"{cell.name}: over time", path("dynamics"), "Dashed: mean of the others."),
        page.Picture(
            f"{cell.name}: attention", path("attention"),
            "The last model on the first evaluation sequence.",
        ),
        page.Picture(f"{cell.name}: norms of the same sequence", path("norms")),
        page.Picture(
            f"{cell.name}: interventions on the last model", path("interventions"),
            "none: the model as it is. A number is the layer, l.h a head of it.",
        ),
        page.Picture(
            f"{cell.name}: gradients and updates", path("parameters"),
            "Of the update before each point; right: what it does to the residual norm of <s>, "
            "to first order.",
        ),
    ]  # fmt: skip


def _plain(verdict: Verdict) -> dict:
    alive = verdict.alive
    return {
        "cell": verdict.cell.name,
        "learning_rate": verdict.learning_rate,
        "weight_decay": verdict.weight_decay,
        "alive": int(alive.sum()),
        **{
            name: getattr(verdict, name)[alive].tolist()
            for name in ("attention", "drain", "peak", "growth", "excess")
        },
        "paper": verdicts.published(verdict.cell),
    }
