"""The study's figures: time courses of a cell, its last model, and all cells side by side.

Lines are medians over seeds, bands their 10 % and 90 % quantiles. Time runs on a logarithmic axis
that is linear up to the first point after 0.
"""

import pathlib
import warnings
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crate_jax.interpret.plots import make_figure
from crate_jax.studies.ablation.records import STEPS
from crate_jax.studies.ablation.settings import Cell
from crate_jax.studies.ablation.verdicts import BAND, DRAIN, PEAK, SINK, cell_copies

BOS = "<s>"
FLOOR = 1e-8
"""Where an excess risk is cut on its logarithmic axis, nats."""
MAP_TOKENS, BAR_TOKENS = 40, 64
"""So many tokens of a sequence are drawn."""
SMOOTH = 9


def dynamics(
    cell: Cell, arrays: Mapping[str, np.ndarray], runs: np.ndarray, guess: float,
    path: pathlib.Path, title: str,
) -> None:  # fmt: skip
    """Risks, attention to ``<s>``, sink logits, value and residual norms, updates, over time.

    Args:
      cell: of the grid.
      arrays: its series, metrics ``(P, R, ...)``.
      runs: indices of the runs to show: seeds of one learning rate and decay.
      guess: ``ln V``, the risk of guessing among all tokens, nats.
      path: of the PNG.
      title: over the figure.
    """
    steps = arrays[STEPS]
    figure = make_figure(13, 7)
    (risks, attention, logits), (values, residuals, motion) = figure.subplots(2, 3)
    names = ("backcopy", "bigram") if cell_copies(cell) else ("bigram",)
    for name in names:
        excess = np.maximum(arrays[f"{name}_excess_exact"][:, runs], FLOOR)
        _band(risks, steps, excess, name)
    own = arrays["bigram_risk_exact"] - arrays["bigram_excess_exact"]
    level = guess - float(np.nanmean(own))
    risks.axhline(level, color="grey", linestyle=":", label="guessing, bigram")
    risks.set_ylabel("excess risk (nats)")
    for l in range(cell.depth):
        color = f"C{l}"
        if l in cell.attentive:
            for h in range(arrays["attention_bos"].shape[3]):
                name = f"layer {l}" + (f" head {h}" if arrays["attention_bos"].shape[3] > 1 else "")
                _band(attention, steps, arrays["attention_bos"][:, runs, l, h], name, color)
                _band(logits, steps, arrays["sink_logit"][:, runs, l, h], name, color)
                low, high = (
                    _quantiles(arrays[f"sink_logit_{end}"][:, runs, l, h], 0.5, axis=1)
                    for end in ("low", "high")
                )
                for edge in (low, high):
                    logits.plot(steps, edge, color=color, linewidth=0.8, linestyle=":")
                _band(values, steps, arrays["value_bos"][:, runs, l, h], f"{name}, {BOS}", color)
                _band(
                    values, steps, arrays["value_others"][:, runs, l, h], f"{name}, others", color,
                    linestyle="--",
                )  # fmt: skip
        _band(residuals, steps, arrays["residual_bos"][:, runs, l], f"layer {l}, {BOS}", color)
        _band(
            residuals, steps, arrays["residual_others"][:, runs, l], f"layer {l}, others", color,
            linestyle="--",
        )  # fmt: skip
    for name, label in (("leaf_gradient", "gradient"), ("leaf_update", "update")):
        norms = np.linalg.norm(arrays[name][1:, runs], axis=-1)
        _band(motion, steps[1:], np.maximum(norms, 1e-12), label)
    attention.set(ylabel=f"attention to {BOS}", ylim=(0, 1.05))
    attention.axhline(SINK, color="grey", linestyle=":")
    logits.set(ylabel=f"sink logit of {BOS}, nats (dotted: 10, 90 % of v)")
    values.set_ylabel("value norm, through $W_O$")
    residuals.set_ylabel("residual norm after the layer")
    motion.set_ylabel("norm over all parameters")
    for axes in (risks, values, residuals, motion):
        _logarithmic(axes)
    for axes in figure.axes:
        _time(axes, steps)
        axes.legend(fontsize=7)
    _save(figure, path, title)


def attention_maps(
    cell: Cell, result: Mapping[str, np.ndarray], run: int, path: pathlib.Path, title: str
) -> None:
    """The attention of every layer and head to the first evaluation sequence."""
    maps, tokens = result["portrait/attention"][run], result["about/tokens"]
    n = min(len(tokens), MAP_TOKENS)
    shown = [(l, h) for l in cell.attentive for h in range(maps.shape[1])]
    figure = make_figure(5.2 * len(shown), 5.4)
    ticks = np.arange(n)
    for axes, (l, h) in zip(np.ravel(figure.subplots(1, len(shown))), shown, strict=True):
        A = np.where(np.tri(n, dtype=bool), maps[l, h, :n, :n], np.nan)
        image = axes.imshow(A, cmap="viridis", vmin=0)
        name = f"layer {l}" + (f", head {h}" if maps.shape[1] > 1 else "")
        axes.set(xlabel="key", ylabel="query", title=name)
        size = max(3.5, min(8, 260 / n))
        axes.set_xticks(ticks, tokens[:n], fontsize=size, rotation=90)
        axes.set_yticks(ticks, tokens[:n], fontsize=size)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, shrink=0.8)
    _save(figure, path, title)


def token_norms(
    cell: Cell, result: Mapping[str, np.ndarray], run: int, path: pathlib.Path, title: str
) -> None:
    """Value and residual norms of the tokens of the first evaluation sequence, as bars."""
    tokens, trigger = result["about/tokens"], result["about/trigger"]
    n = min(len(tokens), BAR_TOKENS)
    rows = []
    for l in range(cell.depth):
        if l in cell.attentive:
            for h in range(result["portrait/value_norm"].shape[2]):
                norms = result["portrait/value_norm"][run, l, h]
                head = f" head {h}" * (result["portrait/value_norm"].shape[2] > 1)
                rows.append((f"value norm\nlayer {l}{head}", norms))
        rows.append((f"residual norm\nlayer {l}", result["portrait/residual_norm"][run, l]))
    figure = make_figure(max(7, 0.17 * n), 1.7 * len(rows))
    grid = np.ravel(figure.subplots(len(rows), 1, sharex=True))
    kinds = ((0, BOS, "C3"), (1, "trigger", "C1"), (2, "other", "C0"))
    which = np.where(np.arange(n) == 0, 0, np.where(trigger[:n], 1, 2))
    for axes, (label, norms) in zip(grid, rows, strict=True):
        for kind, name, color in kinds:
            axes.bar(np.arange(n)[which == kind], norms[:n][which == kind], color=color, label=name)
        axes.set_ylabel(label, fontsize=8)
        axes.margins(x=0.005)
    grid[0].legend(fontsize=7, ncols=3, loc="upper right")
    grid[-1].set_xticks(np.arange(n), tokens[:n], fontsize=max(4, min(8, 400 / n)))
    _save(figure, path, title)


def interventions(
    cell: Cell, result: Mapping[str, np.ndarray], runs: np.ndarray, path: pathlib.Path, title: str
) -> None:
    """Risks and the residual of ``<s>`` under every intervention, with the band over seeds."""
    names = [str(name) for name in result["about/interventions"]]
    peaks = result["intervened/residual_peak"][runs].max(axis=-1)
    panels = [
        ("backcopy excess risk (nats)", result["intervened/backcopy_excess_exact"][runs]),
        ("bigram excess risk (nats)", result["intervened/bigram_excess_exact"][runs]),
        (f"residual of {BOS} minus others, largest", peaks),
    ]  # fmt: skip
    panels = panels if cell_copies(cell) else panels[1:]
    figure = make_figure(4.2 * len(panels), 0.32 * len(names) + 1.6)
    for axes, (label, values) in zip(
        np.ravel(figure.subplots(1, len(panels), sharey=True)), panels, strict=True
    ):
        if "risk" in label:
            values = np.maximum(values, FLOOR)
            axes.set_xscale("log" if np.isfinite(values).any() else "linear")
        middle, low, high = _quantiles(values, (0.5, *BAND), axis=0)
        where = np.arange(len(names))
        color = ["C3" if name == "none" else "C0" for name in names]
        axes.barh(where, middle, color=color, left=FLOOR if "risk" in label else 0)
        axes.errorbar(
            middle, where, xerr=np.maximum([middle - low, high - middle], 0), fmt="none",
            ecolor="black", elinewidth=1,
        )  # fmt: skip
        axes.set_yticks(where, names, fontsize=8)
        axes.set_xlabel(label, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    _save(figure, path, title)


def parameters(
    result: Mapping[str, np.ndarray], runs: np.ndarray, path: pathlib.Path, title: str
) -> None:
    """Gradient and update norm of every sublayer over time, and what updates do to a residual.

    The last is noisy from one update to the next: a running mean over points is drawn.
    """
    names = [_sublayer(str(name)) for name in result["about/leaf_names"]]
    steps = result[STEPS][1:]
    figure = make_figure(13, 4.6)
    panels = figure.subplots(1, 3)
    largest = 1e-9
    for i, group in enumerate(dict.fromkeys(names)):
        leaves = [k for k, name in enumerate(names) if name == group]
        style = {"color": matplotlib.colormaps["tab20"](i % 20), "label": group}
        for axes, key in zip(panels, ("leaf_gradient", "leaf_update"), strict=False):
            norm = np.linalg.norm(result[key][1:, runs][..., leaves], axis=-1)
            axes.plot(steps, np.maximum(_quantiles(norm, 0.5, axis=1), 1e-12), **style)
        growth = result["leaf_growth"][1:, runs, -1][..., leaves].sum(axis=-1)
        growth = _running_mean(_quantiles(growth, 0.5, axis=1))
        largest = float(np.abs(growth[np.isfinite(growth)]).max(initial=largest))
        panels[2].plot(steps, growth, **style)
    panels[0].set_ylabel("gradient norm")
    panels[1].set_ylabel("update norm")
    for axes in panels[:2]:
        _logarithmic(axes)
    panels[2].set_ylabel(r"$\langle\partial||Res_{<s>}||/\partial\theta,\ \Delta\theta\rangle$")
    panels[2].set_yscale("symlog", linthresh=largest / 100)
    for axes in panels:
        _time(axes, steps)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    _save(figure, path, title)


def _sublayer(leaf: str) -> str:
    """``blocks_0/mlp`` of ``blocks_0/mlp/w1/kernel``, ``output`` of ``output/kernel``."""
    parts = leaf.split("/")
    return "/".join(parts[:2]) if parts[0].startswith("blocks") else parts[0]


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over up to :data:`SMOOTH` neighbours, fewer at the ends."""
    window = np.ones(min(SMOOTH, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def comparison(
    cells: Mapping[str, tuple[Mapping[str, np.ndarray], np.ndarray]], path: pathlib.Path
) -> None:
    """Several cells over time: attention to ``<s>``, value ratio, residual ratio.

    Args:
      cells: by name, the series and the indices of the runs to show.
      path: of the PNG.
    """
    figure = make_figure(14, 4.8)
    panels = figure.subplots(1, 3)
    for i, (name, (arrays, runs)) in enumerate(cells.items()):
        P = len(arrays[STEPS])
        attention = arrays["attention_bos"][:, runs].reshape(P, len(runs), -1)
        head = np.nan_to_num(attention, nan=-1.0).argmax(axis=2)[..., None]
        ratio = arrays["value_ratio"][:, runs].reshape(P, len(runs), -1)
        curves = (
            np.take_along_axis(attention, head, axis=2)[..., 0],
            np.take_along_axis(ratio, head, axis=2)[..., 0],
            arrays["residual_ratio"][:, runs].max(axis=2),
        )
        style = ("-", "--", ":", "-.")[i // 10 % 4]
        for axes, curve in zip(panels, curves, strict=True):
            _band(axes, arrays[STEPS], curve, name, f"C{i % 10}", linestyle=style)
    labels = (
        (f"attention to {BOS}, largest of the heads", SINK),
        ("value norm, that head: " + BOS + " over others", DRAIN),
        ("residual norm: " + BOS + " over others, largest of the layers", PEAK),
    )
    for axes, (label, threshold) in zip(panels, labels, strict=True):
        axes.axhline(threshold, color="grey", linestyle=":")
        axes.set_ylabel(label)
        _time(axes, np.concatenate([arrays[STEPS] for arrays, _ in cells.values()]))
    panels[0].set_ylim(0, 1.05)
    for axes in panels[1:]:
        _logarithmic(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)
    _save(figure, path, "")


def _band(axes: Axes, steps, values, label, color=None, linestyle="-") -> None:
    """``values`` ``(P, R)`` as a line and a band."""
    middle, low, high = _quantiles(values, (0.5, *BAND), axis=1)
    (line,) = axes.plot(steps, middle, label=label, color=color, linestyle=linestyle)
    axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _quantiles(values: np.ndarray, q, axis: int) -> np.ndarray:
    """Over the runs that are finite; nan where none is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanquantile(np.where(np.isfinite(values), values, np.nan), q, axis=axis)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis, where there is something to show on it: diverged runs leave nothing."""
    if any((np.asarray(line.get_ydata(), float) > 0).any() for line in axes.lines):
        axes.set_yscale("log")


def _time(axes: Axes, steps: np.ndarray) -> None:
    later = steps[steps > 0]
    first = float(later.min()) if later.size else 1.0
    axes.set_xscale("symlog", linthresh=first, linscale=0.3)
    axes.set_xlabel("updates")
    if steps.max() > steps.min():
        axes.set_xlim(float(steps.min()), float(steps.max()))
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: pathlib.Path, title: str) -> None:
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
