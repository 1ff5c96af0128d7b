"""The grid from its settings to its page."""

import json
import math
import pathlib

import numpy as np
from rich.console import Console

from crate_jax import config as configs
from crate_jax import data, run
from crate_jax.config import Config
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.plots import make_figure
from crate_jax.interpret.summary import facts
from crate_jax.recipe_ctrl import grid_member
from crate_jax.studies.stability.settings import Member, Settings, encoders, members
from crate_jax.train import whole
from crate_jax.train.readout import NonFiniteError

COLUMNS = ("changed", "value", "encoder", "seed", "PSNR (dB)", "cosine", "verdict")


def run_member(settings: Settings, member: Member, workdir: pathlib.Path) -> tuple[dict, int]:
    """Trains one run, or finds it done; its record, and its exit code."""
    config = configs.resolve(grid_member(settings, member))
    record = {"changed": member.changed, "encoder": member.encoder, "seed": member.seed}
    record["value"] = None if member.changed == "base" else getattr(member, member.changed)
    try:
        result = run.train(config, workdir / "runs" / member.name)
    except NonFiniteError:
        return record | {"psnr": None, "cosine": None, "curve": [], "collapsed": True}, 0
    if result.exit_code:
        return record, result.exit_code
    curve = _curve(workdir / "runs" / member.name / "metrics.jsonl")
    psnr = result.metrics["eval/psnr"]
    collapsed = not math.isfinite(psnr) or psnr <= mean_image_psnr(config)
    return record | {
        "psnr": psnr, "cosine": result.metrics["eval/cosine"], "curve": curve,
        "collapsed": collapsed,
    }, 0  # fmt: skip


def _curve(path: pathlib.Path) -> list[list[float]]:
    """Pairs of step and PSNR."""
    rows = map(json.loads, path.read_text().splitlines())
    return [[row["step"], row["eval/psnr"]] for row in rows if "eval/psnr" in row]


def mean_image_psnr(config: Config) -> float:
    """Mean PSNR of test images against the mean of a training batch: what knowing nothing gives."""
    size = config.train.eval_batch_size
    train, test = (
        next(data.eval_batches(config.data, batch_size=size, split=split))["image"]
        for split in (config.data.train_split, config.data.eval_split)
    )
    error = np.mean(((test - train.mean(axis=0)) / 2) ** 2, axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(error)))


def run_grid(settings: Settings, workdir: pathlib.Path, console: Console) -> tuple[list, int]:
    """All records, up to a signal."""
    records, grid = [], members(settings)
    for i, member in enumerate(grid, start=1):
        with console.status(f"{i} of {len(grid)}: {member.name}"):
            record, code = run_member(settings, member, workdir)
        if code:
            return records, code
        records.append(record)
    return records, 0


def run_study(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Trains the grid and writes the page; see the package."""
    records, code = run_grid(settings, workdir, console)
    if code:
        return code
    draw(records, workdir / "stability.png")
    draw_curves(records, workdir / "curves.png")
    counts = {
        name: f"{sum(r['collapsed'] for r in records if r['encoder'] == name)} of "
        f"{sum(r['encoder'] == name for r in records)}"
        for name in encoders(settings)
    }
    whole.write_text(
        workdir / "results.json",
        json.dumps({"settings": configs.as_dict(settings), "runs": records}, indent=1) + "\n",
    )
    parts = [
        Table("Collapsed", ("encoder", "runs"), list(counts.items()), _COLLAPSED),
        Table("Runs", COLUMNS, [_cells(record) for record in records]),
        Picture("At the end", workdir / "stability.png", "Crosses are runs that collapsed."),
        Picture("On the way", workdir / "curves.png", "A line a run."),
    ]
    write_page(workdir / "index.html", f"Stability on {settings.source}", parts)
    page = str(workdir / "index.html")
    console.print(facts(**{f"collapsed, {k}": v for k, v in counts.items()}, page=page))
    return 0


def _cells(record: dict) -> tuple[str, ...]:
    value = "" if record["value"] is None else f"{record['value']:g}"
    psnr, cosine = (
        "-" if record[name] is None else f"{record[name]:.3g}" for name in ("psnr", "cosine")
    )
    verdict = "collapsed" if record["collapsed"] else "trained"
    return record["changed"], value, record["encoder"], str(record["seed"]), psnr, cosine, verdict


def draw(records: list[dict], path: pathlib.Path) -> None:
    """Final PSNR over each setting, a line an encoder."""
    changed = [name for name in dict.fromkeys(r["changed"] for r in records) if name != "base"]
    figure = make_figure(3.2 * max(len(changed), 1), 3.2)
    for axes, name in zip(
        figure.subplots(1, max(len(changed), 1), sharey=True, squeeze=False)[0], changed,
        strict=False,
    ):  # fmt: skip
        for encoder, colour in (("csc", "tab:blue"), ("conv", "tab:orange")):
            part = [r for r in records if r["changed"] == name and r["encoder"] == encoder]
            part = sorted((r for r in part if r["psnr"] is not None), key=lambda r: r["value"])
            values, psnr = [r["value"] for r in part], [r["psnr"] for r in part]
            axes.plot(values, psnr, "o-", color=colour, label=encoder)
            bad = [(r["value"], r["psnr"]) for r in part if r["collapsed"]]
            axes.plot(*(zip(*bad, strict=True) if bad else ([], [])), "x", color="red", ms=11)
        axes.set(xlabel=name, xscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR (dB)")
    figure.axes[0].legend()
    figure.suptitle("PSNR at the end, over each setting of the base run")
    figure.savefig(path, dpi=120)


def draw_curves(records: list[dict], path: pathlib.Path) -> None:
    """PSNR along every run, a panel an encoder."""
    names = list(dict.fromkeys(r["encoder"] for r in records))
    figure = make_figure(5 * len(names), 3.6)
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names,
                          strict=True):  # fmt: skip
        for record in (r for r in records if r["encoder"] == name and r["curve"]):
            value = "" if record["value"] is None else f" {record['value']:g}"
            steps, psnr = zip(*record["curve"], strict=True)
            axes.plot(steps, psnr, ".-", lw=1, label=f"{record['changed']}{value}")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, ncols=2)
    figure.axes[0].set_ylabel("PSNR (dB)")
    figure.suptitle("PSNR on test images along the runs")
    figure.savefig(path, dpi=120)


_COLLAPSED = (
    "Runs that end no better than the mean training image, or whose numbers ceased to be finite."
)
