"""Figures of the layers, drawn into files."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = (
    ("coding_rate", "coding rate $R^c$ (nats)"),
    ("nonzero", "non-zero codes (fraction)"),
)


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, to be saved and never shown."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def layers_figure(
    runs: Mapping[str, Mapping[str, np.ndarray]], path: str | pathlib.Path, title: str = ""
) -> None:
    """Coding rate and non-zero fraction over depth, mean and one deviation over images, as a PNG.

    Args:
      runs: by label, ``coding_rate``, ``coding_rate_std``, ``nonzero``, ``nonzero_std``, each
        ``(L,)``.
      path: file to write.
      title: over the figure.
    """
    figure = make_figure(*((8, 3) if len(runs) == 1 else (9, 4)))
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for run, layers in runs.items():
            mean, deviation = np.asarray(layers[name]), np.asarray(layers[f"{name}_std"])
            depth = np.arange(1, len(mean) + 1)
            (line,) = axes.plot(depth, mean, "o-", label=run)
            axes.fill_between(
                depth, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.15
            )
        axes.set(xlabel="layer", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(0, 1)
    if len(runs) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(runs)))
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
