"""Softmax attention whose query, key and value are one tensor, as a fused Pallas kernel for TPUs.

For one head with rows ``w_n`` in ``w: (N, P)``,

    G = scale w w^T,    A_nm = exp(G_nm) / sum_m' exp(G_nm'),    out = A w.

``G`` and ``A`` (N x N) stay on the chip: HBM is read and written for ``w`` and ``out`` alone.

*Gradient.* With ``d`` the gradient by ``out``, ``T = d w^T`` is that by ``A``, and through a
softmax over rows ``H = A * (T - rowsum(A * T))`` that by ``G``. As ``w`` is value, query and key at
once,

    dw = A^T d + scale (H + H^T) w.

The backward kernel forms ``A`` again, so ``w`` is all that is kept for it.

*Columns.* ``G`` is symmetric: its rows are its columns. So a block of queries is taken as columns,
keys down the sublanes of the registers, and ``C = A^T`` comes from a softmax over sublanes, which
needs elementwise work alone where one over lanes needs exchanges between them; then
``out^T = w^T C``. Queries that do not fill 128 lanes (the one of 257 tokens) are taken as rows.

*Layout.* Heads lie side by side in the lanes of ``(B, N, K P)``, the order in which the projection
gives them: a layout by heads would have to be copied and, for P = 64, fill half of each lane tile.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

DTYPES = ("float32", "bfloat16")
"""What the matrix units multiply; sums, softmax and gradients of it are float32."""

LANES, SUBLANES = 128, 8
UNROLLED_TOKENS = 640
"""Up to here blocks of queries follow each other without a loop, for the scheduler to interleave;
beyond, the program would outgrow the chip's instruction memory."""

CELL_BYTES = 10 * 2**20
"""VMEM that one step of the grid fills where it can: compilers give a kernel 16 MiB unasked."""

VMEM_BYTES = 48 * 2**20
"""What is asked for at most; TPUs since v5e have 64 MiB or more a core, v4 has 16."""

CELL_HEADS = 16
"""Heads of a grid step, over images, that make its fixed cost small."""


def shared_attention(
    w_BNKP: Array,
    *,
    scale: float,
    causal: bool = False,
    batch_axes: tuple[str, ...] = (),
    head_axis: str | None = None,
) -> Array:
    """``softmax(scale w w^T) w`` over tokens, head by head.

    Compiled for a TPU it is the kernel; elsewhere the kernel is interpreted, which is for tests.
    Inside ``jax.set_mesh`` every device runs it on its own images and heads; what an axis of the
    mesh does not divide it holds whole. It has a first derivative in reverse mode.

    Args:
      w_BNKP: float32 or bfloat16, ``(..., tokens, heads, size)``.
      scale: factor on the inner products.
      causal: token n sees tokens up to n only.
      batch_axes, head_axis: axes of the mesh over which the first axis and the heads are split.

    Returns:
      an array like ``w_BNKP``.

    Raises:
      ValueError: on another dtype, or more tokens than VMEM holds.
    """
    *batch, N, K, P = w_BNKP.shape
    if w_BNKP.dtype not in DTYPES:
        raise ValueError(f"shared attention takes {' or '.join(DTYPES)}; got {w_BNKP.dtype}.")
    _cell(math.prod(batch), N, K, P, w_BNKP.dtype.itemsize)
    w_BNF = w_BNKP.reshape(math.prod(batch), N, K * P)
    out_BNF = _attention(w_BNF, K, scale, causal, tuple(batch_axes), head_axis)
    return out_BNF.reshape(w_BNKP.shape)


def _forward(w_BNF, heads, scale, causal, batch_axes, head_axis):
    call = _forward_call, heads, scale, causal
    return _on_each_device(call, batch_axes, head_axis, w_BNF), w_BNF


def _backward(heads, scale, causal, batch_axes, head_axis, w_BNF, grad_BNF):
    call = _backward_call, heads, scale, causal
    return (_on_each_device(call, batch_axes, head_axis, w_BNF, grad_BNF),)


_attention = jax.custom_vjp(lambda *args: _forward(*args)[0], nondiff_argnums=(1, 2, 3, 4, 5))
_attention.defvjp(_forward, _backward)


def _on_each_device(call, batch_axes, head_axis, *arrays: Array) -> Array:
    """Runs a kernel on every device's share of ``(B, N, K P)``: partitioners cannot cut it."""
    make, heads, scale, causal = call
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis: n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes}
    batch = tuple(axis for axis in batch_axes if free.get(axis, 1) > 1)
    if arrays[0].shape[0] % math.prod(free[axis] for axis in batch):
        batch = ()
    over = free.get(head_axis, 1)
    over = 1 if heads % over else over

    def run(*arrays):
        return jax.lax.platform_dependent(
            *arrays,
            tpu=make(arrays[0], heads // over, scale, causal, interpret=False),
            default=make(arrays[0], heads // over, scale, causal, interpret=True),
        )

    if math.prod(free.values()) == 1:
        return run(*arrays)
    spec = PartitionSpec(batch or None, None, head_axis if over > 1 else None)
    return jax.shard_map(
        run, in_specs=spec, out_specs=spec, axis_names=set(free), check_vma=False
    )(*arrays)  # fmt: skip


def _forward_call(w_BNF, heads, scale, causal, interpret):
    head_dim = w_BNF.shape[-1] // heads
    group, dot = _group(heads, head_dim), _dot_product(interpret)

    def kernel(w_ref, out_ref):
        def attend(image, lanes):
            w = w_ref[image, :, lanes]
            w_t = w.T

            def columns(start, width):
                rows, seen = pl.ds(start, width), _seen(start, width, w, causal)
                query, out_t = w_ref[image, rows, lanes], []
                for head in _heads(group, head_dim):
                    e, total = _softmax(
                        dot, w[:seen, head], query[:, head], 0, scale, causal, start
                    )
                    out_t.append(dot(w_t[head, :seen], e.astype(w.dtype), 1, 0) / total)
                out_ref[image, rows, lanes] = jnp.concatenate(out_t).T.astype(w.dtype)

            def rest(start):
                out = []
                for head in _heads(group, head_dim):
                    e, total = _softmax(dot, w[start:, head], w[:, head], 1, scale, causal, start)
                    out.append(dot(e.astype(w.dtype), w[:, head], 1, 0) / total)
                out_ref[image, start:, lanes] = jnp.concatenate(out, axis=1).astype(w.dtype)

            _by_queries(w.shape[0], columns, rest)

        _by_groups(w_ref, group * head_dim, attend)

    return _pallas_call(kernel, w_BNF, heads, interpret, arrays=1, products=2)


def _backward_call(w_BNF, heads, scale, causal, interpret):
    head_dim = w_BNF.shape[-1] // heads
    group, dot = _group(heads, head_dim), _dot_product(interpret)

    def weights_and_logits(keys, queries, grad, axis, start):
        """``A`` and the gradient by ``G / scale`` with keys along ``axis``, as ``w`` is."""
        left, right, d_left, d_right = (
            (keys, queries, keys, grad) if axis == 0 else (queries, keys, grad, keys)
        )
        e, total = _softmax(dot, left, right, axis, scale, causal, start)
        a = e * (1.0 / total)
        at = a * dot(d_left, d_right, 1, 1)
        h = at - a * at.sum(axis, keepdims=True)
        return a.astype(keys.dtype), h.astype(keys.dtype)

    def kernel(w_ref, grad_ref, dw_ref, sum_ref):
        def attend(image, lanes):
            w = w_ref[image, :, lanes]
            w_t = w.T
            sum_ref[...] = jnp.zeros(sum_ref.shape, sum_ref.dtype)

            def columns(start, width):
                rows, seen = pl.ds(start, width), _seen(start, width, w, causal)
                queries, grads = w_ref[image, rows, lanes], grad_ref[image, rows, lanes]
                for k, head in enumerate(_heads(group, head_dim)):
                    query, grad = queries[:, head], grads[:, head]
                    a, h = weights_and_logits(w[:seen, head], query, grad, 0, start)
                    sum_ref[k, :seen] += dot(a, grad, 1, 0) + scale * dot(h, query, 1, 0)
                    sum_ref[k, rows] += scale * dot(w_t[head, :seen], h, 1, 0).T

            def rest(start):
                for k, head in enumerate(_heads(group, head_dim)):
                    key, query = w[:, head], w[start:, head]
                    grad = grad_ref[image, start:, lanes][:, head]
                    a, h = weights_and_logits(key, query, grad, 1, start)
                    sum_ref[k] += dot(a, grad, 0, 0) + scale * dot(h, query, 0, 0)
                    sum_ref[k, start:] += scale * dot(h, key, 1, 0)

            _by_queries(w.shape[0], columns, rest)
            dw = jnp.concatenate([sum_ref[k] for k in range(group)], axis=1)
            dw_ref[image, :, lanes] = dw.astype(w.dtype)

        _by_groups(w_ref, group * head_dim, attend)

    scratch = [pltpu.VMEM((group, w_BNF.shape[1], head_dim), jnp.float32)]
    return _pallas_call(kernel, w_BNF, heads, interpret, arrays=2, products=5, scratch=scratch)


def _dot_product(interpret: bool):
    """``dot(a, b, i, j)`` contracts axis i of a with axis j of b, summing in float32."""

    def dot(a, b, of_a, of_b):
        if interpret:  # CPUs have no bfloat16 product with a float32 sum; this is the same number
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        contracted = (((of_a,), (of_b,)), ((), ()))
        return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)

    return dot


def _softmax(dot, left, right, axis, scale, causal, first):
    """Exponentials of the logits ``scale left right^T`` and their sums over the keys.

    Args:
      dot: see :func:`_dot_product`.
      left, right: keys and queries ``(., P)``, or with ``axis`` 1 queries and keys.
      axis: of the keys.
      scale, causal: as above.
      first: the number of the first query; keys start at 0.
    """
    logits = dot(left, right, 1, 1) * scale
    if causal:
        key = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis)
        query = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1 - axis) + first
        logits = jnp.where(key <= query, logits, -jnp.inf)
    e = jnp.exp(logits - logits.max(axis, keepdims=True))
    return e, e.sum(axis, keepdims=True)


def _seen(start, width, w, causal):
    """How many tokens a block of queries looks at, where that is known as the kernel is made."""
    return start + width if causal and isinstance(start, int) else w.shape[0]


def _heads(group, head_dim):
    return [slice(k * head_dim, (k + 1) * head_dim) for k in range(group)]


def _group(heads: int, head_dim: int) -> int:
    """The fewest heads that fill whole lane tiles, or all: those of one turn of the loop."""
    fill = LANES // math.gcd(LANES, head_dim)
    return fill if heads % fill == 0 else heads


def _by_queries(tokens, columns, rest):
    """Calls ``columns(start, width)`` for blocks of queries and ``rest(start)`` for the last."""
    start = 0
    if tokens > UNROLLED_TOKENS:
        start = tokens // LANES * LANES
        _repeat(tokens // LANES, lambda i: columns(pl.multiple_of(i * LANES, LANES), LANES))
    for width in (2 * LANES, LANES):
        while tokens - start >= width:
            columns(start, width)
            start += width
    if start < tokens:
        rest(start)


def _by_groups(w_ref, lanes, attend):
    """Calls ``attend(image, lanes)`` for every image and group of heads of a block."""

    def image(b):
        _repeat(
            w_ref.shape[-1] // lanes,
            lambda g: attend(b, pl.ds(pl.multiple_of(g * lanes, LANES), lanes)),
            lambda: attend(b, slice(None)),
        )

    _repeat(w_ref.shape[0], image)


def _repeat(times, body, once=None):
    if times == 1:
        once() if once else body(0)
    else:
        jax.lax.fori_loop(0, times, lambda i, _: body(i), None)


def _cell(batch, tokens, heads, head_dim, itemsize):
    """Images and heads of one grid step, and the bytes of VMEM that it fills.

    Raises:
      ValueError: where a single group of heads is more than ``VMEM_BYTES``.
    """
    group = _group(heads, head_dim)
    width = 2 * LANES if tokens <= UNROLLED_TOKENS else LANES
    rows = -(-tokens // (2 * SUBLANES)) * 2 * SUBLANES

    def lanes(n):
        return -(-n // LANES) * LANES

    logits = rows * min(lanes(tokens), width) * (4 * 4 + 2 * itemsize)  # of a head, all at once
    scratch = group * rows * lanes(head_dim) * 4
    fixed = 2 * logits + scratch

    def size(images, heads):
        return fixed + images * 6 * rows * lanes(heads * head_dim) * itemsize

    if size(1, group) > VMEM_BYTES:
        raise ValueError(
            f"attention_implementation='pallas' keeps all tokens of {group} heads of {head_dim} in "
            f"VMEM: {tokens} tokens fill {size(1, group) / 2**20:.0f} MiB of "
            f"{VMEM_BYTES / 2**20:.0f}. Write 'xla' or 'einsum'."
        )
    fits = [k for k in range(group, heads + 1, group) if heads % k == 0]
    fits = [k for k in fits if size(1, k) <= CELL_BYTES] or [group]
    images = 1
    if fits[-1] == heads:
        images = max(
            b
            for b in range(1, max(1, CELL_HEADS // heads) + 1)
            if batch % b == 0 and (b == 1 or size(b, heads) <= CELL_BYTES)
        )
    return images, fits[-1], size(images, fits[-1])


def _pallas_call(kernel, w_BNF, heads, interpret, *, arrays, products, scratch=()):
    """The kernel over images and heads; ``products`` of N x N x P in it, ``arrays`` read."""
    B, N, F = w_BNF.shape
    images, some_heads, vmem = _cell(B, N, heads, F // heads, w_BNF.dtype.itemsize)
    block = pl.BlockSpec((images, N, some_heads * (F // heads)), lambda b, k: (b, 0, k))
    return pl.pallas_call(
        kernel,
        grid=(B // images, heads // some_heads),
        in_specs=[block] * arrays,
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(w_BNF.shape, w_BNF.dtype),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=None if vmem <= CELL_BYTES else vmem + vmem // 2,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * B * N * N * F,
            transcendentals=B * heads * N * N,
            bytes_accessed=(arrays + 1) * B * N * F * w_BNF.dtype.itemsize,
        ),
        interpret=interpret,
        name=f"shared_attention_{'forward' if arrays == 1 else 'backward'}",
    )
