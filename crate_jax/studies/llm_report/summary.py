"""From numbers a text and head to what is said of a model: means, labels, sinks, effects."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from crate_jax.config import ConfigError
from crate_jax.data.tokens import Domain
from crate_jax.studies.llm_report import settings as settings_
from crate_jax.studies.llm_report.passes import EVERYWHERE, Variant, mean_by_domain
from crate_jax.studies.llm_report.settings import Settings

PER_HEAD = (
    "sink_score", "sink_logit", "entropy", "value_first", "value_others", "value_ratio",
    "raw_value_ratio", "largest_mass", "second_mass",
)  # fmt: skip
PER_STREAM = ("residual_first", "residual_max", "residual_mean", "max_median", "kurtosis")

SINK_MASS = 0.3
"""Column mass above which a key is listed as a sink of a head on a text."""


def by_domain(found: dict[str, np.ndarray], domain: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the texts of each domain: ``(domains, L, H)`` and ``(domains, L + 1)``.

    ``largest_mass`` and ``second_mass`` are those of each text's two largest columns, whichever
    keys they are of.
    """
    masses = {"largest_mass": found["top_mass"][..., 0], "second_mass": found["top_mass"][..., 1]}
    every = found | masses
    names = PER_HEAD + PER_STREAM
    return {name: mean_by_domain(every[name], domain, axis=1) for name in names}


def of_revision(
    found: dict[str, np.ndarray], domain: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    """What is kept of a revision: :func:`by_domain`, and ``loss`` and ``sink_rate`` by domain."""
    rates = sink_rates(found, domain, threshold)
    means = by_domain(found, domain)
    return means | {"loss": mean_by_domain(found["loss"], domain), "sink_rate": rates}


def curves(
    steps: Sequence[float], revisions: dict[str, np.ndarray], domain: np.ndarray, layer: int
) -> dict[str, np.ndarray]:
    """Curves over the revisions, means over the texts of all domains together.

    Args:
      steps: of the revisions.
      revisions: by the names of :func:`of_revision`, ``(R, domains, ...)``.
      domain: of each text.
      layer: whose heads, and the stream after it.

    Returns:
      ``step``, ``loss``, ``sink_rate`` and the names of ``PER_STREAM`` ``(R,)``, those of
      ``PER_HEAD`` ``(R, H)``.
    """
    pooled = {
        name: np.average(x, axis=1, weights=np.bincount(domain)) for name, x in revisions.items()
    }
    heads = {name: pooled[name][:, layer] for name in PER_HEAD}
    stream = {name: pooled[name][:, layer + 1] for name in PER_STREAM}
    one = {name: pooled[name] for name in ("loss", "sink_rate")}
    return {"step": np.asarray(steps), **one, **heads, **stream}


def differences(score_DLH: np.ndarray) -> np.ndarray:
    """The largest difference of a head's sink score between two domains, ``(L, H)``."""
    return score_DLH.max(axis=0) - score_DLH.min(axis=0)


def sink_rates(found: dict[str, np.ndarray], domain: np.ndarray, threshold: float) -> np.ndarray:
    """The share of heads above the threshold on a text, averaged over each domain's texts."""
    return mean_by_domain((found["sink_score"] > threshold).mean(axis=(0, 2)), domain)


def list_sinks(
    found: dict[str, np.ndarray], tokens: np.ndarray, domain: np.ndarray, most: int = 6
) -> list[list[dict]]:
    """What heads attend to, by domain: the positions and ids whose column mass is a sink's.

    Returns:
      for each domain the most frequent ``{"position", "id", "share"}``: ``share`` is that of all
      heads and texts. Position 0 is one entry, whatever its id; the others go by their id and have
      the position None.
    """
    L, N, H, _ = found["top_mass"].shape
    ids = tokens[np.arange(N)[None, :, None, None], found["top_position"]]
    keys = np.where(found["top_position"] == 0, -1, ids)
    is_sink = found["top_mass"] > SINK_MASS
    lists = []
    for d in range(domain.max() + 1):
        of_domain = domain == d
        counts = Counter(keys[:, of_domain][is_sink[:, of_domain]].tolist())
        cases = L * H * of_domain.sum()
        first = tokens[of_domain, 0]
        first_id = int(first[0]) if (first == first[0]).all() else None
        lists.append(
            [
                {
                    "position": 0 if key == -1 else None,
                    "id": first_id if key == -1 else key,
                    "share": count / cases,
                }
                for key, count in counts.most_common(most)
            ]
        )
    return lists


def choose_variants(settings: Settings, score_DLH: np.ndarray) -> list[Variant]:
    """The changed networks that the settings ask for, heads first, by their rank."""
    _, L, H = score_DLH.shape
    heads = settings_.parse_heads(settings.heads)
    if heads is None:
        ranked = score_DLH.mean(axis=0) if settings.heads == "sink" else differences(score_DLH)
        order = np.argsort(-ranked, axis=None, kind="stable")
        most = {"all": L * H, "none": 0}.get(settings.heads, settings.max_heads)
        heads = [divmod(int(i), H) for i in order[:most]]
    layers = settings_.parse_layers(settings.sublayers)
    layers = range(L) if layers is None else layers
    chosen = [Variant(l, kind, h) for l, h in heads for kind in ("zero_head", "to_first")]
    chosen += [Variant(l, kind) for l in layers for kind in ("no_attention", "no_mlp")]
    return chosen + [Variant(0, kind) for kind in EVERYWHERE if settings.gate]


def check_names(settings: Settings, depth: int, heads: int) -> None:
    """Raises a sentence where the settings name a layer or head that the model does not have."""
    for l, h in settings_.parse_heads(settings.heads) or ():
        if l >= depth or h >= heads:
            raise ConfigError(
                f"config.heads names L{l}H{h}; the model has the layers 0 to {depth - 1} and the "
                f"heads 0 to {heads - 1}."
            )
    last = settings.dynamics_layer
    named = [("sublayers", l) for l in settings_.parse_layers(settings.sublayers) or ()]
    named += [] if last is None else [("dynamics_layer", last)]
    for field, l in named:
        if not 0 <= l < depth:
            raise ConfigError(
                f"config.{field} names layer {l}; the model has the layers 0 to {depth - 1}."
            )


def count_variants(settings: Settings, depth: int, heads: int) -> int:
    """How many :func:`choose_variants` will give."""
    listed = settings_.parse_heads(settings.heads)
    most = {"all": depth * heads, "none": 0}.get(settings.heads, settings.max_heads)
    heads = min(most, depth * heads) if listed is None else len(listed)
    layers = settings_.parse_layers(settings.sublayers)
    everywhere = len(EVERYWHERE) if settings.gate else 0
    return 2 * heads + 2 * (depth if layers is None else len(layers)) + everywhere


def effects(losses: np.ndarray, loss: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Mean change of the loss in nats a token, ``(variants, domains)``."""
    return mean_by_domain(losses - loss[None, :], domain, axis=1).T


def to_json(
    settings: Settings,
    domains: Sequence[Domain],
    domain: np.ndarray,
    found: dict[str, np.ndarray],
    means: dict[str, np.ndarray],
    sinks: list[list[dict]],
    variants: Sequence[Variant],
    effect_VD: np.ndarray,
    first_VD: np.ndarray,
) -> dict:
    """Everything that the page shows, by name, in plain numbers."""
    rates, loss = sink_rates(found, domain, settings.sink), mean_by_domain(found["loss"], domain)
    score = means["sink_score"]
    out = {"domains": {}, "heads": {}, "residual": {}, "interventions": []}
    for d, one in enumerate(domains):
        out["domains"][one.name] = {
            "texts": len(one.tokens),
            "too_short": one.dropped,
            "loss": float(loss[d]),
            "sink_rate": float(rates[d]),
            "dormant_heads": int((score[d] > settings.dormant).sum()),
            "sinks": sinks[d],
        }
        out["heads"][one.name] = {name: means[name][d].tolist() for name in PER_HEAD} | {
            "dormant": (score[d] > settings.dormant).tolist()
        }
        out["residual"][one.name] = {name: means[name][d].tolist() for name in PER_STREAM}
    out["difference"] = differences(score).tolist()

    def name_domains(values):
        return {one.name: float(x) for one, x in zip(domains, values, strict=True)}

    for variant, change, first in zip(variants, effect_VD, first_VD, strict=True):
        out["interventions"].append(
            {
                "kind": variant.kind,
                "layer": None if variant.kind in EVERYWHERE else variant.layer,
                "head": variant.head,
                "loss_change": name_domains(change),
                "residual_first": name_domains(first),
            }
        )
    return out
