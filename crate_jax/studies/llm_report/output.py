"""What a report leaves behind: numbers, figures, the page, and a table on the terminal."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from crate_jax.config import ConfigError
from crate_jax.data import tokens as token_files
from crate_jax.data.tokens import Domain
from crate_jax.models.decoder import Architecture
from crate_jax.studies.llm_report import figures, memory, page, passes, summary
from crate_jax.studies.llm_report.settings import Settings
from crate_jax.train import whole


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the passes over a model give.

    Attributes:
      found: of ``passes.measure``.
      means: of ``summary.by_domain``.
      variants: the changed networks.
      changed: of ``passes.change``.
      revisions: of ``summary.of_revision``, revisions first; empty where there are none.
      dynamics: of ``summary.curves``, likewise.
      layer: whose curves, and after which the residual of changed networks was measured.
    """

    found: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    variants: Sequence[passes.Variant]
    changed: dict[str, np.ndarray]
    revisions: dict[str, np.ndarray]
    dynamics: dict[str, np.ndarray]
    layer: int


def write(
    settings: Settings,
    workdir: pathlib.Path,
    arch: Architecture,
    domains: Sequence[Domain],
    texts: passes.Texts,
    outcome: Outcome,
    need: memory.Estimate,
    tokenizer: pathlib.Path | str,
) -> dict:
    """Writes ``results.json``, which is returned, ``statistics.npz``, figures and the page."""
    found, means, changed = outcome.found, outcome.means, outcome.changed
    variants, dynamics, layer = outcome.variants, outcome.dynamics, outcome.layer
    sinks = summary.list_sinks(found, texts.tokens, texts.domain)
    effect_VD = summary.effects(changed["loss"], found["loss"], texts.domain)
    first_VD = passes.mean_by_domain(changed["residual_first"], texts.domain, axis=1).T
    result = summary.to_json(
        settings, domains, texts.domain, found, means, sinks, variants, effect_VD, first_VD
    )
    result["watched_layer"] = layer
    result["model"] = dataclasses.asdict(arch)
    result["memory"] = dataclasses.asdict(need) | {"total": need.total}
    if dynamics:
        curves = {name: array.tolist() for name, array in dynamics.items()}
        result["dynamics"] = {"layer": layer, **curves}
    result = _finite(result)
    whole.write_text(workdir / "results.json", json.dumps(result, indent=1) + "\n")
    arrays = {"tokens": texts.tokens, "domain": texts.domain, **found}
    for prefix, more in (
        ("intervention", changed), ("dynamics", dynamics), ("revisions", outcome.revisions),
    ):  # fmt: skip
        arrays |= {f"{prefix}_{name}": array for name, array in more.items()}
    whole.write_npz(workdir / "statistics.npz", arrays)
    page.write(
        workdir / "report.html", settings=settings, arch=arch, domains=domains, result=result,
        variants=variants, effect_VD=effect_VD, first_V=_watched(outcome, first_VD, texts),
        score_DLH=means["sink_score"],
        pictures=_draw(workdir / "figures", domains, texts, outcome, effect_VD),
        memory=memory.describe(need), name_token=_namer(tokenizer),
    )  # fmt: skip
    return result


def _finite(x):
    """The same with None for nan and infinities, which JSON does not have."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _watched(outcome, first_VD, texts) -> np.ndarray:
    """Residual norms over all texts: of the model as it is, then of each changed network."""
    own = outcome.found["residual_first"][outcome.layer + 1].mean()
    return np.array([own, *np.average(first_VD, axis=1, weights=np.bincount(texts.domain))])


def _draw(folder, domains, texts, outcome, effect_VD) -> list[pathlib.Path]:
    """Draws the figures; their paths in the order of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    found, means, variants = outcome.found, outcome.means, outcome.variants
    names = [one.name for one in domains]
    drawn = []

    def path(name):
        drawn.append(folder / f"{name}.png")
        return drawn[-1]

    def panels(key, change=np.asarray):
        return [(name, change(means[key][d])) for d, name in enumerate(names)]

    figures.heads(
        path("sinks"), panels("sink_score"), "attention to the first token", low=0, high=1
    )
    if len(names) > 1:
        gap = summary.differences(means["sink_score"])
        figures.heads(path("difference"), [("largest difference", gap)], "sink score", low=0)
    if any(variant.kind == "zero_head" for variant in variants):
        figures.head_effects(
            path("head_effects"), names, texts.domain, variants, found["sink_score"],
            outcome.changed["loss"] - found["loss"],
        )  # fmt: skip
    if any(variant.kind == "no_mlp" for variant in variants):
        figures.sublayer_effects(path("sublayer_effects"), names, variants, effect_VD)
    figures.residuals(path("residuals"), names, means)
    for name, key in (("values", "value_ratio"), ("raw_values", "raw_value_ratio")):
        reach = float(np.percentile(np.abs(_log10(means[key])), 99))
        figures.heads(
            path(name), panels(key, _log10), "log10 of first over others", low=-reach, high=reach,
            colours="RdBu_r",
        )  # fmt: skip
    figures.heads(path("logits"), panels("sink_logit"), "sink logit")
    figures.heads(path("entropies"), panels("entropy"), "entropy (nats)", low=0)
    mass = found["column_mass"].mean(axis=2)
    figures.columns(path("columns"), [(name, mass[:, d]) for d, name in enumerate(names)])
    if dynamics := outcome.dynamics:
        figures.dynamics(path("dynamics"), dynamics["step"], dynamics, outcome.layer)
    return drawn


def _log10(ratio: np.ndarray) -> np.ndarray:
    """The logarithm, where a value is zero that of a very small one."""
    return np.log10(np.maximum(ratio, 1e-6))


def _namer(tokenizer):
    """An id as text where there is a tokenizer to ask, and as a number where not."""

    def name(i):
        try:
            return f"{i} {token_files.decode(tokenizer, [i])[0]!r}"
        except ConfigError:
            return str(i)

    return name


def show(settings: Settings, console: Console, domains: dict[str, dict]) -> None:
    """Prints the page's table of domains, given those of ``results.json``."""
    table = page.domain_table(settings, domains)
    shown = Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
