import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.models.backcopy_simple import BackcopySimple
from tests.layers import random_params
from tests.models.test_backcopy import np_weights

V, N, TRIGGERS = 6, 7, (0, 3)


@pytest.fixture(scope="module")
def tokens():
    return np.array([[5, 1, 0, 1, 3, 1, 4], [5, 0, 2, 2, 3, 2, 1]])  # also a trigger after <s>


def np_simple(tokens, p, kind):
    logits = np.zeros((*tokens.shape, V))
    for b, n in np.ndindex(tokens.shape):
        x = tokens[b, n]
        scores = np.zeros(n + 1)
        if x in TRIGGERS:
            scores[max(n - 1, 0)] = p["lambda"][x]
        else:
            scores[0] = p["alpha"][x]
        for j, weight in enumerate(np_weights(scores, kind)):
            u = tokens[b, j]
            logits[b, n] += weight * (p["beta"] if j == 0 else p["xi"][u] * np.eye(V)[u])
        logits[b, n] += np.maximum(np.eye(V)[x] @ p["w1"], 0) @ p["w2"]
    return logits


@pytest.mark.parametrize("kind", ["softmax", "softmax_plus_one", "relu", "sigmoid"])
def test_logits_are_the_formulas(x64, tokens, kind):
    model = BackcopySimple(V, TRIGGERS, hidden=9, attention=kind)
    p = random_params(model, tokens)
    logits = jax.jit(model.apply)({"params": p}, tokens)
    assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, np_simple(tokens, p, kind), rtol=1e-10, atol=1e-13)
    single = jax.tree.map(lambda x: x.astype(np.float32), p)
    assert jax.jit(model.apply)({"params": single}, tokens).dtype == jnp.float32


def test_an_aware_head_is_the_oracle(x64):
    """With alpha, lambda large, beta 0 and the bigram law in the MLP, backcopy is solved."""
    law = np.random.default_rng(0).dirichlet(np.ones(V), V)
    model = BackcopySimple(V, TRIGGERS, hidden=V)
    big = np.full(V, 60.0)
    log_p = np.log(law)
    log_p[list(TRIGGERS)] = 0
    p = {"alpha": big, "lambda": big, "xi": big, "beta": np.zeros(V), "w1": np.eye(V), "w2": log_p}
    tokens = np.array([[5, 1, 0, 1, 2, 3, 2]])
    q = jax.nn.softmax(model.apply({"params": p}, tokens))
    for n, x in enumerate(tokens[0]):
        expected = np.eye(V)[tokens[0, n - 1]] if x in TRIGGERS else law[x]
        np.testing.assert_allclose(q[0, n], expected, atol=1e-12)


def test_captures(x64, tokens):
    model = BackcopySimple(V, TRIGGERS)
    p = random_params(model, tokens)
    _, seen = model.apply({"params": p}, tokens, capture=("scores", "attention"))
    scores, weights = seen["scores"][0, :, 0], seen["attention"][0, :, 0]
    assert scores.shape == weights.shape == (2, N, N)
    assert np.all(np.count_nonzero(scores, axis=-1) == 1)
    assert scores[0, 3, 0] == p["alpha"][1] and scores[0, 4, 3] == p["lambda"][3]
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    with pytest.raises(ValueError, match="did you mean 'scores'"):
        model.apply({"params": p}, tokens, capture=("score",))


def test_the_start_is_that_of_the_paper():
    model = BackcopySimple(67, (1, 43, 58))
    init = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"])
    p = jax.jit(init)(jax.random.split(jax.random.key(0), 40))
    assert {name: x.shape[1:] for name, x in p.items()} == {
        "alpha": (67,), "lambda": (67,), "xi": (67,), "beta": (67,),
        "w1": (67, 128), "w2": (128, 67),
    }  # fmt: skip
    for name in ("alpha", "lambda", "xi", "beta"):
        assert abs(float(p[name].mean())) < 0.08 and abs(float(p[name].std()) - 1) < 0.06
    for name, inputs in (("w1", 67), ("w2", 128)):
        assert 0.999 < float(jnp.abs(p[name]).max()) * inputs**0.5 <= 1 + 1e-6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attention": "softmx"}, "did you mean 'softmax'"),
        ({"triggers": (6,)}, "trigger 6 is no id"),
    ],
)
def test_what_is_wrong_is_said(tokens, fields, words):
    model = BackcopySimple(**{"vocab": V, "triggers": TRIGGERS} | fields)
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), tokens)
