"""The report's figures, one function a PNG."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from crate_jax.interpret.plots import make_figure
from crate_jax.studies.llm_report.passes import Variant

RESIDUALS = (
    ("residual_first", "first token", "-"),
    ("residual_max", "largest other", "--"),
    ("residual_mean", "mean of the others", ":"),
)


def heads(
    path: pathlib.Path,
    panels: Sequence[tuple[str, np.ndarray]],
    label: str,
    *,
    low: float | None = None,
    high: float | None = None,
    colours: str = "viridis",
) -> None:
    """Maps of layer by head, ``(L, H)`` each, on one scale.

    Args:
      path: to write.
      panels: title and values.
      label: of the colour bar.
      low, high: ends of the scale; None is the data's.
      colours: a colour map.
    """
    values = [array for _, array in panels]
    low = min(float(np.nanmin(v)) for v in values) if low is None else low
    high = max(float(np.nanmax(v)) for v in values) if high is None else high
    L, H = values[0].shape
    rows, columns = _grid(len(panels))
    height = min(max(1.1 + 2.8 * L / max(H, 1), 2.0), 4.5)
    figure, axes = _figure(rows, columns, 3.4, height)
    for axis, (title, array) in zip(axes, panels, strict=False):
        image = axis.imshow(
            array, aspect="auto", vmin=low, vmax=high, cmap=colours, interpolation="nearest"
        )
        axis.set(title=title, xlabel="head", ylabel="layer")
        _whole_numbers(axis)
    figure.colorbar(image, ax=axes[: len(panels)], label=label, fraction=0.05)
    _save(figure, axes, len(panels), path)


def columns(path: pathlib.Path, panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Column mass by layer and key, ``(L, T)`` each, a mean over heads."""
    rows, across = _grid(len(panels))
    figure, axes = _figure(rows, across, 4.6, 2.9)
    for axis, (title, mass_LT) in zip(axes, panels, strict=False):
        image = axis.imshow(
            mass_LT, aspect="auto", vmin=0, vmax=1, cmap="magma", interpolation="nearest"
        )
        axis.set(title=title, xlabel="key position", ylabel="layer")
        _whole_numbers(axis)
    figure.colorbar(image, ax=axes[: len(panels)], label="column mass, mean over heads")
    _save(figure, axes, len(panels), path)


def residuals(path: pathlib.Path, names: Sequence[str], means: dict[str, np.ndarray]) -> None:
    """Norms of the residual stream over layers; 0 is the embedding."""
    figure, axes = _figure(1, 1, 6.5, 3.6)
    for d, name in enumerate(names):
        for key, label, style in RESIDUALS:
            norms = means[key][d]
            axes[0].plot(
                range(len(norms)), norms, style, color=f"C{d}", marker=".", label=f"{name}, {label}"
            )
    axes[0].set(xlabel="layer (0: embedding)", ylabel="norm of the residual", yscale="log")
    _whole_numbers(axes[0], "x")
    axes[0].grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, 3 * len(names)), fontsize="small")
    _save(figure, axes, 1, path)


def head_effects(
    path: pathlib.Path,
    names: Sequence[str],
    domain: np.ndarray,
    variants: Sequence[Variant],
    score_LNH: np.ndarray,
    change_VN: np.ndarray,
    most: int = 8,
) -> None:
    """For each head that was set to zero: loss change of each text over its sink score."""
    shown = [i for i, variant in enumerate(variants) if variant.kind == "zero_head"][:most]
    rows, across = _grid(len(shown), 4)
    figure, axes = _figure(rows, across, 2.9, 2.6)
    for axis, i in zip(axes, shown, strict=False):
        layer, head = variants[i].layer, variants[i].head
        for d, name in enumerate(names):
            of = domain == d
            axis.scatter(score_LNH[layer, of, head], change_VN[i, of], s=14, alpha=0.7, label=name)
        axis.axhline(0, color="0.6", lw=0.8)
        axis.set(title=f"layer {layer}, head {head}", xlim=(-0.03, 1.03))
        axis.set(xlabel="attention to the first token", ylabel="loss change (nats)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(names)))
    _save(figure, axes, len(shown), path)


def sublayer_effects(
    path: pathlib.Path, names: Sequence[str], variants: Sequence[Variant], effect_VD: np.ndarray
) -> None:
    """Mean loss change where a layer's attention or its MLP is taken out."""
    kinds = (("no_attention", "without attention"), ("no_mlp", "without MLP"))
    layers = sorted({v.layer for v in variants if v.kind in dict(kinds)})
    shown = [i for i, v in enumerate(variants) if v.kind in dict(kinds)]
    figure, axes = _figure(1, 2, 4.4, 3.2, sharey=True)
    width = 0.8 / len(names)
    for axis, (kind, title) in zip(axes, kinds, strict=True):
        at = {v.layer: i for i, v in enumerate(variants) if v.kind == kind}
        for d, name in enumerate(names):
            x = np.arange(len(layers)) + (d - (len(names) - 1) / 2) * width
            axis.bar(x, [effect_VD[at[l], d] for l in layers], width, label=name)
        step = math.ceil(len(layers) / 12)
        axis.set_xticks(range(0, len(layers), step), layers[::step])
        axis.set(title=title, xlabel="layer")
        axis.axhline(0, color="0.6", lw=0.8)
        if np.abs(effect_VD[shown]).max() > 1:
            axis.set_yscale("symlog", linthresh=0.1)
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("loss change (nats)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(names)))
    _save(figure, axes, 2, path)


def dynamics(
    path: pathlib.Path, steps: Sequence[float], curves: dict[str, np.ndarray], layer: int
) -> None:
    """Statistics of one layer over the revisions of a training run.

    Args:
      path: to write.
      steps: of the revisions.
      curves: ``sink_logit`` and ``value_ratio`` ``(R, H)``, ``residual_first``, ``residual_mean``
        and ``sink_rate`` ``(R,)``.
      layer: which one.
    """
    figure, axes = _figure(2, 2, 4.2, 2.7, sharex=True)
    for axis, key, label in (
        (axes[0], "sink_logit", "sink logit"),
        (axes[1], "value_ratio", "value norm, first over others"),
    ):
        axis.plot(steps, curves[key], color="0.75", lw=0.7)
        axis.plot(steps, curves[key].mean(axis=1), "C0.-", label="mean over heads")
        axis.set(ylabel=label, title=f"layer {layer}")
        axis.legend(fontsize="small")
    axes[1].set_yscale("log")
    for key, label, style in (RESIDUALS[0], RESIDUALS[2]):
        axes[2].plot(steps, curves[key], f"C1{style}", marker=".", label=label)
    axes[2].set(ylabel="norm of the residual", yscale="log", title=f"after layer {layer}")
    axes[2].legend(fontsize="small")
    axes[3].plot(steps, curves["sink_rate"], "C2.-")
    axes[3].set(ylabel="sink rate", title="all layers", ylim=(0, 1))
    later = [step for step in steps if step > 0]
    if later and max(later) > 20 * min(later):
        axes[0].set_xscale("symlog", linthresh=min(later))
    for axis in axes:
        axis.grid(alpha=0.3)
    for axis in axes[2:]:
        axis.set_xlabel("step of the training")
    _save(figure, axes, 4, path)


def _grid(count: int, across: int = 3) -> tuple[int, int]:
    across = min(count, across)
    return math.ceil(count / across), across


def _figure(rows, columns, width, height, **shared):
    figure = make_figure(width * columns + 1, height * rows + 0.4)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared).ravel()


def _whole_numbers(axis, which: str = "both") -> None:
    for line in (axis.xaxis, axis.yaxis)[: 1 if which == "x" else 2]:
        line.get_major_locator().set_params(integer=True)


def _save(figure, axes, used, path) -> None:
    for axis in axes[used:]:
        axis.remove()
    figure.savefig(path, dpi=130)
