"""The official models' forward passes and checkpoints in NumPy, written from the papers' formulas.

Nothing here comes from ``crate_jax``: it is what the conversion is judged by. Weights are random,
names and shapes are the official ones. Images are NCHW for torch's layouts, NHWC for jax's.
"""

import numpy as np

IMAGE = 8
ETA, LMBDA = 0.1, 0.1


def _draw(shapes, dtype):
    rng = np.random.default_rng(0)
    near_one = ("norm.weight", "embedding.1.weight", "embedding.3.weight", "head.0.weight", "scale")
    return {
        name: (0.3 * rng.normal(size=shape) + name.endswith(near_one)).astype(dtype)
        for name, shape in shapes.items()
    }


def crate_torch(
    *, width=24, heads=3, head_dim=None, depth=2, patch=4, classes=10, channels=3, grid=2,
    dtype=np.float64,
):  # fmt: skip
    """State dict of the released CRATE."""
    d, a, q = width, heads * (head_dim or width // heads), channels * patch**2
    shapes = {
        "pos_embedding": (1, grid**2 + 1, d), "cls_token": (1, 1, d),
        "to_patch_embedding.1.weight": (q,), "to_patch_embedding.1.bias": (q,),
        "to_patch_embedding.2.weight": (d, q), "to_patch_embedding.2.bias": (d,),
        "to_patch_embedding.3.weight": (d,), "to_patch_embedding.3.bias": (d,),
    }  # fmt: skip
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        shapes |= {f"{layer}.0.norm.weight": (d,), f"{layer}.0.norm.bias": (d,)}
        shapes |= {f"{layer}.0.fn.qkv.weight": (a, d)}
        if heads > 1 or a != d:
            shapes |= {f"{layer}.0.fn.to_out.0.weight": (d, a), f"{layer}.0.fn.to_out.0.bias": (d,)}
        shapes |= {f"{layer}.1.norm.weight": (d,), f"{layer}.1.norm.bias": (d,)}
        shapes |= {f"{layer}.1.fn.weight": (d, d)}
    shapes |= {"mlp_head.0.weight": (d,), "mlp_head.0.bias": (d,)}
    shapes |= {"mlp_head.1.weight": (classes, d), "mlp_head.1.bias": (classes,)}
    return _draw(shapes, dtype)


def alpha_jax(
    *, width=24, heads=3, depth=2, patch=4, classes=10, grid=2, expansion=4, bias=True,
    layer_scale=False, dtype=np.float64,
):  # fmt: skip
    """Flat parameters of the released JAX CRATE-alpha."""
    d, h = width, width // heads
    shapes = {"cls": (1, 1, d), "pos_embedding": (1, grid**2 + 1, d)}
    shapes |= {"embedding/kernel": (patch, patch, 3, d), "embedding/bias": (d,)}
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        shapes |= {f"{block}/LayerNorm_{k}/{n}": (d,) for k in (0, 1) for n in ("scale", "bias")}
        shapes |= {f"{attention}/proj/kernel": (d, heads, h)}
        shapes |= {f"{attention}/out/kernel": (heads, h, d)}
        shapes |= {f"{block}/OvercompleteISTABlock_0/{D}": (d, expansion * d) for D in ("D", "D1")}
        if layer_scale:
            shapes |= {f"{block}/ls1/ls1": (d,), f"{block}/ls2/ls2": (d,)}
    shapes |= {"encoder_norm/scale": (d,), "encoder_norm/bias": (d,)}
    shapes |= {"head/kernel": (d, classes), "head/bias": (classes,)}
    if not bias:
        shapes = {n: s for n, s in shapes.items() if n not in ("embedding/bias", "head/bias")}
    return _draw(shapes, dtype)


def alpha_torch(jax_params):
    """The same CRATE-alpha as the released converter hands it to torch."""
    p = dict(jax_params)
    out = {
        "pos_embedding": p["pos_embedding"],
        "cls_token": p["cls"],
        "conv1.weight": p["embedding/kernel"].transpose(3, 2, 0, 1),
        "conv1.bias": p["embedding/bias"],
    }
    for i in range(sum(n.endswith("proj/kernel") for n in p)):
        block, layer = f"Transformer/encoderblock_{i}", f"transformer.layers.{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        for k in (0, 1):
            out[f"{layer}.{k}.norm.weight"] = p[f"{block}/LayerNorm_{k}/scale"]
            out[f"{layer}.{k}.norm.bias"] = p[f"{block}/LayerNorm_{k}/bias"]
        U, O = p[f"{attention}/proj/kernel"], p[f"{attention}/out/kernel"]
        d = len(U)
        out[f"{layer}.0.fn.qkv.weight"] = U.reshape(d, -1).T
        out[f"{layer}.0.fn.to_out.0.weight"] = O.reshape(-1, d).T
        for D in ("D", "D1"):
            out[f"{layer}.1.fn.{D}"] = p[f"{block}/OvercompleteISTABlock_0/{D}"]
    out |= {"mlp_head.0.weight": p["encoder_norm/scale"], "mlp_head.0.bias": p["encoder_norm/bias"]}
    out |= {"mlp_head.1.weight": p["head/kernel"].T, "mlp_head.1.bias": p["head/bias"]}
    return out


def _norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _subspace_attention(w, heads):
    """``concat_k softmax(w_k w_k^T / sqrt(p)) w_k`` of ``w``: (B, N, K p)."""
    outs = []
    for w_k in np.split(w, heads, axis=-1):
        gram = w_k @ w_k.transpose(0, 2, 1) / np.sqrt(w_k.shape[-1])
        outs.append(_softmax(gram) @ w_k)
    return np.concatenate(outs, axis=-1)


def _patches(image_BCHW, p):
    """``(B, N, p1, p2, C)`` in raster order."""
    B, C, H, W = image_BCHW.shape
    tiles = [
        image_BCHW[:, :, i : i + p, j : j + p].transpose(0, 2, 3, 1)
        for i in range(0, H, p)
        for j in range(0, W, p)
    ]
    return np.stack(tiles, axis=1)


def _with_class_token(tokens, cls, positions):
    return np.concatenate([np.repeat(cls, len(tokens), axis=0), tokens], axis=1) + positions


def crate_logits(p, image_BCHW, *, heads=3, patch=4, eta=ETA, lmbda=LMBDA, pool="cls"):
    """CRATE, from a torch state dict."""

    def norm(x, name):
        return _norm(x, p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    x = _patches(image_BCHW, patch)
    x = norm(x.reshape(*x.shape[:2], -1), "to_patch_embedding.1")
    x = x @ p["to_patch_embedding.2.weight"].T + p["to_patch_embedding.2.bias"]
    z = norm(x, "to_patch_embedding.3")
    z = _with_class_token(z, p["cls_token"], p["pos_embedding"])
    for i in range(sum(n.endswith("qkv.weight") for n in p)):
        layer = f"transformer.layers.{i}"
        w = norm(z, f"{layer}.0.norm") @ p[f"{layer}.0.fn.qkv.weight"].T
        update = _subspace_attention(w, heads)
        if f"{layer}.0.fn.to_out.0.weight" in p:
            update = update @ p[f"{layer}.0.fn.to_out.0.weight"].T
            update = update + p[f"{layer}.0.fn.to_out.0.bias"]
        y, W = norm(z + update, f"{layer}.1.norm"), p[f"{layer}.1.fn.weight"]
        z = np.maximum(y + eta * (y @ W - (y @ W.T) @ W) - eta * lmbda, 0)
    z = z[:, 0] if pool == "cls" else z.mean(axis=1)
    return norm(z, "mlp_head.0") @ p["mlp_head.1.weight"].T + p["mlp_head.1.bias"]


def alpha_logits(p, image_BHWC, *, eta=ETA, lmbda=LMBDA, head_eps=1e-6):
    """CRATE-alpha, from flat jax parameters; the torch code has ``head_eps`` 1e-5."""
    kernel = p["embedding/kernel"]
    x = _patches(image_BHWC.transpose(0, 3, 1, 2), kernel.shape[0])
    x = np.einsum("bnpqc,pqcd->bnd", x, kernel) + p.get("embedding/bias", 0)
    x = _with_class_token(x, p["cls"], p["pos_embedding"])
    for i in range(sum(n.endswith("proj/kernel") for n in p)):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        U, O = p[f"{attention}/proj/kernel"], p[f"{attention}/out/kernel"]
        D, D1 = (p[f"{block}/OvercompleteISTABlock_0/{name}"] for name in ("D", "D1"))
        norms = [
            (p[f"{block}/LayerNorm_{k}/scale"], p[f"{block}/LayerNorm_{k}/bias"]) for k in (0, 1)
        ]
        w = _norm(x, *norms[0], 1e-6) @ U.reshape(len(U), -1)
        update = _subspace_attention(w, U.shape[1]) @ O.reshape(-1, O.shape[-1])
        x = x + update * p.get(f"{block}/ls1/ls1", 1)
        y = _norm(x, *norms[1], 1e-6)
        z1 = np.maximum(eta * (y @ D) - eta * lmbda, 0)
        z2 = np.maximum(z1 - eta * ((z1 @ D.T - y) @ D) - eta * lmbda, 0)
        x = x + (z2 @ D1.T) * p.get(f"{block}/ls2/ls2", 1)
    x = _norm(x[:, 0], p["encoder_norm/scale"], p["encoder_norm/bias"], head_eps)
    return x @ p["head/kernel"] + p.get("head/bias", 0)


def images(channels=3, batch=2):
    """``(B, C, H, W)`` in float64."""
    return np.random.default_rng(1).normal(size=(batch, channels, IMAGE, IMAGE))
