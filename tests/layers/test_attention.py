import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.attention import MHSA, MSSA
from tests.layers import random_params

B, N, D = 2, 5, 6
IMPLEMENTATIONS = ("einsum", "xla")


def np_attend(q, k, v, scale, causal=False):
    """One example, head and query at a time; ``(B, N, K, P)`` in, outputs and weights out."""
    out, A = np.zeros_like(q), np.zeros((q.shape[0], q.shape[2], q.shape[1], q.shape[1]))
    for b, n, h in np.ndindex(q.shape[:3]):
        last = n + 1 if causal else q.shape[1]
        e = np.exp(scale * (k[b, :last, h] @ q[b, n, h]))
        A[b, h, n, :last] = e / e.sum()
        out[b, n, h] = A[b, h, n, :last] @ v[b, :last, h]
    return out, A


def np_mssa(x, p, *, scale=None, out_map="free+bias", causal=False):
    """``(update, projections, attention)`` of the layer's parameters ``p``."""
    U = p["subspaces"]["kernel"]
    d, K, P = U.shape
    w = np.stack([x @ U[:, k] for k in range(K)], axis=2)
    ssa, A = np_attend(w, w, w, P**-0.5 if scale is None else scale, causal)
    if out_map == "tied":
        out = sum(ssa[:, :, k] @ U[:, k].T for k in range(K))
    elif out_map == "free+bias" and (K, P) == (1, d):
        out = ssa[:, :, 0]
    else:
        out = sum(ssa[:, :, k] @ p["out"]["kernel"][k] for k in range(K))
        out = out + p["out"]["bias"] if out_map == "free+bias" else out
    return out, w, A


def np_mhsa(x, p, causal=False):
    """``(update, keys, attention)``."""

    def project(name):
        w = np.einsum("bnd,dkp->bnkp", x, p[name]["kernel"])
        return w + p[name]["bias"] if "bias" in p[name] else w

    q, k, v = (project(name) for name in ("query", "key", "value"))
    out, A = np_attend(q, k, v, q.shape[-1] ** -0.5, causal)
    return np.einsum("bnkp,kpd->bnd", out, p["out"]["kernel"]) + p["out"]["bias"], k, A


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(B, N, D))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", ["mssa", "mhsa", "mhsa without qkv bias"])
def test_attention_is_its_formula(x64, x, attention, causal, implementation):
    how = {"causal": causal, "implementation": implementation}
    if attention == "mssa":
        layer, oracle = MSSA(2, 4, **how), np_mssa
    else:
        layer, oracle = MHSA(2, 4, qkv_bias=attention == "mhsa", **how), np_mhsa
    p = random_params(layer, x)
    out, seen = layer.apply({"params": p}, x)
    want, projections, A = oracle(x, p, causal=causal)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, want, rtol=1e-10)
    np.testing.assert_allclose(seen["projections"], projections, rtol=1e-10)
    if implementation == "einsum":
        np.testing.assert_allclose(seen["attention"], A, rtol=1e-10)
    else:
        assert seen["attention"] is None


def test_the_fused_kernel_agrees_with_the_einsum_in_float32(x):
    x = jnp.asarray(x, jnp.float32)
    fused, einsum = (MSSA(2, 4, causal=True, implementation=name) for name in ("xla", "einsum"))
    p = jax.tree.map(jnp.float32, random_params(einsum, x))

    @jax.jit
    def values_and_grads(p):
        def loss(p, layer):
            return (layer.apply({"params": p}, x)[0] ** 2).sum()

        return [jax.value_and_grad(loss)(p, layer) for layer in (fused, einsum)]

    got, want = values_and_grads(p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_causal_tokens_do_not_see_what_follows(x, implementation, remat):
    layer = MSSA(2, 3, causal=True, implementation=implementation, remat=remat)
    p = random_params(layer, x)

    def first_three(x):
        return layer.apply({"params": p}, x)[0][:, :3].sum()

    slope = jax.jit(jax.grad(first_three))(jnp.asarray(x))
    assert (slope[:, 3:] == 0).all() and (slope[:, :3] != 0).all()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"out_map": "free+bias"}, ["subspaces/kernel", "out/kernel", "out/bias"]),
        ({"out_map": "free"}, ["subspaces/kernel", "out/kernel"]),
        ({"out_map": "tied"}, ["subspaces/kernel"]),
        ({"heads": 1, "head_dim": D}, ["subspaces/kernel"]),
        ({"heads": 1, "head_dim": D - 1}, ["subspaces/kernel", "out/kernel", "out/bias"]),
        ({"heads": 1, "head_dim": D, "out_map": "free"}, ["subspaces/kernel", "out/kernel"]),
    ],
    ids=str,
)
def test_output_maps_have_these_parameters(x, settings, names):
    p = random_params(MSSA(**{"heads": 2, "head_dim": 3, **settings}), x)
    assert {f"{layer}/{leaf}" for layer in p for leaf in p[layer]} == set(names)


def test_orthonormal_subspaces_with_tied_map_and_even_attention_average(x64, x):
    """With U an orthonormal basis and scale 0, sum_k U_k U_k^T is I and MSSA the mean token."""
    layer = MSSA(2, D // 2, out_map="tied", scale=0.0)
    U = np.linalg.qr(np.random.default_rng(2).normal(size=(D, D)))[0]
    p = {"subspaces": {"kernel": U.reshape(D, 2, D // 2)}}
    mean = np.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    np.testing.assert_allclose(layer.apply({"params": p}, x)[0], mean, rtol=1e-10, atol=1e-12)


def test_softmax_of_bfloat16_is_taken_in_float32(x):
    layer = MSSA(2, 3, dtype="bfloat16")
    out, seen = layer.apply({"params": random_params(layer, x)}, jnp.asarray(x, jnp.float32))
    assert out.dtype == seen["attention"].dtype == jnp.bfloat16
    sums = seen["attention"].astype(jnp.float32).sum(-1)
    np.testing.assert_allclose(sums, 1, atol=N * 2**-9)  # each weight rounded once
