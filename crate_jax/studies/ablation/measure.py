"""The metrics of extreme tokens, of one run on the cell's fixed evaluation batch.

Layers and heads lead: a metric of heads is ``(L, H)``, one of residuals ``(L,)``. Layers without
attention have nan where heads are measured.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.data import backcopy, bigram
from crate_jax.interpret import extreme_tokens
from crate_jax.models.backcopy import BackcopyTransformer, Interventions
from crate_jax.studies.ablation.settings import Cell

Array = jax.Array

CAPTURE = ("attention", "scores", "values", "residual")
BAND = (0.1, 0.9)
"""Quantiles over tokens of the sink logits."""


class Evaluation(NamedTuple):
    """The batch that all runs of a cell are judged on.

    Attributes:
      tokens_BN, targets_BN: inputs and what follows them.
      trigger_BN: True at triggers.
      oracles: by kind, ``official`` and ``exact``, the laws ``(B, N, V)`` of the next token.
      least: by kind, the oracle's own backcopy and bigram risk, nats.
    """

    tokens_BN: Array
    targets_BN: Array
    trigger_BN: Array
    oracles: dict[str, Array]
    least: dict[str, tuple[Array, Array]]


def make_evaluation(law: bigram.Law, task: backcopy.Task, tokens: Array) -> Evaluation:
    """The batch of sequences ``(B, N + 1)``."""
    inputs = tokens[:, :-1]
    trigger = backcopy.trigger_mask(law, task, inputs)
    oracles = {kind: backcopy.oracle(law, task, inputs, kind) for kind in backcopy.KINDS}
    least = {kind: backcopy.risks(o, jnp.log(o), trigger) for kind, o in oracles.items()}
    return Evaluation(inputs, tokens[:, 1:], trigger, oracles, least)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Measures one run.

    Attributes:
      model: of the cell.
      cell: of the grid.
      ordinary_V: True for tokens that are no trigger.
    """

    model: BackcopyTransformer
    cell: Cell
    ordinary_V: np.ndarray

    def metrics(
        self, params, batch: Evaluation, interventions: Interventions | None = None
    ) -> dict[str, Array]:
        """Risks, sinks, drains and peaks, under interventions where they are given."""
        logits, seen = self._apply(params, batch.tokens_BN, interventions)
        return _risks(logits, batch) | self._sinks(seen, batch) | _residuals(seen["residual"])

    def portrait(self, params, batch: Evaluation) -> dict[str, Array]:
        """The first sequence in full: attention, and the norms of values and residuals.

        Returns:
          ``attention`` ``(L, H, N, N)``, ``value_norm`` ``(L, H, N)``, ``residual_norm``
          ``(L, N)``.
        """
        _, seen = self._apply(params, batch.tokens_BN[:1], None)
        return {
            "attention": seen["attention"][:, 0],
            "value_norm": extreme_tokens.value_norms(seen["values"][:, 0]),
            "residual_norm": jnp.linalg.norm(seen["residual"][:, 0], axis=-1),
        }

    def motion(self, params, gradient, update, batch: Evaluation) -> dict[str, Array]:
        """How the last update moved the parameters, and with them the residual of ``<s>``.

        Position 0 sees itself alone, so its residual is that of a sequence of one token.

        Returns:
          ``leaf_gradient`` and ``leaf_update`` ``(K,)``, norms by parameter in the order of
          ``jax.tree.leaves``; ``leaf_growth`` ``(L, K)``, ``<d||Res_<s>||/d theta, Delta theta>``.
        """

        def first_residual(params):
            _, seen = self._apply(params, batch.tokens_BN[:1, :1], None)
            return jnp.linalg.norm(seen["residual"][:, 0, 0], axis=-1)

        slope = jax.jacrev(first_residual)(params)

        def growth(s, u):
            return s.reshape(s.shape[0], -1) @ u.ravel()

        return {
            "leaf_gradient": _norms(gradient),
            "leaf_update": _norms(update),
            "leaf_growth": jnp.stack(jax.tree.leaves(jax.tree.map(growth, slope, update)), -1),
        }

    def _apply(self, params, tokens, interventions):
        return self.model.apply(
            {"params": params}, tokens, interventions=interventions, capture=CAPTURE
        )

    def _sinks(self, seen, batch: Evaluation) -> dict[str, Array]:
        attention, scores = seen["attention"], seen["scores"]
        L, B, H, N, _ = attention.shape
        queries = jnp.broadcast_to(~batch.trigger_BN[:, None], (L, B, H, N))
        logits = extreme_tokens.sink_logits(scores)

        def by_token(logits_BN):
            means = extreme_tokens.mean_by_token(logits_BN, batch.tokens_BN, len(self.ordinary_V))
            return jnp.where(self.ordinary_V, means, jnp.nan)

        logits_LHV = jax.vmap(jax.vmap(by_token, in_axes=1))(logits)
        values_LHN = extreme_tokens.value_norms(seen["values"]).mean(axis=1)
        of_heads = {
            "attention_bos": jnp.mean(attention[..., 0], axis=(1, 3), where=queries),
            "sink_logit": jnp.nanmean(logits_LHV, axis=-1),
            "sink_logit_low": jnp.nanquantile(logits_LHV, BAND[0], axis=-1),
            "sink_logit_high": jnp.nanquantile(logits_LHV, BAND[1], axis=-1),
            "entropy": extreme_tokens.attention_entropy(attention).mean(axis=(1, 3)),
            "value_bos": values_LHN[..., 0],
            "value_others": values_LHN[..., 1:].mean(axis=-1),
            "value_ratio": extreme_tokens.norm_ratio(values_LHN),
        }
        attentive = np.isin(np.arange(L), self.cell.attentive)
        mask = np.broadcast_to(attentive[:, None], (L, H))
        of_heads = {name: jnp.where(mask, value, jnp.nan) for name, value in of_heads.items()}
        rate = extreme_tokens.sink_rate(attention[np.array(self.cell.attentive)])
        return of_heads | {"sink_rate": rate.mean()}


def ordinary(law: bigram.Law, task: backcopy.Task) -> np.ndarray:
    """``(V,)``, True for tokens that are no trigger."""
    ids = jnp.arange(backcopy.vocabulary(law, task))
    return ~np.asarray(backcopy.trigger_mask(law, task, ids))


def _norms(tree) -> Array:
    return jnp.stack([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)])


def _risks(logits: Array, batch: Evaluation) -> dict[str, Array]:
    log_q = jax.nn.log_softmax(logits)
    out = {"loss": -jnp.take_along_axis(log_q, batch.targets_BN[..., None], axis=-1).mean()}
    for kind, oracle in batch.oracles.items():
        raw = backcopy.risks(oracle, logits, batch.trigger_BN)
        for name, risk, least in zip(("backcopy", "bigram"), raw, batch.least[kind], strict=True):
            out |= {f"{name}_risk_{kind}": risk, f"{name}_excess_{kind}": risk - least}
    return out


def _residuals(residual: Array) -> dict[str, Array]:
    norms_LN = jnp.linalg.norm(residual, axis=-1).mean(axis=1)
    return {
        "residual_bos": norms_LN[:, 0],
        "residual_others": norms_LN[:, 1:].mean(axis=-1),
        "residual_ratio": extreme_tokens.norm_ratio(norms_LN),
        "residual_peak": extreme_tokens.peak(norms_LN),
        "max_median": extreme_tokens.max_median_ratio(residual).mean(axis=1),
        "kurtosis": extreme_tokens.kurtosis(residual).mean(axis=(1, 2)),
    }
