"""The theory's figures, drawn into files."""

import pathlib
from collections.abc import Mapping

import numpy as np

from crate_jax.interpret.plots import make_figure
from crate_jax.studies.theory.peak import SIZES, Peak
from crate_jax.studies.theory.relu import Relu
from crate_jax.studies.theory.simple import Course
from crate_jax.studies.theory.softmax import CLOSE, Drain, Growth, Joint

PALE = {"color": "0.6", "lw": 0.7, "alpha": 0.5}
FORM = {"color": "black", "ls": "--", "lw": 1.0}
FLOOR = 1e-16


def _panels(title: str):
    figure = make_figure(11, 4.2)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure, left, right


def growth_figure(curves: Growth, moves: np.ndarray, path: pathlib.Path) -> None:
    """The logits of one start against ``1/2 ln t`` and its constant; the residual of every row.

    Args:
      curves: of N = E R rows.
      moves: ``(E, R)``, which of them feel a force.
      path: of the PNG.
    """
    rows, moves = moves.shape[1], moves.reshape(-1)
    figure, left, right = _panels("Sink logits grow like ½ ln t while the value of <s> is constant")
    end = curves.horizon + 1
    for v in range(rows):
        t, alpha = curves.t[v, :end], curves.alpha[v, :end]
        (line,) = left.plot(t, alpha, lw=1.6)
        if moves[v]:
            limit = np.where(
                curves.limit[v, :end] > alpha.min() - 0.5, curves.limit[v, :end], np.nan
            )
            left.plot(t, limit, color=line.get_color(), ls="--", lw=1)
    left.plot([], [], color="0.3", lw=1.6, label=r"$\alpha_v(t)$, one start")
    left.plot(
        [], [], color="0.3", ls="--", lw=1, label=r"$\frac{1}{2}\ln(2\pi_v\,\mathrm{Var}_v(B)\,t)$"
    )
    left.set(xscale="log", xlabel="time t", ylabel="sink logit")
    left.legend(loc="upper left")
    for t, a, b, c in zip(
        curves.t[moves],
        curves.alpha[moves],
        curves.limit[moves],
        curves.refined[moves],
        strict=True,
    ):
        right.plot(t[1:], np.abs(a - b)[1:], **(PALE | {"color": "C0"}))
        right.plot(t[1:], np.maximum(np.abs(a - c)[1:], FLOOR), **(PALE | {"color": "C1"}))
    right.plot([], [], color="C0", label="from the limit")
    right.plot([], [], color="C1", label="from the limit with its next term")
    right.axhline(CLOSE, label="tolerance", **FORM)
    right.set(xscale="log", yscale="log", xlabel="time t", ylabel="distance, every row and start")
    right.set_ylim(1e-7, 30)
    right.legend(loc="lower left")
    figure.savefig(path, dpi=150)


def drain_figure(curves: Drain, path: pathlib.Path) -> None:
    """The visible part of the value over time for every fixed logit, and where it ends."""
    figure, left, right = _panels("The value of <s> drains to e$^{-α}$ of what the others give")
    for a, (alpha, t, size) in enumerate(zip(curves.logits, curves.t, curves.size, strict=True)):
        for member in range(len(t)):
            left.plot(t[member], size[member], color=f"C{a}", lw=0.6, alpha=0.35)
        left.axhline(np.exp(-alpha), color=f"C{a}", ls="--", lw=1.4)
        left.plot([], [], color=f"C{a}", label=f"α = {alpha:g}")
    relative = r"$\Vert\beta-\bar\beta\Vert\,/\,\Vert B-\bar B\Vert$"
    left.set(xscale="log", yscale="log", xlabel="time t", ylabel=relative)
    left.set_title("fixed logits; dashed: $e^{-α}$", fontsize="medium")
    left.legend(loc="lower right", ncols=2)
    for member in range(curves.size.shape[1]):
        right.plot(curves.logits, curves.size[:, member, -1], "o", color="C0", ms=4, alpha=0.4)
    grid = np.linspace(curves.logits.min(), curves.logits.max(), 50)
    right.plot(grid, np.exp(-grid), label="$e^{-α}$", **FORM)
    left.set_ylim(bottom=np.exp(-curves.logits.max()) / 6)
    right.set(yscale="log", xlabel="fixed sink logit α", ylabel=f"{relative} at the end")
    right.legend()
    figure.savefig(path, dpi=150)


def joint_figure(curves: Joint, moves: np.ndarray, path: pathlib.Path) -> None:
    """The logits of one start meeting; spread of the logits and loss of every start."""
    figure, left, right = _panels("With both free, the sink logits meet and stop growing")
    for v in range(curves.alpha.shape[2]):
        style = {"lw": 1.4} if moves[0, v] else {"color": "0.6", "ls": ":", "lw": 1.4}
        left.plot(curves.t, curves.alpha[0, :, v], **style)
    if not moves[0].all():
        left.plot([], [], color="0.6", ls=":", label="token with one successor")
        left.legend(loc="lower right")
    left.set(xscale="log", xlabel="time t", ylabel=r"sink logit $\alpha_v$, one start")
    for name, values, colour in (
        (r"$\mathrm{sd}_v(\alpha_v)$", curves.spread, "C0"),
        (r"$\Vert\beta-\bar\beta+e^{-\bar\alpha}(B-\bar B)\Vert$", curves.off, "C1"),
        ("loss", curves.loss, "C2"),
    ):
        right.plot(curves.t, np.maximum(values, FLOOR).T, color=colour, lw=0.6, alpha=0.5)
        right.plot([], [], color=colour, label=name)
    right.set(xscale="log", yscale="log", xlabel="time t", ylabel="every start")
    right.legend(loc="lower left")
    figure.savefig(path, dpi=150)


def relu_figure(curves: Relu, path: pathlib.Path) -> None:
    """Decay of every row's attention at its rate; the two squares of the joint flow."""
    figure, left, right = _panels("Under ReLU attention the sink closes, and the value may stay")
    left.plot(curves.units, curves.alpha.T, **(PALE | {"color": "C0"}))
    left.plot([], [], color="C0", label=r"$\alpha_v$, every row and start")
    left.plot(curves.units, np.exp(-curves.units), label="slope of the closed form", **FORM)
    left.set(yscale="log", ylabel="sink logit, value fixed")
    left.set(xlabel=r"time in units of $n^2 / (\pi_v\,\mathrm{Var}_v(\beta))$")
    left.legend(loc="lower left")
    for sign, colour, name in ((1, "C0", "C > 0: attention closes"), (-1, "C3", "C < 0: it stays")):
        chosen = np.sign(curves.balance) == sign
        for value, attention in zip(curves.value[chosen], curves.attention[chosen], strict=True):
            right.plot(curves.t, np.maximum(value, FLOOR), color=colour, lw=0.9, alpha=0.6)
            right.plot(
                curves.t, np.maximum(attention, FLOOR), color=colour, lw=0.9, alpha=0.6, ls="--"
            )
        if chosen.any():
            right.plot([], [], color=colour, label=name)
    right.plot([], [], color="0.3", label=r"$\Vert\beta-\bar\beta\Vert^2$")
    right.plot([], [], color="0.3", ls="--", label=r"$\sum_v \max(\alpha_v, 0)^2$")
    right.set(xscale="log", yscale="log", xlabel="time t", ylabel="squares, both free")
    right.set_ylim(1e-8, None)
    right.legend(loc="lower left")
    figure.savefig(path, dpi=150)


def peak_figure(curves: Peak, path: pathlib.Path) -> None:
    """SGD and Adam on the reduced law over a run; Adam's slow law far beyond it."""
    figure, left, right = _panels("The residual peak: flat under SGD, linear under Adam until eps")
    for i in range(len(SIZES)):
        left.plot(curves.steps, curves.adam[i], color="C0", lw=2)
        left.plot(curves.steps, curves.sgd[i], color="C3", lw=2)
        left.plot(curves.steps, curves.adam_form[i], **FORM)
        left.plot(curves.steps, curves.sgd_form[i], **FORM)
        right.plot(curves.slow_t[i, 1:], curves.slow_m[i, 1:], color="C0", lw=2)
        right.plot(curves.slow_t[i, 1:], curves.slow_form[i, 1:], **FORM)
    left.plot([], [], color="C0", lw=2, label="Adam")
    left.plot([], [], color="C3", lw=2, label="SGD")
    left.plot([], [], label="closed form (SGD), slow law (Adam)", **FORM)
    left.set(xlabel="step", ylabel="size m of the residual peak")
    left.set_ylim(bottom=0)
    left.legend()
    right.axvline(curves.steps[-1], color="0.6", ls=":", lw=1.4, label="end of the run at the left")
    right.plot([], [], color="C0", lw=2, label="Adam's slow law")
    right.plot([], [], label="its closed form below eps", **FORM)
    right.set(xscale="log", yscale="log", xlabel="step", ylabel="size m of the residual peak")
    right.legend()
    figure.savefig(path, dpi=150)


def simple_figure(courses: Mapping[str, Course], path: pathlib.Path) -> None:
    """The trained simplified model: its risks over the oracle's, its sink logits and its value."""
    figure, left, right = _panels("The simplified model, trained")
    for (name, course), colour in zip(courses.items(), ("C0", "C3"), strict=True):
        steps = course.steps[1:]
        left.plot(steps, course.backcopy[1:], color=colour, label=f"{name}: backcopy")
        over = np.maximum(course.bigram[1:] - course.oracle, 1e-8)
        left.plot(steps, over, color=colour, ls="--", label=f"{name}: bigram over the oracle")
        low, middle, high = course.alpha[1:].T
        right.plot(steps, middle, color=colour, label=rf"{name}: $\alpha_v$, 10-90 %")
        right.fill_between(steps, low, high, color=colour, alpha=0.15)
        right.plot(
            steps, course.value[1:], color=colour, ls="--",
            label=rf"{name}: $\Vert\beta-\bar\beta\Vert$",
        )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="risk (nats)")
    right.set(xscale="log", xlabel="step", ylabel="sink logit, and size of the value")
    left.legend(loc="lower left")
    right.legend(loc="upper left")
    figure.savefig(path, dpi=150)
