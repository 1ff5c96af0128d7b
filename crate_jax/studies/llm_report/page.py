"""The report's page: tables and figures under one title."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from crate_jax.data.tokens import Domain
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.models.decoder import Architecture
from crate_jax.studies.llm_report import summary
from crate_jax.studies.llm_report.passes import EVERYWHERE, Variant
from crate_jax.studies.llm_report.settings import Settings

WORDS = {
    "zero_head": "set to zero",
    "to_first": "moved to the first token",
    "no_attention": "attention taken out",
    "no_mlp": "MLP taken out",
    "zero_sinks": "sink heads set to zero",
    "sinks_to_first": "sink heads moved to the first token",
}

NOTES = {
    "sinks": "Attention to the first token, a mean over the queries from the second on and over "
    "texts. Above the threshold a head is called dormant on the domain.",
    "difference": "The largest difference of that mean between two domains: heads that are dormant "
    "on one and active on another stand out.",
    "logits": "Score of the first token minus the mean score of the other keys, before softmax.",
    "entropies": "Entropy of the attention rows in nats; 0 where a query attends to one key.",
    "values": "Norm of the first token's value over the mean of the others', after the head's "
    "slice of the output map: a drain is blue.",
    "raw_values": "The same before the output map.",
    "residuals": "Norms of the residual stream after each layer. A peak is a first token far above "
    "the largest other.",
    "columns": "Mean attention that a key gets from the queries that see it. The last keys are "
    "seen by few, and themselves among them.",
    "head_effects": "Each dot is a text: how much the loss changes when the head's attention is "
    "set to zero, over the head's attention to the first token on that text.",
    "sublayer_effects": "Change of the loss when what a layer's attention, or its MLP, adds to the "
    "stream is left out.",
    "dynamics": "Over the revisions of the training; texts of all domains together.",
}

TITLES = {
    "sinks": "Sink scores",
    "difference": "Differences between domains",
    "logits": "Sink logits",
    "entropies": "Attention entropies",
    "values": "Value norms",
    "raw_values": "Value norms before the output map",
    "residuals": "Residual norms",
    "columns": "Column mass",
    "head_effects": "Heads set to zero",
    "sublayer_effects": "Sublayers taken out",
    "dynamics": "Training dynamics",
}


def write(
    path: pathlib.Path,
    *,
    settings: Settings,
    arch: Architecture,
    domains: Sequence[Domain],
    result: dict,
    variants: Sequence[Variant],
    effect_VD: np.ndarray,
    first_V: np.ndarray,
    score_DLH: np.ndarray,
    pictures: Sequence[pathlib.Path],
    memory: str,
    name_token: Callable[[int], str],
) -> None:
    """Writes the page.

    Args:
      path: of the HTML.
      settings: of the report.
      arch: the network.
      domains: the texts.
      result: what ``summary.to_json`` gives.
      variants, effect_VD: changed networks and their mean loss changes.
      first_V: norm of the first token's residual in the model, and then in each changed network.
      score_DLH: mean sink scores.
      pictures: PNGs, each named by a key of ``TITLES``.
      memory: the estimate in words.
      name_token: an id as text.
    """
    names = [domain.name for domain in domains]
    checkpoint = pathlib.Path(settings.checkpoint).name
    parts = [
        f"{arch.family}, {arch.depth} layers of {arch.heads} heads ({arch.kv_heads} of keys and "
        f"values), width {arch.width}; {settings.length} tokens a text; computed in "
        f"{settings.dtype}. Memory said beforehand: {memory} a device.",
        domain_table(settings, result["domains"]),
        _sink_table(result["domains"], name_token),
        head_table(settings, names, score_DLH),
    ]
    if variants:
        parts.append(_effect_table(names, variants, effect_VD, first_V, result["watched_layer"]))
    parts += [Picture(TITLES[p.stem], p, NOTES[p.stem]) for p in pictures]
    write_page(path, f"Extreme tokens of {checkpoint}", parts)


def domain_table(settings: Settings, domains: dict[str, dict]) -> Table:
    """Texts, loss and sinks of each domain."""
    rows = [
        (
            name, str(one["texts"]), str(one["too_short"]), f"{one['loss']:.3f}",
            f"{one['sink_rate']:.1%}", str(one["dormant_heads"]),
        )
        for name, one in domains.items()
    ]  # fmt: skip
    return Table(
        "Domains",
        ("domain", "texts", "too short", "loss (nats)", "sink rate", "dormant heads"),
        rows,
        f"Sink rate: share of heads whose mean attention to the first token is above "
        f"{settings.sink}, a mean over texts. Dormant: above {settings.dormant} on average.",
    )


def head_table(
    settings: Settings, names: Sequence[str], score_DLH: np.ndarray, most: int = 10
) -> Table:
    """The heads that differ most between domains, or with one domain those of the largest score."""
    several = len(names) > 1
    rank = summary.differences(score_DLH) if several else score_DLH[0]
    H = score_DLH.shape[2]
    rows = []
    for i in np.argsort(-rank, axis=None, kind="stable")[:most].tolist():
        l, h = divmod(i, H)
        cells = [
            f"{score:.3f} {'dormant' if score > settings.dormant else 'active'}"
            for score in score_DLH[:, l, h]
        ]
        rows.append((f"L{l}H{h}", *cells, *([f"{rank[l, h]:.3f}"] if several else [])))
    title = "Active and dormant heads" if several else "Heads of the largest sink score"
    head = ("head", *names, *(["difference"] if several else []))
    return Table(title, head, rows, "Mean attention to the first token, and the label it gives.")


def _sink_table(domains: dict[str, dict], name_token) -> Table:
    rows = []
    for name, one in domains.items():
        for sink in one["sinks"]:
            token = "(varies)" if sink["id"] is None else name_token(sink["id"])
            where = "first" if sink["position"] == 0 else "later"
            rows.append((name, where, token, f"{sink['share']:.1%}"))
    return Table(
        "Sinks",
        ("domain", "position", "token", "share of heads and texts"),
        rows,
        "Keys that get more than 0.3 of the attention of the queries that see them, among the two "
        "largest in the first half of each text.",
    )


def _effect_table(names, variants, effect_VD, first_V, layer) -> Table:
    rows = []
    for variant, changes, first in zip(variants, effect_VD, first_V[1:], strict=True):
        what = f"L{variant.layer}" + ("" if variant.head is None else f"H{variant.head}")
        what = "all layers" if variant.kind in EVERYWHERE else what
        norm = f"{first:.4g}" if np.isfinite(first) else ""
        rows.append((what, WORDS[variant.kind], *(f"{x:+.4f}" for x in changes), norm))
    return Table(
        "Interventions",
        ("where", "what", *names, f"first token's residual after L{layer}"),
        rows,
        "Mean change of the loss in nats a token; above 0 the model has become worse. The norm of "
        f"the first token's residual is {first_V[0]:.4g} in the model as it is.",
    )
