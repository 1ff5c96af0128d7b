import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram
from crate_jax.data.backcopy import KINDS, TASKS, Task

TINY = bigram.Law(
    P=[
        [0.2, 0.5, 0.3, 0, 0],
        [0.6, 0.0, 0.4, 0, 0],
        [1.0, 0.0, 0.0, 0, 0],  # only the first token, the most frequent one, follows
        [0.5, 0.3, 0.2, 0, 0],
        [0.5, 0.3, 0.2, 0, 0],
    ],
    marginal=[0.5, 0.3, 0.2, 0, 0],
    tokens=("a", "b", "c", "<s_0>", "<d>"),
    bos=3,
    delimiter=4,
)
CASES = [
    *(Task(name, length=5, triggers=1) for name in TASKS),
    *(Task(name, length=5, n_bos=0, triggers=2, copy_probability=0.3) for name in TASKS),
    *(Task(name, length=4, n_bos=2, triggers=1, delimiter=0.25) for name in TASKS),
    Task("backcopy", length=4, triggers=0),
    Task("bietti", length=4, triggers=0),
]


FREQUENT = [
    *(Task(name, length=5, triggers=1) for name in TASKS),
    Task("dormant_markov", length=5, n_bos=0, triggers=1),
    Task("bietti", length=5, n_bos=0, triggers=2),
    Task("interpolate", length=5, n_bos=2, triggers=2, copy_probability=0.3),
    Task("backcopy", length=4, triggers=1, delimiter=0.25),
]


def sample(seed, law, task, batch):
    """Compiled as one: by single operations it takes longer."""
    return jax.jit(lambda key: backcopy.sample(key, law, task, batch))(jax.random.key(seed))


def oracle(law, task, tokens, kind="exact"):
    return jax.jit(lambda tokens: backcopy.oracle(law, task, tokens, kind))(tokens)


def name_of(task):
    return f"{task.name}-bos{task.n_bos}-k{task.triggers}-d{task.delimiter}"


def every_sequence(task):
    """Every sequence of a task over TINY with its probability, token by token, by the rules.

    Written from the definitions, with a table of fixed outputs (``bietti``) averaged over.
    """
    start = [[], [3], [3, 4]][task.n_bos]
    d = 3 + task.n_bos
    V = d + 1
    unigram = {0: 0.5, 1: 0.3, 2: 0.2}
    after = {0: {0: 0.2, 1: 0.5, 2: 0.3}, 1: {0: 0.6, 2: 0.4}, 2: {0: 1.0}}
    after = {
        u: {**{v: p * (1 - task.delimiter) for v, p in row.items()}, d: task.delimiter}
        for u, row in after.items()
    }
    after |= dict.fromkeys([*start, d], unigram)
    is_trigger = set(range(task.triggers)) if task.name != "markov" else set()
    no_trigger = {v: p for v, p in unigram.items() if v not in is_trigger}
    total = sum(no_trigger.values())

    def following(seq, outputs):
        if len(seq) < len(start):
            return {start[len(seq)]: 1.0}
        if len(seq) == len(start):
            if task.name in ("backcopy", "interpolate"):
                return {v: p / total for v, p in no_trigger.items()}
            return unigram
        x, before = seq[-1], seq[-2] if len(seq) > 1 else None
        if x not in is_trigger:
            return after[x]
        if task.name == "bietti":
            return {outputs[x]: 1.0}
        if before is None:
            return after[x]
        if task.name == "dormant_markov":
            return after[before]
        p = task.copy_probability if task.name == "interpolate" else 1.0
        law = {v: (1 - p) * q for v, q in after[x].items()}
        law[before] = law.get(before, 0) + p
        return law

    tables = [{}]
    if task.name == "bietti":
        tables = [dict(zip(is_trigger, o, strict=True))
                  for o in itertools.product(range(3), repeat=len(is_trigger))]  # fmt: skip
    sequences = {}
    for outputs in tables:
        frontier = {(): 1 / len(tables)}
        for _ in range(task.length + 1):
            frontier = {
                (*seq, v): p * q
                for seq, p in frontier.items()
                for v, q in following(seq, outputs).items()
                if q > 0
            }
        for seq, p in frontier.items():
            sequences[seq] = sequences.get(seq, 0) + p
    assert abs(sum(sequences.values()) - 1) < 1e-12
    return sequences, V, is_trigger


def bayes(sequences, V):
    """``{prefix: (probability, law of the next token)}``, from the joint law alone."""
    joint = {}
    for seq, p in sequences.items():
        for n in range(1, len(seq)):
            joint.setdefault(seq[:n], np.zeros(V))[seq[n]] += p
    return {prefix: (row.sum(), row / row.sum()) for prefix, row in joint.items()}


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request):
    task = request.param
    backcopy.check(task, TINY)
    return task, *every_sequence(task)


def test_the_exact_oracle_is_bayes_rule(case, x64):
    task, sequences, V, _ = case
    seqs = np.array(list(sequences), np.int32)
    assert backcopy.vocabulary(TINY, task) == V
    rows = np.asarray(oracle(TINY, task, seqs[:, :-1]))
    assert rows.dtype == np.float64 and rows.shape == (*seqs[:, :-1].shape, V)
    laws = bayes(sequences, V)
    for seq, by_position in zip(seqs.tolist(), rows, strict=True):
        for n in range(task.length):
            expected = laws[tuple(seq[: n + 1])][1]
            np.testing.assert_allclose(by_position[n], expected, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_risks_are_sums_over_every_sequence(case, kind):
    task, sequences, V, is_trigger = case
    start = [[], [3], [3, 4]][task.n_bos]
    unigram = np.array([0.5, 0.3, 0.2])
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for prefix, (p, law) in bayes(sequences, V).items():
        if kind == "official" and len(prefix) <= len(start):
            law = unigram
        risk = -sum(q * math.log(q) for q in law if q > 0)
        sums[prefix[-1] in is_trigger][0] += p * risk
        sums[prefix[-1] in is_trigger][1] += p
    ours = backcopy.expected_risk(TINY, task, kind)
    for value, (risk, count) in zip(ours, (sums[True], sums[False]), strict=True):
        np.testing.assert_allclose(value, risk / count if count else math.nan, atol=1e-13)


@pytest.mark.parametrize("task", FREQUENT, ids=name_of)
def test_samples_have_the_frequencies_of_the_rules(task):
    sequences, V, _ = every_sequence(task)
    B = 60_000
    tokens = np.asarray(sample(1, TINY, task, B))
    assert tokens.shape == (B, task.length + 1) and tokens.dtype == np.int32
    drawn, counts = np.unique(tokens, axis=0, return_counts=True)
    counts = {tuple(seq): n for seq, n in zip(drawn.tolist(), counts.tolist(), strict=True)}
    assert counts.keys() <= sequences.keys()  # nothing impossible
    expected = np.array(list(sequences.values())) * B
    found = np.array([counts.get(seq, 0) for seq in sequences])
    degrees = len(sequences) - 1
    chi_squared = np.sum((found - expected) ** 2 / expected)
    assert chi_squared < degrees + 5 * math.sqrt(2 * max(degrees, 1))


@pytest.fixture(scope="module")
def law():
    return bigram.load()


@pytest.mark.parametrize(
    ("name", "n_bos"),
    [*((name, 1) for name in TASKS), ("backcopy", 0), ("backcopy", 2), ("bietti", 2)],
)
def test_what_always_holds(law, name, n_bos):
    task = Task(name, length=64, n_bos=n_bos, delimiter=0.02 * (n_bos == 2))
    backcopy.check(task, law)
    tokens = np.asarray(sample(2, law, task, 64))
    mine = backcopy.adapt(law, task)
    V = len(mine.tokens)
    assert V == 66 + n_bos and tokens.shape == (64, 65) and tokens.min() >= 0 and tokens.max() < V
    assert np.all(tokens[:, :n_bos] == np.array(mine.bos_tokens))
    assert not np.isin(tokens[:, n_bos:], mine.bos_tokens).any()
    assert (tokens == mine.delimiter).any() == bool(task.delimiter)

    top = backcopy.triggers(law, 3)
    assert top.tolist() == [0, 1, 2]
    trigger = np.isin(tokens, top)
    masked = np.asarray(backcopy.trigger_mask(law, task, jnp.asarray(tokens)))
    assert np.array_equal(masked, trigger if name != "markov" else np.zeros_like(trigger))
    x = tokens[:, n_bos:]
    t = trigger[:, n_bos:]
    if name in ("backcopy", "interpolate"):
        assert not t[:, 0].any()
    if name == "backcopy":
        assert not (t[:, 1:] & t[:, :-1]).any()
        assert np.all(x[:, 2:][t[:, 1:-1]] == x[:, :-2][t[:, 1:-1]])
        followed = np.flatnonzero(t[:, 1:-1])
        assert followed.size > 100
    if name == "bietti":
        for row, is_trigger in zip(x, t, strict=True):
            for k in top:
                after = row[1:][(row[:-1] == k) & is_trigger[:-1]]
                assert len(set(after)) <= 1
    drawn = ~t[:, :-1] | (name == "markov")
    assert np.all(mine.P[x[:, :-1][drawn], x[:, 1:][drawn]] > 0)
    rows = np.asarray(oracle(law, task, tokens[:, :-1]))
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(np.take_along_axis(rows, tokens[:, 1:, None], axis=-1) > 0)


def test_trigger_rows_of_the_law_are_never_used(law):
    task = Task(length=40)
    P = law.P.copy()
    P[:3] = np.roll(P[:3], 1, axis=0)
    other = dataclasses.replace(law, P=P)
    a, b = (sample(3, l, task, 32) for l in (law, other))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(oracle(law, task, a[:, :-1]), oracle(other, task, a[:, :-1]))
    assert backcopy.expected_risk(law, task) == backcopy.expected_risk(other, task)


def test_interpolation_ends_in_backcopy_and_in_markov(law):
    copies = Task("interpolate", length=40, copy_probability=1.0)
    np.testing.assert_array_equal(sample(4, law, copies, 16), sample(4, law, Task(length=40), 16))
    never = dataclasses.replace(copies, copy_probability=0.0)
    tokens = sample(4, law, never, 16)
    markov = oracle(law, Task("markov", length=40), tokens[:, :-1])
    np.testing.assert_array_equal(oracle(law, never, tokens[:, :-1])[:, 1:], markov[:, 1:])


def test_jit_vmap_and_float64_draw_the_same_tokens(law):
    task = Task(length=20)
    keys = jax.random.split(jax.random.key(5), 3)
    alone = backcopy.sample(keys[1], law, task, 4)
    many = jax.jit(jax.vmap(lambda key: backcopy.sample(key, law, task, 4)))(keys)
    np.testing.assert_array_equal(many[1], alone)
    assert len({tokens.tobytes() for tokens in np.asarray(many)}) == 3
    with jax.enable_x64(True):
        wide = sample(5, law, task, 4)
    np.testing.assert_array_equal(wide, sample(5, law, task, 4))
    assert wide.dtype == jnp.int32


@pytest.mark.parametrize("name", ["backcopy", "bietti"])
def test_expected_risks_are_what_sample_means_tend_to(law, name):
    task = Task(name, length=100, triggers=2)
    tokens = sample(6, law, task, 1024)[:, :-1]
    where = backcopy.trigger_mask(law, task, tokens)
    rows = oracle(law, task, tokens)
    means = backcopy.risks(rows, jnp.log(rows), where)
    expected = backcopy.expected_risk(law, task)
    np.testing.assert_allclose(means, expected, rtol=0.06 if name == "bietti" else 0.01)


def test_the_official_oracle_differs_at_the_start_token_alone(law):
    task = Task(length=30)
    tokens = sample(7, law, task, 8)[:, :-1]
    exact, official = (oracle(law, task, tokens, kind) for kind in ("exact", "official"))
    np.testing.assert_array_equal(exact[:, 1:], official[:, 1:])
    np.testing.assert_allclose(official[:, 0], np.tile(law.marginal, (8, 1)), rtol=1e-6)
    rest = np.where(np.arange(67) < 3, 0, law.marginal)
    np.testing.assert_allclose(exact[:, 0], np.tile(rest / rest.sum(), (8, 1)), rtol=1e-6)


def test_risks():
    rows = jnp.array([[[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]])
    logits = jnp.array([[[0.0, -jnp.inf], [0.0, math.log(3)], [math.log(4), 0.0]]])
    at_triggers, elsewhere = backcopy.risks(rows, logits, jnp.array([[True, False, False]]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    np.testing.assert_allclose(at_triggers, 0, atol=1e-7)
    expected = (entropy - 0.5 * math.log(0.8) - 0.5 * math.log(0.2)) / 2
    np.testing.assert_allclose(elsewhere, expected, rtol=1e-6)


def test_official_batches_are_numpys_stream(law):
    """Against one ``Generator.choice`` a token, as one would write the generator down."""
    task = Task(length=24)
    rng = np.random.default_rng([42, 27])
    marginal = np.where(np.arange(67) < 3, 0, law.marginal)
    rows = []
    for _ in range(6):
        seq = [65, rng.choice(67, p=marginal / marginal.sum())]
        while len(seq) < 25:
            drawn = rng.choice(67, p=law.P[seq[-1]])
            seq.append(seq[-2] if seq[-1] < 3 else drawn)
        rows.append(seq)
    np.testing.assert_array_equal(backcopy.official_batch(law, task, 6), rows)
    with pytest.raises(ConfigError, match="markov"):
        backcopy.official_batch(law, Task("markov"))


def test_triggers_of_equal_frequency_come_in_the_order_of_ids():
    law = bigram.from_text("abcabcdd")
    assert backcopy.triggers(law, 3).tolist() == [0, 1, 2] and backcopy.triggers(law, 0).size == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "backcopi"}, "did you mean 'backcopy'"),
        ({"n_bos": 3}, "0, 1 or 2"),
        ({"n_bos": 2, "length": 2}, "write 3 at least"),
        ({"triggers": -1}, "at least 0"),
        ({"triggers": 3}, "at most 2"),
        ({"copy_probability": 1.5}, "copy_probability is a probability"),
        ({"delimiter": 1.0}, "delimiter is a probability"),
        ({"delimiter": math.nan}, "delimiter is a probability"),
    ],
)
def test_what_is_wrong_is_said(changes, words):
    with pytest.raises(ConfigError, match=words):
        backcopy.check(Task(**{"length": 8, "triggers": 1, **changes}), TINY)


def test_a_law_without_delimiter_cannot_emit_it():
    law = dataclasses.replace(bigram.from_text("abab"), delimiter=None, P=np.ones((4, 4)) / 4)
    with pytest.raises(ConfigError, match="has no delimiter"):
        backcopy.check(Task(length=8, triggers=1, delimiter=0.1), law)


def test_an_unknown_oracle_is_refused(law):
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        backcopy.oracle(law, Task(), jnp.zeros((1, 4), jnp.int32), "exat")
