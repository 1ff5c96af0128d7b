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
    "half-way, 1 where it has stopped growing. Loss and excess risks (backcopy, bigram, over the "
    "exact oracle) in nats on the evaluation batch. Where several rates were tried the row is of "
    "those with the least median loss; at the edge: the best learning rate is the smallest or the "
    "largest tried. The paper's columns are of arXiv 2410.13835 at width 256, length 256, batch "
    "512 on tiny Shakespeare, one seed, rates not tuned; - where it has none."
)
TRIED = "Every pair of learning rate and weight decay that was tried, the best of a cell marked."
TABLE_WIDTH = 220
CELLS_A_FIGURE = 8
BESIDE = (
    "Published / ours, median over seeds at the paper's rates; - where no metric was taken at that "
    "update. Published: width 256, length 256, batch 512, tiny Shakespeare, one seed. Other sizes "
    "and laws move every number."
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
    found = {
        cell: verdicts.judge(cell, list_runs(settings, cell), result)
        for cell, result in results.items()
    }
    chosen = {cell: of_cell[verdicts.best(of_cell)] for cell, of_cell in found.items()}
    rows, tried = [], []
    for cell, of_cell in found.items():
        mark, paper = verdicts.mark(of_cell), verdicts.published(cell, settings)
        rows.append(chosen[cell].row(mark, paper))
        tried += [v.row(mark if v is chosen[cell] else "", paper) for v in of_cell]
    tables = [page.Table("Sink, drain and peak", verdicts.COLUMNS, rows, NOTE)]
    if len(tried) > len(rows):
        tables.append(page.Table("All rates", verdicts.COLUMNS, tried, TRIED))
    for table in reversed(tables):
        _print(table, console)
    parts: list = [
        describe(settings, law),
        *tables,
        *_beside_published(settings, results),
        *_comparisons(settings, results, chosen, directory),
    ]
    for cell, result in results.items():
        parts += _of_cell(settings, law, chosen[cell], result, directory)
    page.write_page(directory / "index.html", "Attention sinks: the ablation", parts)
    plain = [_plain(v, v is chosen[cell], settings) for cell in found for v in found[cell]]
    whole.write_text(directory / "verdicts.json", json.dumps(plain, indent=2) + "\n")
    console.print(f"Report: {directory / 'index.html'}", highlight=False, soft_wrap=True)
    return list(chosen.values())


def describe(settings: Settings, law: bigram.Law) -> str:
    """A sentence on what was trained."""
    data, model, train, sweep = settings.data, settings.model, settings.train, settings.sweep
    return (
        f"{sweep.seeds} seeds, {train.steps:,} updates on batches of {data.batch} sequences of "
        f"{data.length} tokens; width {model.width}, {model.heads} head(s); transitions: "
        f"{data.law} ({len(law.tokens)} tokens); metrics on {train.evaluation_batch} sequences"
        f"{' of the official notebooks' if train.official_evaluation else ''}."
    )


def _print(part: page.Table, console: Console) -> None:
    """Verdicts; where nothing says how wide the output may be, as wide as the table."""
    table = Table(title=part.title, box=None, pad_edge=False)
    for column in part.columns:
        table.add_column(column, overflow="fold")
    for row in part.rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def _beside_published(settings: Settings, results) -> list[page.Table]:
    parts = []
    one = Cell("1", "softmax", "adamw")
    three = [Cell("3", *key) for key in verdicts.RESIDUALS]
    papers = {
        cell: verdicts.papers_rates(cell, list_runs(settings, cell))
        for cell in (one, *three)
        if cell in results and verdicts.is_papers_model(settings)
    }
    if papers.get(one) is not None:
        columns = ("step", "Attn_<s>", "sink logit", "value norm", "backcopy risk", "bigram risk")
        rows = verdicts.trajectory(papers[one], results[one])
        parts.append(page.Table("One layer, softmax, AdamW over time", columns, rows, BESIDE))
    steps = next(iter(verdicts.RESIDUALS.values()))
    rows = [
        [cell.name, *verdicts.residuals(cell, papers[cell], results[cell])]
        for cell in three
        if papers.get(cell) is not None
    ]
    if rows:
        title = "Three layers: residual norm of <s> after the first"
        parts.append(page.Table(title, ("cell", *(f"step {s:,}" for s in steps)), rows, BESIDE))
    return parts


def _runs_of(settings: Settings, verdict: Verdict) -> np.ndarray:
    """What the figures show: the seeds of the best rates."""
    runs = verdicts.groups(list_runs(settings, verdict.cell))
    return runs[verdict.learning_rate, verdict.weight_decay]


def _comparisons(settings: Settings, results, chosen, directory) -> list[page.Picture]:
    """All cells over time, so many in a figure that they can be told apart."""
    cells = list(results)
    parts = np.array_split(np.arange(len(cells)), math.ceil(len(cells) / CELLS_A_FIGURE))
    pictures = []
    for i, part in enumerate(parts, 1):
        path = directory / f"comparison{f'_{i}' if i > 1 else ''}.png"
        shown = {
            cells[k].name: (results[cells[k]], _runs_of(settings, chosen[cells[k]])) for k in part
        }
        figures.comparison(shown, path)
        title = "All cells over time" + (f", {i} of {len(parts)}" if len(parts) > 1 else "")
        note = "Dotted: the thresholds of sink, drain and peak."
        pictures.append(page.Picture(title, path, note))
    return pictures


def _of_cell(settings, law, verdict: Verdict, result, directory) -> list[page.Picture]:
    cell, runs = verdict.cell, _runs_of(settings, verdict)
    title = f"{cell.name}, rate {verdict.learning_rate:g}, decay {verdict.weight_decay:g}"
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


def _plain(verdict: Verdict, is_best: bool, settings: Settings) -> dict:
    alive = verdict.alive
    excess = [
        [x if math.isfinite(x) else None for x in row] for row in verdict.excess[alive].tolist()
    ]
    return {
        "cell": verdict.cell.name,
        "learning_rate": verdict.learning_rate,
        "weight_decay": verdict.weight_decay,
        "best": is_best,
        "alive": int(alive.sum()),
        "answers": {name: found[alive].tolist() for name, found in verdict.answers.items()},
        **{
            name: getattr(verdict, name)[alive].tolist()
            for name in ("loss", "attention", "drain", "peak", "growth")
        },
        "excess": excess,
        "paper": verdicts.published(verdict.cell, settings),
    }
