"""The simplified model trained on its task, by AdamW and by SGD with momentum."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crate_jax.config import check_ranges
from crate_jax.data import backcopy, bigram
from crate_jax.models.backcopy_simple import BackcopySimple
from crate_jax.ops.sink_dynamics import visible_size

COLUMNS = (
    "optimizer", "steps", "backcopy risk", "bigram risk", "of the oracle", "attention to <s>",
    "sink logit (10-90 %)", "value size",
)  # fmt: skip

PUBLISHED = ("AdamW, published", "10000", "2e-07", "2.2299", "", "", "", "")
"""Of the official notebook: tiny Shakespeare, 512 sequences of 256 tokens a step, one seed."""

RECORDS = 40


@dataclasses.dataclass(frozen=True)
class SimpleSettings:
    """How the simplified model is trained; the paper's run has ``steps=10_000``, ``batch=512`` and
    ``length=256`` on ``tfds:tiny_shakespeare``.

    Attributes:
      law: a source of ``data.bigram.load``.
      triggers: the most frequent tokens, which are copied around.
      steps, batch, length: of the training; fresh sequences at every step.
      evaluation_batch: sequences that the risks are taken on.
      adamw_rate, sgd_rate: learning rates.
    """

    law: str = "synthetic"
    triggers: int = 3
    steps: int = 3000
    batch: int = 32
    length: int = 64
    evaluation_batch: int = 256
    adamw_rate: float = 0.03
    sgd_rate: float = 0.03


class Course(NamedTuple):
    """A training run at K steps.

    Attributes:
      steps: ``(K,)``.
      backcopy, bigram: ``(K,)`` risks at trigger positions and at the others, nats.
      oracle: bigram risk of the exact oracle.
      attention: ``(K,)`` mean attention of queries that are no triggers to ``<s>``.
      alpha: ``(K, 3)`` 10 %, 50 % and 90 % quantiles over those tokens.
      value: ``(K,)`` size of beta that softmax can see, over the tokens that occur as outputs.
    """

    steps: np.ndarray
    backcopy: np.ndarray
    bigram: np.ndarray
    oracle: float
    attention: np.ndarray
    alpha: np.ndarray
    value: np.ndarray


_RANGES = (
    ("at least 1", lambda x: x >= 1, {"": ("steps", "batch", "evaluation_batch", "triggers")}),
    ("at least 4", lambda x: x >= 4, {"": ("length",)}),
    ("above 0", lambda x: 0 < x < float("inf"), {"": ("adamw_rate", "sgd_rate")}),
)


def check_simple(settings: SimpleSettings) -> None:
    """Raises a ConfigError about the first setting that cannot be."""
    check_ranges(settings, _RANGES, "config.simple")
    bigram.check_source(settings.law, "config.simple.law")
    if settings.law == "synthetic":
        backcopy.check(_task(settings), bigram.load("synthetic"), "config.simple")


def _task(settings: SimpleSettings) -> backcopy.Task:
    return backcopy.Task(length=settings.length, triggers=settings.triggers)


def train_both(settings: SimpleSettings, seed: int, data_dir: str | None) -> dict[str, Course]:
    """By optimizer, how it went; both start from the same parameters and see the same sequences."""
    law = bigram.load(
        settings.law, data_dir=data_dir, seed=seed,
        settings=("config.simple.law", "config.data_dir"),
    )  # fmt: skip
    task = _task(settings)
    backcopy.check(task, law, "config.simple")
    adamw = optax.adamw(settings.adamw_rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=1e-4)
    sgd = optax.chain(
        optax.add_decayed_weights(1e-4), optax.trace(0.9), optax.scale(-settings.sgd_rate)
    )
    return {
        name: _train(optimizer, law, task, settings, seed)
        for name, optimizer in (("AdamW", adamw), ("SGD, momentum", sgd))
    }


def _train(optimizer, law, task, settings: SimpleSettings, seed: int) -> Course:
    triggers = backcopy.triggers(law, task.triggers)
    model = BackcopySimple(vocab=len(law.tokens), triggers=tuple(triggers.tolist()))
    parameters_key, data_key, evaluation_key = jax.random.split(jax.random.key(seed), 3)
    held_out = backcopy.sample(evaluation_key, law, task, settings.evaluation_batch)[:, :-1]
    truth = backcopy.oracle(law, task, held_out)
    at_trigger = backcopy.trigger_mask(law, task, held_out)
    emitted = law.ordinary[law.marginal[law.ordinary] > 0]
    ordinary = np.setdiff1d(emitted, triggers)
    oracle = backcopy.risks(truth, jnp.log(truth), at_trigger)[1]

    def loss(params, tokens):
        logits = model.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(i, carry):
        params, state = carry
        tokens = backcopy.sample(jax.random.fold_in(data_key, i), law, task, settings.batch)
        updates, state = optimizer.update(jax.grad(loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def measure(params):
        logits, seen = model.apply({"params": params}, held_out, capture=("attention",))
        to_first = seen["attention"][0, :, 0, :, 0]
        quantiles = jnp.quantile(params["alpha"][ordinary], jnp.array([0.1, 0.5, 0.9]))
        return (
            *backcopy.risks(truth, logits, at_trigger),
            jnp.mean(to_first, where=~at_trigger),
            quantiles,
            visible_size(params["beta"][emitted]),
        )

    @jax.jit
    def advance(start, end, carry):
        return jax.lax.fori_loop(start, end, step, carry)

    params = model.init(parameters_key, held_out[:1])["params"]
    carry = params, optimizer.init(params)
    steps = np.unique(np.geomspace(1, settings.steps, RECORDS).round().astype(int))
    rows, last = [measure(params)], 0
    for now in steps.tolist():
        carry = advance(last, now, carry)
        rows.append(measure(carry[0]))
        last = now
    copied, rest, attention, alpha, value = (np.stack(column) for column in zip(*rows, strict=True))
    steps = np.concatenate([[0], steps])
    return Course(steps, copied, rest, float(oracle), attention, alpha, value)


def rows(courses: Mapping[str, Course], settings: SimpleSettings) -> list[tuple[str, ...]]:
    """Texts under :data:`COLUMNS`: every run at its end, and the published one on its own text."""
    out = [
        (
            name, f"{c.steps[-1]}", f"{c.backcopy[-1]:.1e}", f"{c.bigram[-1]:.4f}",
            f"{c.oracle:.4f}", f"{c.attention[-1]:.3f}",
            f"{c.alpha[-1, 0]:.1f} to {c.alpha[-1, 2]:.1f}",
            f"{c.value[0]:.2f} -> {c.value[-1]:.2f}",
        )
        for name, c in courses.items()
    ]  # fmt: skip
    return out + [PUBLISHED] if settings.law == "tfds:tiny_shakespeare" else out
