"""The kernel, interpreted on CPU, against numpy; compiled for TPUs that are not here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from jax.test_util import check_grads

from crate_jax.config import MeshConfig
from crate_jax.ops import shared_attention as sa
from crate_jax.ops.attention import attend
from crate_jax.ops.shared_attention import shared_attention
from crate_jax.sharding.mesh import BATCH_AXES, create_mesh


def np_shared_attention(w_BNKP, grad_BNKP, scale, causal):
    """Outputs and the gradient by ``w``, one image and head at a time, from the formulas."""
    out, dw = np.zeros_like(w_BNKP), np.zeros_like(w_BNKP)
    N = w_BNKP.shape[1]
    for b, k in np.ndindex(w_BNKP.shape[0], w_BNKP.shape[2]):
        w, d = w_BNKP[b, :, k], grad_BNKP[b, :, k]
        G = scale * w @ w.T
        if causal:
            G[~np.tri(N, dtype=bool)] = -np.inf
        A = np.exp(G - G.max(1, keepdims=True))
        A /= A.sum(1, keepdims=True)
        T = d @ w.T
        H = A * (T - (A * T).sum(1, keepdims=True))
        out[b, :, k] = A @ w
        dw[b, :, k] = A.T @ d + scale * (H + H.T) @ w
    return out, dw


def _values(shape, dtype="float32", seed=0):
    """Tokens and a gradient, in the dtype and the same numbers in float64."""
    arrays = np.random.default_rng(seed).normal(size=(2, *shape))
    low = [jnp.asarray(a, dtype) for a in arrays]
    return low, [np.asarray(a.astype(jnp.float32), np.float64) for a in low]


def _out_and_grad(attention, w, grad):
    out, vjp = jax.vjp(attention, w)
    return out, vjp(grad)[0]


CASES = [
    ((2, 17, 2, 16), 0.25, False),  # fewer tokens than lanes: rows alone
    ((1, 17, 3, 5), -0.3, True),
    ((1, 128, 1, 16), 0.2, True),  # no rest
    ((2, 197, 3, 64), 0.125, False),  # a block of columns, 69 rows
    ((1, 257, 2, 64), 0.3, False),  # the class token alone is left
    ((1, 257, 4, 64), 0.125, True),  # two groups of heads
    ((1, 401, 1, 80), 0.1, True),  # two widths of blocks
    ((1, 769, 1, 16), 0.25, False),  # a loop over blocks
    ((1, 700, 1, 16), 0.25, True),
]


@pytest.mark.parametrize("shape, scale, causal", CASES, ids=str)
def test_outputs_and_gradients_are_the_formulas(shape, scale, causal):
    """In float32: sums of at most 769 terms of order 1, each rounded at 6e-8."""
    (w, grad), exact = _values(shape)
    want = np_shared_attention(*exact, scale, causal)
    got = jax.jit(
        lambda w, grad: _out_and_grad(
            lambda w: shared_attention(w, scale=scale, causal=causal), w, grad
        )
    )(w, grad)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * math.sqrt(shape[1]))


def test_bfloat16_rounds_weights_and_results_alone():
    """Against float64 of the same rounded inputs, where the einsum path errs as much.

    Weights, H and outputs are rounded once, 2^-9 of their size; weights of a row sum to 1, and
    entries of w and of the gradient are below 4, so outputs err by less than 4 (2^-9 + 2^-9). The
    gradient adds columns of 257 such terms.
    """
    (w, grad), exact = _values((1, 257, 2, 64), "bfloat16", seed=1)
    want = np_shared_attention(*exact, 0.125, False)

    def einsum(w):
        return attend(w, w, w, scale=0.125)[0]

    got = _out_and_grad(lambda w: shared_attention(w, scale=0.125), w, grad)
    other = jax.jit(lambda *args: _out_and_grad(einsum, *args))(w, grad)
    for a, peer, b in zip(got, other, want, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.abs(np.asarray(a, np.float64) - b)
        assert error.max() <= 4 * 2**-8
        assert error.mean() <= np.abs(np.asarray(peer, np.float64) - b).mean() * 1.01


def test_gradient_is_the_derivative_by_finite_differences():
    (w, _), _ = _values((1, 19, 2, 4))
    for causal in (False, True):
        check_grads(
            lambda w, causal=causal: shared_attention(w, scale=0.5, causal=causal),
            (w,), order=1, modes=["rev"], atol=2e-3, rtol=2e-3, eps=1e-2,
        )  # fmt: skip


def test_a_permutation_of_tokens_permutes_outputs():
    (w, _), _ = _values((1, 150, 2, 16))
    order = np.random.default_rng(3).permutation(150)
    out = shared_attention(w, scale=0.25)
    np.testing.assert_allclose(shared_attention(w[:, order], scale=0.25), out[:, order], atol=1e-5)


def test_large_logits_neither_overflow_nor_vanish():
    (w, grad), exact = _values((1, 33, 1, 8))
    out, dw = _out_and_grad(lambda w: shared_attention(w, scale=1e4), w, grad)
    want, _ = np_shared_attention(*exact, 1e4, False)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert np.isfinite(dw).all()


def test_under_scan_checkpoint_vmap_and_without_a_batch():
    (w, grad), _ = _values((2, 17, 2, 8))

    def layers(w, once):
        step = jax.checkpoint(lambda w, _: (w + once(w), None))
        return jax.lax.scan(step, w, None, length=2)[0]

    def kernel(w):
        return shared_attention(w, scale=0.3)

    def einsum(w):
        return attend(w, w, w, scale=0.3)[0]

    got, want = (
        jax.jit(lambda w, g, f=f: _out_and_grad(lambda w: layers(w, f), w, g))(w, grad)
        for f in (kernel, einsum)
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(kernel)(w), kernel(w), atol=1e-6)
    np.testing.assert_array_equal(kernel(w[0]), kernel(w[:1])[0])


@pytest.mark.parametrize(
    "mesh, shape, local",
    [
        (MeshConfig("dp"), (8, 9, 3, 4), (1, 9, 12)),
        (MeshConfig("fsdp"), (16, 9, 2, 4), (2, 9, 8)),
        (MeshConfig("fsdp_tp"), (8, 9, 4, 4), (2, 9, 8)),
        (MeshConfig("fsdp_tp"), (8, 9, 3, 4), (2, 9, 12)),  # three heads do not split in two
        (MeshConfig("hybrid", slice=2, tensor=2), (4, 9, 2, 4), (1, 9, 4)),
        (MeshConfig("dp"), (1, 9, 2, 4), (1, 9, 8)),  # one image does not split in eight
    ],
    ids=str,
)
def test_every_device_takes_its_own_images_and_heads(mesh, shape, local, monkeypatch):
    (w, grad), exact = _values(shape)
    seen, make = [], sa._forward_call
    monkeypatch.setattr(
        sa,
        "_forward_call",
        lambda w, *args, **how: (seen.append(w.shape), make(w, *args, **how))[1],
    )

    def attention(w):
        return shared_attention(w, scale=0.5, batch_axes=BATCH_AXES, head_axis="tensor")

    with jax.set_mesh(create_mesh(mesh)):
        got = jax.jit(lambda *args: _out_and_grad(attention, *args))(w, grad)
    assert set(seen) == {local}
    for a, b in zip(got, np_shared_attention(*exact, 0.5, False), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("tokens", [17, 257, 577, 2049])
@pytest.mark.parametrize("head_dim, heads", [(64, 16), (80, 16), (64, 3), (48, 12)])
def test_a_grid_cell_divides_images_and_heads_and_fits(tokens, heads, head_dim):
    images, some, size = sa._cell(24, tokens, heads, head_dim, 2)
    assert 24 % images == 0 and heads % some == 0 and images * some <= max(some, sa.CELL_HEADS)
    assert some == heads or some * head_dim % sa.LANES == 0
    assert size <= sa.VMEM_BYTES


def test_what_it_does_not_take_gets_a_sentence():
    with pytest.raises(ValueError, match="100000 tokens fill .* MiB of 48. Write 'xla' or"):
        jax.eval_shape(
            lambda w: shared_attention(w, scale=1.0),
            jax.ShapeDtypeStruct((1, 100000, 2, 64), "float32"),
        )
    with pytest.raises(ValueError, match="float32 or bfloat16; got float16"):
        shared_attention(jnp.zeros((1, 4, 1, 2), "float16"), scale=1.0)


def _compiled_for(topology, monkeypatch, shape, **how):
    """The text of forward and backward, compiled for one chip of a TPU."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    w = jax.ShapeDtypeStruct(shape, "bfloat16", sharding=SingleDeviceSharding(device))
    both = jax.jit(
        lambda w, grad: _out_and_grad(lambda w: shared_attention(w, scale=0.125, **how), w, grad)
    )
    return both.lower(w, w).compile().as_text()


def test_a_process_without_a_tpu_compiles_the_kernel_for_one(monkeypatch):
    text = _compiled_for("v5e:2x2", monkeypatch, (2, 17, 2, 64))
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert " while(" not in text  # nothing is interpreted


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    "shape, causal",
    [
        ((8, 257, 16, 64), False),
        ((8, 257, 16, 80), False),
        ((8, 197, 3, 64), True),
        ((2, 577, 16, 64), False),
        ((1, 65, 2, 20), True),
        ((1, 2048, 8, 64), True),
    ],
    ids=str,
)
def test_it_compiles_for_every_tpu(topology, monkeypatch, shape, causal):
    text = _compiled_for(topology, monkeypatch, shape, causal=causal)
    assert text.count('custom_call_target="tpu_custom_call"') == 2
