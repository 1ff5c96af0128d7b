"""Sink, drain, peak: what the trained cells show, beside what the paper found.

sink   the largest Attn_<s> of a head     > 0.5
drain  ||Val_<s>|| of that head, over the mean of the other tokens    < 0.25
peak   ||Res_<s>|| after a layer, over the mean of the others, the largest    > 2
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from crate_jax.studies.ablation.optimizers import LearningRates, learning_rate
from crate_jax.studies.ablation.records import STEPS
from crate_jax.studies.ablation.settings import Cell, Data, Model, Run, Settings

SINK, DRAIN, PEAK = 0.5, 0.25, 2.0
BAND = (0.1, 0.9)
"""Quantiles over seeds that are shown beside the median."""

UNKNOWN = "-"

PUBLISHED = {
    ("1", "softmax", "adamw"): ("yes", "yes", "no: all norms grow alike"),
    ("2", "softmax", "adamw"): ("(yes)", "(yes)", "weak"),
    ("3", "softmax", "adamw"): ("yes", "yes", "yes"),
    ("3", "softmax", "sgdm"): ("yes", UNKNOWN, "no"),
    ("3", "relu", "adamw"): ("no", UNKNOWN, "no"),
    ("1", "relu", "adamw"): ("no", "no", "large norm, not sink-driven"),
}
"""The paper's verdicts (arXiv 2410.13835) by layers, attention and optimizer: width 256, length
256, batch 512, k = 3, pre-norm, one seed."""

COLUMNS = (
    "cell", "rate, decay", "loss", "Attn_<s>", "sink", "value ratio", "drain", "residual ratio",
    "peak", "end / half", "backcopy, bigram excess", "paper: sink", "drain", "peak",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A cell at one learning rate and weight decay, over seeds S.

    Attributes:
      cell, learning_rate, weight_decay: what was trained.
      attention: ``(S,)``, the largest attention to ``<s>`` of a head.
      drain: ``(S,)``, that head's value norm of ``<s>`` over the mean of the others.
      peak: ``(S,)``, the largest such ratio of a residual.
      growth: ``(S,)``, that residual norm of ``<s>`` over what it was half-way through training.
      excess: ``(S, 2)``, backcopy and bigram risk above the exact oracle's, nats; nan where the
        evaluation batch has no such position.
      loss: ``(S,)`` on the evaluation batch, nats; not finite where a run has diverged.
    """

    cell: Cell
    learning_rate: float
    weight_decay: float
    attention: np.ndarray
    drain: np.ndarray
    peak: np.ndarray
    growth: np.ndarray
    excess: np.ndarray
    loss: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """``(S,)``, the seeds that did not diverge."""
        return np.isfinite(self.loss)

    @property
    def answers(self) -> dict[str, np.ndarray]:
        """By ``sink``, ``drain`` and ``peak``, the seeds that have it, ``(S,)``."""
        return {
            "sink": self.attention > SINK,
            "drain": self.drain < DRAIN,
            "peak": self.peak > PEAK,
        }

    def row(self, mark: str = "", paper: Sequence[str] = (UNKNOWN,) * 3) -> list[str]:
        """The texts of :data:`COLUMNS`.

        Args:
          mark: stands behind the rates.
          paper: the last three.
        """
        alive = self.alive
        if not alive.any():
            measured = ["diverged"] + [UNKNOWN] * 8
        else:
            yes = {name: share(found[alive]) for name, found in self.answers.items()}
            excess = (np.median(risk) for risk in self.excess[alive].T)
            measured = [
                f"{np.median(self.loss[alive]):.4g}", show(self.attention[alive]), yes["sink"],
                show(self.drain[alive]), yes["drain"], show(self.peak[alive]), yes["peak"],
                f"{np.median(self.growth[alive]):.2f}",
                ", ".join(f"{x:.2g}" if np.isfinite(x) else UNKNOWN for x in excess),
            ]  # fmt: skip
            if not alive.all():
                measured[-1] += f" ({(~alive).sum()} diverged)"
        rates = f"{self.learning_rate:g}, {self.weight_decay:g}{mark}"
        return [self.cell.name, rates, *measured, *paper]


def judge(cell: Cell, runs: Sequence[Run], arrays: Mapping[str, np.ndarray]) -> list[Verdict]:
    """The verdicts on a cell's last models, one for each pair of rates.

    Args:
      cell: of the grid.
      runs: R of them.
      arrays: a series, metrics ``(P, R, ...)``.
    """
    R = len(runs)
    attention = arrays["attention_bos"][-1].reshape(R, -1)
    head = np.argmax(np.nan_to_num(attention, nan=-1.0), axis=1)
    ratio = arrays["value_ratio"][-1].reshape(R, -1)
    layer = arrays["residual_ratio"][-1].argmax(axis=1)
    half = np.searchsorted(arrays[STEPS], arrays[STEPS][-1] / 2)
    residual = arrays["residual_bos"][:, np.arange(R), layer]
    of_run = {
        "attention": attention[np.arange(R), head],
        "drain": ratio[np.arange(R), head],
        "peak": arrays["residual_ratio"][-1].max(axis=1),
        "growth": residual[-1] / residual[half],
        "excess": np.stack(
            [arrays[f"{name}_excess_exact"][-1] for name in ("backcopy", "bigram")], axis=-1
        ),
        "loss": arrays["loss"][-1],
    }
    return [
        Verdict(cell, *rates, **{name: x[group] for name, x in of_run.items()})
        for rates, group in groups(runs).items()
    ]


def best(found: Sequence[Verdict]) -> int:
    """Which of a cell's pairs of rates has the least median loss; diverged seeds count as infinite.

    The first one where all are.
    """
    losses = [np.median(np.where(v.alive, v.loss, np.inf)) for v in found]
    return int(np.argmin(losses))


def mark(found: Sequence[Verdict]) -> str:
    """What stands behind the rates of the best of several: whether larger or smaller might do."""
    if len(found) == 1:
        return ""
    chosen, rates = found[best(found)], sorted({v.learning_rate for v in found})
    at_edge = len(rates) > 1 and chosen.learning_rate in (rates[0], rates[-1])
    return f" (best of {len(found)}{', at the edge' if at_edge else ''})"


def cell_copies(cell: Cell) -> bool:
    """Whether a cell's sequences have trigger positions."""
    return cell.triggers > 0 and cell.task != "markov"


def groups(runs: Sequence[Run]) -> dict[tuple[float, float], np.ndarray]:
    """The runs that differ by their seed alone: indices by learning rate and weight decay."""
    out: dict = {}
    for r, run in enumerate(runs):
        out.setdefault((run.learning_rate, run.weight_decay), []).append(r)
    return {rates: np.array(indices) for rates, indices in out.items()}


def published(cell: Cell, settings: Settings) -> tuple[str, str, str]:
    """The paper's sink, drain and peak for a cell; :data:`UNKNOWN` where it has none."""
    plain = Cell(cell.layers, cell.attention, cell.optimizer)
    key = (cell.layers, cell.attention, cell.optimizer)
    if cell != plain or not is_papers_model(settings):
        return (UNKNOWN,) * 3
    return PUBLISHED.get(key, (UNKNOWN,) * 3)


def is_papers_model(settings: Settings) -> bool:
    """Whether transformer and sequences are the paper's in all but size and law."""
    model = dataclasses.replace(settings.model, width=Model.width, hidden=Model.hidden)
    data, paper = settings.data, Data()
    return model == Model() and (data.n_bos, data.delimiter) == (paper.n_bos, paper.delimiter)


def papers_rates(cell: Cell, runs: Sequence[Run]) -> np.ndarray | None:
    """The runs of a cell at the paper's learning rate and weight decay, 1e-4; None without."""
    rate = learning_rate(LearningRates(), cell.optimizer, cell.attention, cell.depth)
    for (own, decay), group in groups(runs).items():
        if np.allclose((own, decay), (rate, 1e-4), rtol=1e-6, atol=0):
            return group
    return None


def show(values: np.ndarray) -> str:
    """Median and band over seeds."""
    middle, low, high = (float(np.quantile(values, q)) for q in (0.5, *BAND))
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def share(found: np.ndarray) -> str:
    """``yes`` or ``no`` where all seeds agree, else how many say yes."""
    if found.all() or not found.any():
        return "yes" if found.all() else "no"
    return f"{found.sum()} of {len(found)}"


TRAJECTORY = {
    0: (0.022, -0.12, 5.20, 4.30, 4.427),
    200: (0.223, 0.89, 8.73, 1.05, 2.296),
    300: (0.560, 3.46, 5.52, 0.44, 2.259),
    1_000: (0.779, 9.70, 3.51, 0.0074, 2.2324),
    10_000: (0.811, 16.8, 1.42, 7.8e-5, 2.2292),
    100_000: (0.870, 35.7, 0.47, 6e-6, 2.2299),
}
"""One layer, softmax, AdamW, by step, from the notebooks of the paper's code: Attn_<s>, sink logit,
value norm of ``<s>``, backcopy risk, bigram risk (official oracle, its own part included)."""

TRAJECTORY_METRICS = (
    "attention_bos", "sink_logit", "value_bos", "backcopy_risk_official", "bigram_risk_official",
)  # fmt: skip

RESIDUALS = {
    ("softmax", "adamw"): {0: 24.3, 1_000: 34.4, 5_000: 70.9, 10_000: 140.7},
    ("softmax", "sgdm"): {0: 24.3, 1_000: 29.1, 5_000: 23.1, 10_000: 20.4},
    ("relu", "adamw"): {0: 23.4, 1_000: 23.6, 5_000: 24.2, 10_000: 24.5},
}
"""Three layers: ``||Res_<s>||`` after the first, by step, from the same notebooks."""


def trajectory(group: np.ndarray, arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Rows of step, published and ours (median over a group of runs)."""
    steps = list(arrays[STEPS])
    out = []
    for step, theirs in TRAJECTORY.items():
        ours = [UNKNOWN] * len(theirs)
        if step in steps:
            values = (arrays[name][steps.index(step)][group] for name in TRAJECTORY_METRICS)
            ours = [f"{np.median(v):.3g}" for v in values]
        pairs = zip(theirs, ours, strict=True)
        out.append([f"{step:,}", *(f"{a:g} / {b}" for a, b in pairs)])
    return out


def residuals(cell: Cell, group: np.ndarray, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Published and our residual norm of ``<s>`` after the first of three layers, by step.

    Ours are medians over a group of runs.
    """
    steps = list(arrays[STEPS])
    out = []
    for step, theirs in RESIDUALS[cell.attention, cell.optimizer].items():
        ours = UNKNOWN
        if step in steps:
            ours = f"{np.median(arrays['residual_bos'][steps.index(step)][group, 0]):.3g}"
        out.append(f"{theirs:g} / {ours}")
    return out
