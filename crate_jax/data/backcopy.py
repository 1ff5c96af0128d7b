"""Bigram-Backcopy and its relatives: sequences, what can be predicted of them, and at what risk.

"Active-Dormant Attention Heads" (arXiv 2410.13835, section 2). The most frequent tokens are
triggers. A sequence is ``<s>``, a first token that is no trigger, and then

    x_n = x_{n-2}           where x_{n-1} is a trigger
    x_n ~ P[x_{n-1}]        elsewhere

Relatives: ``interpolate`` copies with a probability only and else draws from ``P[x_{n-1}]``;
``dormant_markov`` draws from ``P[x_{n-2}]`` after a trigger; ``bietti`` (arXiv 2306.00802) fixes a
uniform token per sequence and trigger, and puts it after every occurrence; ``markov`` has no
triggers. The last three may start with a trigger.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.config import ConfigError, nearest
from crate_jax.data.bigram import Law, with_bos, with_delimiter
from crate_jax.data.categorical import draw, random_bits, threshold, thresholds

Array = jax.Array

TASKS = ("backcopy", "interpolate", "dormant_markov", "bietti", "markov")
KINDS = ("official", "exact")

CONTEXTS = 512
"""Of ``bietti``'s fixed outputs: so many are averaged over where there are more than that."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What sequences are made of.

    Attributes:
      name: one of :data:`TASKS`.
      length: N, the tokens that a model reads; a sequence has one more, the last target.
      n_bos: start tokens, 0 to 2.
      triggers: how many of the most frequent tokens are triggers.
      delimiter: probability that an ordinary token of the law is followed by ``<d>``.
      copy_probability: of ``interpolate``.
    """

    name: str = "backcopy"
    length: int = 256
    n_bos: int = 1
    triggers: int = 3
    delimiter: float = 0.0
    copy_probability: float = 0.5


def check_task(task: Task, path: str = "task") -> None:
    """Raises a ConfigError where the task makes no sense with any law.

    Args:
      task: to check.
      path: how an error names where its numbers are set.
    """
    if task.name not in TASKS:
        raise ConfigError(f"there is no task {task.name!r}{nearest(task.name, TASKS)}")
    if task.n_bos not in (0, 1, 2):
        raise ConfigError(f"{path}.n_bos must be 0, 1 or 2; got {task.n_bos}.")
    if task.length < task.n_bos + 1:
        raise ConfigError(
            f"{path}.length={task.length} leaves no room after {task.n_bos} start tokens; write "
            f"{task.n_bos + 1} at least."
        )
    for name, below in (("delimiter", 1.0), ("copy_probability", None)):
        value = getattr(task, name)
        if not 0 <= value <= 1 or value == below:
            below_1 = " below 1" if below else ""
            raise ConfigError(f"{path}.{name} is a probability{below_1}; got {value!r}.")
    if task.triggers < 0:
        raise ConfigError(f"the number of triggers must be at least 0; got {task.triggers}.")


def check(task: Task, law: Law, path: str = "task") -> None:
    """As :func:`check_task`, and where the task makes no sense with this law."""
    check_task(task, path)
    if task.delimiter and law.delimiter is None:
        raise ConfigError(
            f"{path}.delimiter={task.delimiter}, but the bigram law has no delimiter; set it to 0."
        )
    others = int(np.count_nonzero(law.marginal)) - task.triggers
    if others < 1:
        raise ConfigError(
            f"{task.triggers} triggers leave no token that occurs and is no trigger; with this "
            f"bigram law there are at most {others + task.triggers - 1}."
        )


def adapt(law: Law, task: Task) -> Law:
    """The law in the ids and with the delimiter of a task; doing it twice changes nothing.

    :func:`sample` and all others here do it themselves.
    """
    return with_delimiter(with_bos(law, task.n_bos), task.delimiter)


def vocabulary(law: Law, task: Task) -> int:
    """V, the number of token ids of a task: a model's ``vocab``."""
    return len(adapt(law, task).tokens)


def triggers(law: Law, k: int) -> np.ndarray:
    """Ids of the ``k`` most frequent tokens, the most frequent one first, ``(k,)``."""
    return np.argsort(-law.marginal, kind="stable")[:k].astype(np.int32)


def trigger_mask(law: Law, task: Task, tokens: Array) -> Array:
    """Booleans like ``tokens``, True at triggers; nowhere in ``markov``, which has none."""
    return jnp.asarray(_is_trigger(adapt(law, task), task))[tokens]


def sample(key: Array, law: Law, task: Task, batch: int) -> Array:
    """Fresh sequences.

    The same tokens from a key whatever the float width, and never one of probability 0; see
    :mod:`crate_jax.data.categorical`.

    Args:
      key: of all randomness; may be mapped over.
      law: see ``bigram.load``; static, like ``task`` and ``batch``.
      task: what to make.
      batch: number of sequences B.

    Returns:
      int32 ``(B, N + 1)``. Inputs are all but the last, targets all but the first.
    """
    law = adapt(law, task)
    is_trigger_V = jnp.asarray(_is_trigger(law, task))
    rows_VV = jnp.asarray(thresholds(law.P))
    of_steps, of_coins, of_outputs = jax.random.split(key, 3)
    steps = task.length + 1 - task.n_bos

    bits_SB = random_bits(of_steps, (steps, batch))
    first_V = jnp.asarray(thresholds(_first_law(law, task)))
    first_B = draw(bits_SB[0], jnp.broadcast_to(first_V, (batch, first_V.size)))
    coins_SB = jnp.zeros((steps, 0), bool)
    if task.name == "interpolate":
        coins_SB = random_bits(of_coins, (steps, batch)) <= threshold(task.copy_probability)
    if task.name == "bietti":
        outputs_BV = _fixed_outputs(of_outputs, law, task, batch)

    def step(previous_and_current, draws):
        previous_B, current_B = previous_and_current
        bits_B, coin_B = draws
        trigger_B = is_trigger_V[current_B]
        row_B = current_B
        if task.name == "dormant_markov":
            row_B = jnp.where(trigger_B, previous_B, current_B)
        next_B = draw(bits_B, rows_VV[row_B])
        if task.name == "backcopy":
            next_B = jnp.where(trigger_B, previous_B, next_B)
        elif task.name == "interpolate":
            next_B = jnp.where(trigger_B & coin_B, previous_B, next_B)
        elif task.name == "bietti":
            fixed_B = jnp.take_along_axis(outputs_BV, current_B[:, None], axis=1)[:, 0]
            next_B = jnp.where(trigger_B, fixed_B, next_B)
        return (current_B, next_B), next_B

    bos = [jnp.full((batch,), i, jnp.int32) for i in law.bos_tokens]
    # without <s> the first token stands in for the one before it, as in the oracle
    start = (bos[-1] if bos else first_B, first_B)
    _, rest_SB = jax.lax.scan(step, start, (bits_SB[1:], coins_SB[1:]))
    return jnp.concatenate([jnp.stack([*bos, first_B]), rest_SB]).T


def official_batch(
    law: Law, task: Task, batch: int = 512, seed: Sequence[int] = (42, 27)
) -> np.ndarray:
    """The very sequences that the official notebooks evaluate on, for the law they were made from.

    One uniform number a token, sequence by sequence, from numpy's generator; tokens that are copied
    use up theirs as well.

    Args:
      law: see ``bigram.load``.
      task: ``backcopy``.
      batch: number of sequences B.
      seed: of ``numpy.random.default_rng``.

    Returns:
      int32 ``(B, N + 1)``.
    """
    if task.name != "backcopy":
        raise ConfigError(f"official batches are those of backcopy; task.name is {task.name!r}.")
    law = adapt(law, task)
    is_trigger = _is_trigger(law, task)
    uniform = np.random.default_rng(seed).random((batch, task.length + 1 - law.n_bos))

    def find(p, u):
        cumulated = np.cumsum(p, axis=-1)
        return (cumulated / cumulated[..., -1:] <= u[:, None]).sum(axis=-1)

    columns = [np.full(batch, i) for i in law.bos_tokens]
    columns.append(find(_first_law(law, task), uniform[:, 0]))
    for u in uniform.T[1:]:
        drawn = find(law.P[columns[-1]], u)
        # the first token is no trigger, so there is one before any trigger
        columns.append(np.where(is_trigger[columns[-1]], columns[max(len(columns) - 2, 0)], drawn))
    return np.stack(columns, axis=1).astype(np.int32)


def oracle(law: Law, task: Task, tokens: Array, kind: str = "exact") -> Array:
    """The law of the next token, given all tokens up to each position.

    Args:
      law: see ``bigram.load``.
      task: what the tokens are of.
      tokens: ``(..., N)`` inputs.
      kind: ``exact``; or ``official``, whose start token is followed by the unigram law, though no
        first token is ever a trigger: its excess risk never quite reaches 0.

    Returns:
      ``(..., N, V)``, rows sum to 1. In ``bietti`` a trigger that has not occurred before is
      followed by any ordinary token, equally likely.
    """
    law = adapt(law, task)
    V = len(law.tokens)
    dtype = jnp.result_type(float)
    P_VV = jnp.asarray(law.P, dtype)
    previous = jnp.concatenate([tokens[..., :1], tokens[..., :-1]], axis=-1)
    rows = P_VV[tokens]
    is_trigger = jnp.asarray(_is_trigger(law, task))[tokens]
    if task.name == "dormant_markov":
        after = P_VV[previous]
    elif task.name == "bietti":
        after = _after_trigger_of_bietti(law, task, tokens)
    else:
        p = task.copy_probability if task.name == "interpolate" else 1.0
        after = p * jax.nn.one_hot(previous, V, dtype=dtype) + (1 - p) * rows
    rows = jnp.where(is_trigger[..., None], after, rows)
    for n, row in enumerate(_start_rows(law, task, kind)[: tokens.shape[-1]]):
        rows = rows.at[..., n, :].set(jnp.asarray(row, dtype))
    return rows


def risks(oracle_BNV: Array, logits_BNV: Array, trigger_BN: Array) -> tuple[Array, Array]:
    """``-sum_k o_k log q_k``, mean over the trigger positions and mean over the rest.

    Args:
      oracle_BNV: see :func:`oracle`; entries of 0 do not count, whatever their logit.
      logits_BNV: of a model.
      trigger_BN: see :func:`trigger_mask`.

    Returns:
      Backcopy risk and bigram risk in nats, the oracle's own part included; nan where there is no
      such position.
    """
    log_q = jax.nn.log_softmax(logits_BNV, axis=-1)
    risk_BN = -jnp.where(oracle_BNV > 0, oracle_BNV * log_q, 0).sum(axis=-1)
    return jnp.mean(risk_BN, where=trigger_BN), jnp.mean(risk_BN, where=~trigger_BN)


def expected_risk(law: Law, task: Task, kind: str = "exact") -> tuple[float, float]:
    """The oracle's own risk in expectation: what the mean of :func:`risks` tends to.

    The law of (previous, current) is carried along the N positions, in float64, because there is no
    stationary one to fall back on: a token that only triggers follow never comes off them again.

    Args:
      law: see ``bigram.load``.
      task: of any name. For ``bietti`` the chain is followed under each choice of fixed outputs, or
        under ``CONTEXTS`` of them drawn once and for all where there are more.
      kind: of the oracle.

    Returns:
      Risk at triggers and risk elsewhere, in nats; nan where there is no such position.
    """
    law = adapt(law, task)
    start = _start_rows(law, task, kind)
    positions = range(law.n_bos, task.length)
    follow = _follow_bietti if task.name == "bietti" else _follow_pairs
    trigger_risk, triggers_met, rest_risk, rest_met = map(float, follow(law, task, positions))
    rest_risk += sum(float(_entropy(row)) for row in start)
    rest_met += len(start)
    return (
        trigger_risk / triggers_met if triggers_met else math.nan,
        rest_risk / rest_met if rest_met else math.nan,
    )


def _follow_pairs(law: Law, task: Task, positions: range) -> np.ndarray:
    """Risk and number of the triggers, then of the rest, summed over positions."""
    V = len(law.tokens)
    trigger_V = _is_trigger(law, task)
    P, eye = law.P, np.eye(V)
    p = task.copy_probability if task.name == "interpolate" else 1.0
    after = {}  # by trigger, a row for each token before it
    for t in np.flatnonzero(trigger_V):
        after[t] = P if task.name == "dormant_markov" else p * eye + (1 - p) * P[t]
    entropy_V = _entropy(P)
    entropies = {t: _entropy(rows) for t, rows in after.items()}

    first = _first_law(law, task)
    pair = np.outer(eye[law.bos_tokens[-1]], first) if law.n_bos else np.diag(first)
    totals = np.zeros(4)
    for _ in positions:
        current = pair.sum(axis=0)
        rest = np.where(trigger_V, 0, current)
        met = current[trigger_V].sum()
        risk = sum(pair[:, t] @ entropies[t] for t in after)
        totals += [risk, met, rest @ entropy_V, rest.sum()]
        following = rest[:, None] * P
        for t, rows in after.items():
            following[t] = pair[:, t] @ rows
        pair = following
    return totals


def _follow_bietti(law: Law, task: Task, positions: range) -> np.ndarray:
    """The same for ``bietti``, where only a trigger's first occurrence is a surprise."""
    ids, ordinary = triggers(law, task.triggers), law.ordinary
    if len(ordinary) ** len(ids) <= CONTEXTS:
        outputs_MK = np.array(list(itertools.product(ordinary, repeat=len(ids))), int)
    else:
        outputs_MK = np.random.default_rng(0).choice(ordinary, (CONTEXTS, len(ids)))
    M, K = outputs_MK.shape
    trigger_V = _is_trigger(law, task)
    drawn_VV = np.where(trigger_V[:, None], 0, law.P)
    entropy_V = _entropy(law.P)
    rows = np.arange(M)

    def step(current_MV, without=None):
        following_MV = current_MV @ drawn_VV
        for j in range(K):
            if j != without:
                following_MV[rows, outputs_MK[:, j]] += current_MV[:, ids[j]]
        return following_MV

    current = np.tile(_first_law(law, task), (M, 1))
    unmet = [current] * K  # trigger j not met before the current token
    totals = np.zeros(4)
    for _ in positions:
        new = sum(unmet[j][:, ids[j]].mean() for j in range(K))
        met = current[:, ids].sum(axis=1).mean()
        rest = np.where(trigger_V, 0, current.mean(axis=0))
        totals += [new * math.log(len(ordinary)), met, rest @ entropy_V, rest.sum()]
        current, unmet = step(current), [step(u, without=j) for j, u in enumerate(unmet)]
    return totals


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def _is_trigger(law: Law, task: Task) -> np.ndarray:
    table = np.zeros(len(law.tokens), bool)
    table[triggers(law, task.triggers if task.name != "markov" else 0)] = True
    return table


def _first_law(law: Law, task: Task) -> np.ndarray:
    """``(V,)``, of the token after the start tokens."""
    if task.name in ("bietti", "markov") and law.n_bos:
        return law.P[law.bos_tokens[-1]]
    if task.name in ("backcopy", "interpolate"):
        rest = np.where(_is_trigger(law, task), 0, law.marginal)
        return rest / rest.sum()
    return law.marginal


def _start_rows(law: Law, task: Task, kind: str) -> list[np.ndarray]:
    """The oracle's rows at the start tokens."""
    if kind not in KINDS:
        raise ConfigError(f"there is no oracle {kind!r}{nearest(kind, KINDS)}")
    if kind == "official":
        return [law.P[i] for i in law.bos_tokens]
    known = [np.eye(len(law.tokens))[i] for i in law.bos_tokens[1:]]
    return [*known, _first_law(law, task)] if law.n_bos else []


def _fixed_outputs(key: Array, law: Law, task: Task, batch: int) -> Array:
    """``(B, V)``: what follows a trigger in ``bietti``, at the trigger's id; 0 at the others."""
    ids, ordinary = triggers(law, task.triggers), jnp.asarray(law.ordinary, jnp.int32)
    C = ordinary.size
    bits = random_bits(key, (batch * ids.size,))
    equally_likely = jnp.broadcast_to(jnp.asarray(thresholds(np.full(C, 1 / C))), (bits.size, C))
    outputs_BK = ordinary[draw(bits, equally_likely)].reshape(batch, ids.size)
    return jnp.zeros((batch, len(law.tokens)), jnp.int32).at[:, ids].set(outputs_BK)


def _after_trigger_of_bietti(law: Law, task: Task, tokens: Array) -> Array:
    V, N = len(law.tokens), tokens.shape[-1]
    dtype = jnp.result_type(float)
    ids = triggers(law, task.triggers)
    uniform = np.zeros(V)
    uniform[law.ordinary] = 1 / len(law.ordinary)
    if not ids.size:
        return jnp.broadcast_to(jnp.asarray(uniform, dtype), (*tokens.shape, V))
    is_id = jnp.asarray(np.arange(V)[:, None] == ids)[tokens]
    first = jnp.argmax(is_id, axis=-2)
    output = jnp.take_along_axis(tokens, jnp.minimum(first + 1, N - 1), axis=-1)
    position = jnp.broadcast_to(jnp.arange(N)[:, None], is_id.shape)
    later = is_id & (position > first[..., None, :])
    known = jnp.sum(jnp.where(later, output[..., None, :], 0), axis=-1)
    seen = later.any(axis=-1)
    uniform = jnp.broadcast_to(jnp.asarray(uniform, dtype), (*tokens.shape, V))
    return jnp.where(seen[..., None], jax.nn.one_hot(known, V, dtype=dtype), uniform)
