import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax.config import ConfigError
from crate_jax.models.backcopy import (
    CAPTURES,
    FORCES,
    BackcopyTransformer,
    Interventions,
    check,
    frozen_mask,
    sincos,
)
from tests.layers import random_params

V, D, N, B = 7, 8, 6, 2
SIZES = {"vocab": V, "width": D, "depth": 2, "heads": 2, "hidden": 12, "length": 9}
TRIGGERS = (1, 4)


@pytest.fixture(scope="module")
def tokens():
    tokens = np.random.default_rng(0).integers(V, size=(B, N))
    tokens[:, 2] = TRIGGERS[0]
    return tokens


def np_norm(x, p, kind):
    if kind == "rms":
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * p["scale"]
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def np_weights(row, kind):
    """Of one query, from the scores of the keys that it sees."""
    n = len(row)
    return {
        "softmax": lambda: np.exp(row) / np.exp(row).sum(),
        "softmax_plus_one": lambda: np.exp(row) / (1 + np.exp(row).sum()),
        "relu": lambda: np.maximum(row, 0) / n,
        "sigmoid": lambda: 1 / (1 + np.exp(np.log(n) - row)),
    }[kind]()


def np_transformer(tokens, p, change=None, **settings):
    """Logits and captured arrays by the formulas, one query of one head at a time.

    ``change`` maps the fields of Interventions to arrays.
    """
    s = {
        "norm": "pre", "final_norm": None, "attention": "softmax", "positions": "learned",
        "no_attention": (), "no_mlp": (), "linear_mlp": (), "no_attention_norm": (),
        "no_mlp_norm": (), "tie_output": False, "no_wv": False, "no_wo": False,
    } | settings  # fmt: skip
    c = {} if change is None else {name: np.asarray(value) for name, value in change.items()}
    L, H = settings["depth"], settings["heads"]
    P = D // H

    def gain(name, *index):
        return c[name][index] if name in c else 1.0

    E = p["token_embedding"]["embedding"]
    if s["positions"] == "learned":
        table = p["pos_embedding"]
    else:
        table = np.zeros((N, D))
        for n in range(N):
            for i in range(D):
                angle = n / 10000 ** (2 * (i // 2) / D)
                table[n, i] = np.cos(angle) if i % 2 else np.sin(angle)
    x = E[tokens] + table[:N]
    seen = {name: [] for name in CAPTURES}
    for l in range(L):
        q = p[f"blocks_{l}"]

        def norm(x, layers, name, l=l, q=q):
            return x if l in layers or s["norm"] == "none" else np_norm(x, q[name], s["norm"])

        scores, weights = np.full((B, H, N, N), np.nan), np.full((B, H, N, N), np.nan)
        values, lifted = np.full((B, H, N, P), np.nan), np.full((B, H, N, D), np.nan)
        if l not in s["no_attention"]:
            a = q["attention"]
            z = x if s["norm"] == "post" else norm(x, s["no_attention_norm"], "norm_attention")
            W_V = np.eye(D) if s["no_wv"] else a["wv"]["kernel"]
            W_O = np.eye(D) if s["no_wo"] else a["wo"]["kernel"]
            update = np.zeros_like(x)
            for h in range(H):
                slots = slice(h * P, (h + 1) * P)
                query = z @ a["wq"]["kernel"][:, slots]
                key = z @ a["wk"]["kernel"][:, slots]
                value = z @ W_V[:, slots]
                value[:, 0] *= gain("bos_value_gain", l, h)
                values[:, h], lifted[:, h] = value, value @ W_O[slots]
                for b in range(B):
                    scores[b, h] = query[b] @ key[b].T / np.sqrt(P)
                    weights[b, h] = 0
                    for n in range(N):
                        row = np_weights(scores[b, h, n, : n + 1], s["attention"])
                        is_trigger = tokens[b, n] in TRIGGERS
                        goes_to = {
                            "ideal": n - 1 if is_trigger else 0, "bos": 0, "diagonal": n,
                            "dormant": None if is_trigger else 0,
                            "active": n - 1 if is_trigger else None, "none": None,
                        }  # fmt: skip
                        code = int(c["force"][l, h]) if "force" in c else 0
                        target = goes_to[list(FORCES)[code]]
                        if target is not None:
                            row = np.eye(N)[max(target, 0)][: n + 1]
                        row = row * gain("head_gain", l, h)
                        if n == 0:
                            row = row * gain("bos_attention_gain", l, h)
                        weights[b, h, n, : n + 1] = row
                        update[b, n] += row @ value[b, : n + 1] @ W_O[slots]
            x = x + gain("attention_gain", l) * update
            if s["norm"] == "post":
                x = norm(x, s["no_attention_norm"], "norm_attention")
        middle = x
        branch = np.zeros_like(x)
        if l not in s["no_mlp"]:
            z = x if s["norm"] == "post" else norm(x, s["no_mlp_norm"], "norm_mlp")
            if l in s["linear_mlp"]:
                branch = z @ q["mlp"]["kernel"]
            else:
                hidden = np.maximum(z @ q["mlp"]["w1"]["kernel"], 0)
                branch = hidden @ q["mlp"]["w2"]["kernel"]
            branch = branch * gain("mlp_gain", l)
            branch[:, 0] *= gain("bos_mlp_gain", l)
            x = x + branch
            if s["norm"] == "post":
                x = norm(x, s["no_mlp_norm"], "norm_mlp")
        for name, array in zip(
            CAPTURES, (scores, weights, lifted, values, middle, branch, x), strict=True
        ):
            seen[name].append(array)
    final = s["norm"] in ("pre", "rms") if s["final_norm"] is None else s["final_norm"]
    if final:
        x = np_norm(x, p["norm"], s["norm"])
    logits = x @ (E.T if s["tie_output"] else p["output"]["kernel"])
    return logits, {name: np.stack(layers) for name, layers in seen.items()}


KNOBS = [
    {},
    {"heads": 1, "depth": 1, "hidden": None},
    {"depth": 3, "heads": 4},
    {"norm": "post"},
    {"norm": "post", "final_norm": True, "no_attention_norm": (0,), "no_mlp_norm": (1,)},
    {"norm": "none"},
    {"norm": "none", "final_norm": True},
    {"norm": "rms"},
    {"final_norm": False},
    {"attention": "relu"},
    {"attention": "sigmoid"},
    {"attention": "softmax_plus_one"},
    {"positions": "sincos"},
    {"no_attention": (0,), "no_mlp": (1,)},
    {"no_attention": (1,), "norm": "post", "no_mlp": (0,)},
    {"no_attention": (0,), "linear_mlp": (0, 1)},
    {"no_attention_norm": (1,), "no_mlp_norm": (0, 1)},
    {"tie_output": True},
    {"no_wv": True},
    {"no_wo": True, "no_wv": True},
]


def make(tokens, **knobs):
    settings = SIZES | knobs
    model = BackcopyTransformer(**settings)
    return model, random_params(model, tokens), settings


def apply(model, p, tokens, interventions=None, capture=()):
    run = jax.jit(lambda p, i: model.apply({"params": p}, tokens, i, capture))
    return run(jax.tree.map(jnp.asarray, p), interventions)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_logits_and_captures_are_the_formulas(x64, tokens, knobs):
    model, p, settings = make(tokens, **knobs)
    logits, seen = apply(model, p, tokens, capture=CAPTURES)
    expected, layers = np_transformer(tokens, p, **settings)
    assert logits.dtype == jnp.float64 and logits.shape == (B, N, V)
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-12)
    assert set(seen) == set(CAPTURES)
    causal = np.tril(np.ones((N, N), bool))
    for name in CAPTURES:
        ours, theirs = np.asarray(seen[name]), layers[name]
        if name == "scores":  # those of the future are the model's own too
            assert np.isfinite(ours[..., ~causal]).any()
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=name)


def test_what_was_captured_is_asked_for_alone(tokens):
    model, p, _ = make(tokens)
    logits, seen = apply(model, p, tokens, capture=("residual", "scores"))
    assert set(seen) == {"residual", "scores"} and seen["scores"].shape == (2, B, 2, N, N)
    np.testing.assert_allclose(logits, apply(model, p, tokens), rtol=1e-6)
    with pytest.raises(ValueError, match="did you mean 'residual'"):
        model.apply({"params": p}, tokens, capture=("residuals",))


def test_float32_and_bfloat16_stay_within_their_rounding(tokens):
    model, p, settings = make(tokens)
    expected, _ = np_transformer(tokens, p, **settings)
    p = jax.tree.map(lambda x: x.astype(np.float32), p)
    np.testing.assert_allclose(apply(model, p, tokens), expected, rtol=1e-5, atol=1e-5)
    change = Interventions.none(2, 2, TRIGGERS)
    logits, seen = apply(model.clone(dtype="bfloat16"), p, tokens, change, CAPTURES)
    assert logits.dtype == jnp.float32 and {a.dtype for a in seen.values()} == {jnp.bfloat16.dtype}
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.1


def test_no_token_sees_the_future(tokens):
    model, p, _ = make(tokens, depth=3)
    other = tokens.copy()
    other[:, 4] = (other[:, 4] + 1) % V
    a, b = apply(model, p, tokens), apply(model, p, other)
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert np.abs(a[:, 4:] - b[:, 4:]).max() > 1e-3
    np.testing.assert_allclose(apply(model, p, tokens[:, :3]), a[:, :3], rtol=1e-5, atol=1e-6)


def test_the_start_is_that_of_the_paper():
    model = BackcopyTransformer(67)
    p = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 256), jnp.int32))["params"]
    d = 256
    sizes = {
        "embeddings": (67 + 256) * d, "attention": 4 * d * d, "mlp": 2 * d * 4 * d,
        "norms": 3 * 2 * d, "output": 67 * d,
    }  # fmt: skip
    assert sum(x.size for x in jax.tree.leaves(p)) == sum(sizes.values())
    assert {x.dtype for x in jax.tree.leaves(p)} == {jnp.float32.dtype}
    for table in (p["token_embedding"]["embedding"], p["pos_embedding"]):
        assert abs(float(table.std()) - 1) < 0.02 and abs(float(table.mean())) < 0.03
    kernels = 0
    for path, x in jax.tree.leaves_with_path(p):
        name = path[-1].key
        if name == "kernel":
            kernels += 1
            bound = x.shape[0] ** -0.5
            assert 0.99 * bound < float(jnp.abs(x).max()) <= bound
            assert abs(float(x.std()) / (bound / 3**0.5) - 1) < 0.02
        elif name in ("scale", "bias"):
            assert "norm" in jax.tree_util.keystr(path) and np.all(x == (name == "scale"))
    assert kernels == 4 + 2 + 1


def test_seeds_under_vmap_are_what_each_is_alone(tokens):
    model = BackcopyTransformer(**SIZES | {"depth": 1})
    each = [random_params(model, tokens, seed=seed) for seed in range(3)]

    @jax.jit
    @jax.vmap
    def gradient(params):
        def loss(params):
            logits = model.apply({"params": params}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        return jax.grad(loss)(params)

    def stack(runs):
        return jax.tree.map(lambda *x: jnp.stack(x).astype(jnp.float32), *runs)

    together, alone = gradient(stack(each)), gradient(stack(each[2:]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2], b[0], rtol=1e-4, atol=1e-6), together, alone
    )


def test_frozen_parts_stay_where_they_are(tokens):
    model, p, _ = make(tokens, norm="rms")
    p = jax.tree.map(jnp.asarray, p)
    names = ("embeddings", "wv", "norms")
    mask = frozen_mask(p, names)
    frozen = [jax.tree_util.keystr(k) for k, m in jax.tree.leaves_with_path(mask) if m]
    assert len(frozen) == 2 + 2 + 5 and all(
        any(part in k for part in ("embedding", "wv", "norm")) for k in frozen
    )
    tx = optax.chain(optax.adamw(0.1, weight_decay=0.1), optax.masked(optax.set_to_zero(), mask))
    gradient = jax.tree.map(jnp.ones_like, p)
    update, _ = jax.jit(tx.update)(gradient, tx.init(p), p)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), update)
    assert jax.tree.map(lambda m: not m, mask) == moved
    every = frozen_mask(p, ("embeddings", "wq", "wk", "wv", "wo", "mlp", "norms", "output"))
    assert all(jax.tree.leaves(every))
    assert not any(jax.tree.leaves(frozen_mask(p, ())))
    with pytest.raises(ConfigError, match="did you mean 'embeddings'"):
        frozen_mask(p, ("embedding",))
    tied, q, _ = make(tokens, tie_output=True)
    with pytest.raises(ConfigError, match="no such parameters"):
        frozen_mask(q, ("output",))


def test_positions_have_the_published_frequencies():
    table = sincos(50, 16)
    assert table.shape == (50, 16) and np.all(table[0] == [0, 1] * 8)
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(50)), atol=1e-12)
    np.testing.assert_allclose(table[:, 15], np.cos(np.arange(50) / 10000 ** (14 / 16)), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "layer"}, "norm='layer'"),
        ({"attention": "softmx"}, "did you mean 'softmax'"),
        ({"positions": "rope"}, "positions='rope'"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"heads": 3}, "width=8 does not divide over heads=3"),
        ({"positions": "sincos", "width": 9, "heads": 1}, "width=9 is odd"),
        ({"no_mlp": (2,)}, "no_mlp names layer 2"),
        ({"no_mlp": (0,), "linear_mlp": (0,)}, "layer 0 is in no_mlp and in linear_mlp"),
        ({"length": 5}, "6 tokens is longer than length=5"),
    ],
)
def test_what_is_wrong_is_said(tokens, changes, words):
    model = BackcopyTransformer(**SIZES | changes)
    with pytest.raises(ConfigError, match=words):
        check(model, N)
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), tokens)
