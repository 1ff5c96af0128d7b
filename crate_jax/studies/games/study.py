"""The study: every method on the samples of every value, then tables, figures and a page."""

import json
import pathlib
import time

import jax
import numpy as np
import rich.table
from rich.console import Console
from rich.markup import escape

from crate_jax.config import ConfigError
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.studies.claims import COLUMNS
from crate_jax.studies.games import figures, measure
from crate_jax.studies.games.methods import Outcome, carry_out
from crate_jax.studies.games.samples import Task, load
from crate_jax.studies.games.settings import Settings, list_runs
from crate_jax.train import whole

NUMBERS = {
    "trained_quality": ("Q of the training samples", ".4f"),
    "bound": ("largest Q", ".4f"),
    "quality": ("Q of the test samples", ".4f"),
    "last_C": ("C of the last batch", ".1e"),
    "residual": ("residual of X", ".4f"),
    "cosine_X": ("mean |cos|, X", ".3f"),
    "cosine_fX": ("mean |cos|, f(X)", ".3f"),
    "cosine_made": ("mean |cos|, what is made", ".3f"),
    "accuracy_X": ("accuracy of the nearest subspace, X", ".4f"),
    "accuracy_fX": ("accuracy of the nearest subspace, f(X)", ".4f"),
    "return_error": ("||f(g(f(X))) - f(X)|| / ||f(X)||", ".3f"),
    "isometry_least": ("least ratio of distances", ".5f"),
    "isometry_mean": ("mean ratio", ".5f"),
    "isometry_most": ("largest ratio", ".5f"),
}
"""Name and format of a number in the table of runs."""


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Plays, compares, writes; returns 0 whatever the verdicts are.

    A game saves its state as it goes, so a stopped study goes on inside the game that it was in;
    baselines, which take seconds, begin again, and so do figures.
    """
    if jax.process_count() > 1:
        raise ConfigError("a game is played by one process; start it with --distributed=off.")
    start = time.perf_counter()
    with jax.enable_x64(settings.precision == "float64"):
        outcomes, tasks = [], {}
        for value, each in list_runs(settings):
            task = load(each)
            for method in settings.methods:
                name = f"{method} {value}".strip()
                directory = workdir / "runs" / name.replace(" ", "_")
                directory.mkdir(parents=True, exist_ok=True)
                outcomes.append(carry_out(method, name, each, task, directory, console))
                tasks[name] = task
    claims = [claim for outcome in outcomes for claim in outcome.claims]
    about = _about(settings, tasks, claims)
    _show(outcomes, claims, console)
    parts = [
        _INTRODUCTION[settings.game],
        Table("What was played", ("", ""), list(about.items())),
        Table("Runs", *_run_table(outcomes), _RUNS),
    ]
    if claims:
        rows = [(claim.part, *claim.cells()) for claim in claims]
        parts.append(Table("Verdicts", ("run", *COLUMNS), rows, _VERDICTS))
    for outcome in outcomes:
        if outcome.silent:
            parts.append(f"{outcome.name}: no verdict, since {outcome.silent}.")
        directory = workdir / "runs" / outcome.name.replace(" ", "_")
        parts += draw(outcome, tasks[outcome.name], settings.game, directory)
    write_page(workdir / "index.html", _TITLE[settings.game], parts)
    _save(workdir / "results.json", about, outcomes, claims)
    seconds = f"{time.perf_counter() - start:.1f}"
    console.print(facts(**about, seconds=seconds, page=str(workdir / "index.html")))
    return 0


def draw(outcome: Outcome, task: Task, game: str, directory: pathlib.Path) -> list[Picture]:
    """Draws a run's figures; the pictures in the order of the page."""
    y, K, features = task.test.y, task.num_classes, outcome.features
    paths, titles = {}, {}

    def add(key: str, title: str):
        paths[key], titles[key] = directory / f"{key}.png", f"{outcome.name}: {title}"
        return paths[key]

    if outcome.course is not None:
        figures.course_figure(outcome.course, outcome.best, game, add("course", "payoffs"))
    if outcome.losses is not None:
        figures.losses_figure(*outcome.losses, add("losses", "losses"))
    figures.spectra_figure(features, add("spectra", "singular values"))
    if K > 1 and outcome.trained is not None:
        path = add("trained_spectra", "singular values of the classes, training samples")
        levels = {
            f"class {j}": float(np.sqrt(n / d))
            for j, (n, d) in enumerate(zip(task.sizes, task.dims, strict=True))
        }
        figures.class_spectra_figure(outcome.trained, task.train.y, K, levels, path)
    if K > 1:
        path = add("class_spectra", "singular values of the classes")
        figures.class_spectra_figure(features, y, K, None, path)
    figures.heat_figure(features, y, add("cosines", "cosines"))
    pairs = [("X", outcome.made)] + [("fX", "fgfX")] * ("fX" in features)
    figures.residual_figure(features, y, task.dims, pairs, add("residuals", "residuals"))
    if game == "ssp" and "fX" in features:
        ratios = measure.isometry_ratios(features["X"], features["fX"])
        figures.isometry_figure(ratios, add("isometry", "isometry"))
    return [Picture(titles[key], paths[key], _CAPTIONS[key]) for key in paths]


def _about(settings: Settings, tasks, claims) -> dict[str, str]:
    task = next(iter(tasks.values()))
    play = settings.play
    N = len(task.train.y)
    batch = play.batch or N
    about = {
        "game": _TITLE[settings.game],
        "samples": f"{settings.data.source}, {N:,} of {task.train.X.shape[1]} numbers",
        "classes": f"{task.num_classes}",
    }
    if settings.data.source == "subspaces" and settings.vary != "dim":
        about["dimensions"] = ", ".join(map(str, task.dims))
    if settings.vary:
        about["varied"] = f"{settings.vary}: {', '.join(f'{value:g}' for value in settings.over)}"
    if settings.vary != "features":
        about["features"] = f"{settings.players.features}"
    about |= {
        "leader's steps": f"{play.epochs * (N // batch):,} on batches of {batch:,}",
        "follower's steps after each": f"{play.inner_steps:,}"
        if "ctrl" in settings.methods
        else f"{play.network_inner_steps:,}",
        "precision": settings.precision,
        "seed": f"{settings.seed}",
    }
    if claims:
        about["verdict"] = f"{sum(c.holds for c in claims)} of {len(claims)} claims hold"
    return about


def _run_table(outcomes) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of the numbers that any run has: a row a number, a column a run."""
    heads = ("", *(outcome.name for outcome in outcomes))
    rows = [
        (
            title,
            *(
                f"{outcome.numbers[name]:{form}}" if name in outcome.numbers else ""
                for outcome in outcomes
            ),
        )
        for name, (title, form) in NUMBERS.items()
        if any(name in outcome.numbers for outcome in outcomes)
    ]
    return heads, [*rows, ("seconds", *(f"{outcome.seconds:.1f}" for outcome in outcomes))]


def _show(outcomes, claims, console: Console) -> None:
    """The two tables in the terminal."""
    heads, rows = _run_table(outcomes)
    table = rich.table.Table(*heads, title="Runs")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    if not claims:
        return
    table = rich.table.Table("run", *COLUMNS, title="Verdicts")
    part = None
    for claim in claims:
        if part not in (None, claim.part):
            table.add_section()
        *cells, holds = claim.cells()
        colour = "green" if claim.holds else "bold red"
        shown = claim.part if claim.part != part else ""
        table.add_row(escape(shown), *map(escape, cells), f"[{colour}]{holds}[/]")
        part = claim.part
    console.print(table)


def _save(path: pathlib.Path, about, outcomes, claims) -> None:
    """``results.json``; an earlier one stays whole until the new one is."""
    runs = [
        {
            "run": outcome.name,
            "method": outcome.method,
            "numbers": {name: float(value) for name, value in outcome.numbers.items()},
            "seconds": outcome.seconds,
        }
        for outcome in outcomes
    ]
    results = {"about": about, "runs": runs, "claims": [claim.record() for claim in claims]}
    whole.write_text(path, json.dumps(results, indent=2) + "\n")


_TITLE = {"msp": "CTRL-MSP: several subspaces", "ssp": "CTRL-SSP: a single subspace"}

_INTRODUCTION = {
    "msp": (
        "A linear encoder f and decoder g play the sequential game of arXiv 2206.09120 on samples "
        "of several subspaces: f leads and maximises Delta R(f(X)) - C, g follows and maximises C, "
        "minus the distance in rate of each class's features from those of its reconstructions."
    ),
    "ssp": (
        "An orthonormal encoder f and decoder g play the sequential game of arXiv 2206.09120 on "
        "samples of one subspace: f leads and maximises R(f(X)) - C, g follows and maximises C, "
        "minus the distance in rate of the features from those of the reconstructions."
    ),
}

_RUNS = (
    "Rates in nats. Residual: distance of test samples from the span of the top d_j directions of "
    "what was made of their class, g(f(X_j)) or generated, over their norm. |cos|: over pairs of "
    "different classes. Ratio: ||f(x) - f(x')|| / ||x - x'||. The consistency C is about second "
    "moments alone, so that a decoder need not give back the samples themselves."
)

_VERDICTS = (
    "On the training samples. Measured is the distance of the two sides of the form, a ratio's to "
    "1. The published settings stop well before the equilibrium; the long ones reach it."
)

_CAPTIONS = {
    "course": "Left: Q on each batch. Right: how far the second moments stay apart.",
    "losses": "On each batch, every optimizer's own.",
    "spectra": "In descending order, of fresh samples.",
    "trained_spectra": "In descending order; the theorem has d_j equal ones of sqrt(n_j / d_j).",
    "class_spectra": "In descending order, of fresh samples, whose second moments are others.",
    "cosines": "Dark blocks on the diagonal and white elsewhere: orthogonal classes.",
    "residuals": (
        "Left: from as many principal directions as the class has dimensions. Right: from all "
        "directions, as published; with any noise these span everything."
    ),
    "isometry": "Over pairs of fresh samples.",
}
