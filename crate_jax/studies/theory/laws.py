"""Markov laws and random starts, stacked so that every flow runs over all of them at once."""

from typing import NamedTuple

import numpy as np

from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram


class Ensemble(NamedTuple):
    """Members of an ensemble: E pairs of a law and a start, R query tokens, V output tokens.

    Symbols as in ``ops.sink_dynamics``; float64.

    Attributes:
      p: ``(E, R, V)`` rows of the law that are no triggers.
      pi: ``(E, R)`` weights; they sum to 1.
      B: ``(E, V)`` expected counts times the random value of a token.
      W: sum of the expected counts.
      alpha0, beta0: ``(E, R)`` and ``(E, V)`` standard normal.
      groups: ``(E, V)`` classes of output tokens that rows connect.
      tokens: names of the query tokens.
    """

    p: np.ndarray
    pi: np.ndarray
    B: np.ndarray
    W: float
    alpha0: np.ndarray
    beta0: np.ndarray
    groups: np.ndarray
    tokens: tuple[str, ...]

    @property
    def moves(self) -> np.ndarray:
        """``(E, R)``: rows with more than one successor; the others feel no force."""
        return (self.p > 0).sum(-1) > 1


def make_ensemble(settings) -> Ensemble:
    """The ensemble of the settings of the study; a function of them and the seed alone."""
    rng = np.random.default_rng(settings.seed)
    if settings.source == "dirichlet":
        laws = [_draw_law(rng, settings) for _ in range(settings.laws)]
        tokens = tuple(str(k) for k in range(settings.vocabulary))
    else:
        law, tokens = load_law(settings)
        laws = [law]
    groups = [_connect(law[0]) for law in laws]
    p, pi, share = (
        np.repeat(np.stack(arrays), settings.starts, axis=0) for arrays in zip(*laws, strict=True)
    )
    E, R, V = p.shape
    return Ensemble(
        p=p,
        pi=pi,
        B=settings.length * share * rng.standard_normal((E, V)),
        W=float(settings.length),
        alpha0=rng.standard_normal((E, R)),
        beta0=rng.standard_normal((E, V)),
        groups=np.repeat(np.stack(groups), settings.starts, axis=0),
        tokens=tokens,
    )


def _draw_law(rng, settings):
    """Dirichlet rows, the last of them with one successor; weights and counts are stationary."""
    V = settings.vocabulary
    p = rng.dirichlet(np.full(V, settings.concentration), size=V)
    p[-1] = np.eye(V)[0]
    values, vectors = np.linalg.eig(p.T)
    pi = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    pi /= pi.sum()
    return p, pi, pi


def load_law(settings):
    """Rows and columns of a bigram law that can occur: no triggers, ``<s>`` or delimiter.

    Raises:
      ConfigError: where the law cannot be had, or less than two of either are left.
    """
    law = bigram.load(
        settings.source, data_dir=settings.data_dir, seed=settings.seed,
        settings=("config.source", "config.data_dir"),
    )  # fmt: skip
    ordinary, triggers = law.ordinary, backcopy.triggers(law, settings.triggers)
    rows = [v for v in ordinary if v not in triggers and law.marginal[v] > 0]
    columns = [k for k in ordinary if law.P[rows, k].any()]
    if len(rows) < 2 or len(columns) < 2:
        raise ConfigError(
            f"config.source={settings.source!r} leaves {len(rows)} tokens that are no triggers; "
            f"use a law of more tokens, or fewer config.triggers."
        )
    p = law.P[np.ix_(rows, columns)]
    pi, share = law.marginal[rows], law.marginal[columns]
    parts = p / p.sum(-1, keepdims=True), pi / pi.sum(), share / share.sum()
    return parts, tuple(law.tokens[v] for v in rows)


def _connect(p: np.ndarray) -> np.ndarray:
    """``(V,)`` numbers of the classes of output tokens: one row emits both of two that touch."""
    support = (p > 0).astype(float)
    touch = (support.T @ support > 0) | np.eye(p.shape[1], dtype=bool)
    for _ in range(p.shape[1].bit_length()):
        touch = touch.astype(float) @ touch.astype(float) > 0
    return touch.argmax(axis=1)
