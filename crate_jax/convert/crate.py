"""CRATE's classifier as the released torch code stores it (github Ma-Lab-Berkeley/CRATE).

A training checkpoint is ``{epoch, arch, state_dict, best_acc1, optimizer, scheduler}`` and its keys
carry ``module.``. Images are flattened (p1 p2 c), so ``pixels`` is the patch times the channels. A
single head as wide as the model has no output map. eta, lmbda and the heads are in no file.
"""

import math

from crate_jax.convert.layout import Layout, Leaf


def _has_out(settings):
    return settings["heads"] > 1 or settings["head_dim"] not in (None, settings["width"])


def _has_head(settings):
    return settings["num_classes"]


def _particulars(sizes, has, given):
    del has
    pixels, channels = sizes.get("pixels", 0), given.get("channels") or 3
    if "channels" not in given and given.get("patch"):
        channels = max(1, pixels // given["patch"] ** 2)
    patch = math.isqrt(pixels // channels)
    if patch**2 * channels == pixels:
        return {"patch": patch, "channels": channels}, {}
    return {}, {"channels": f"the {pixels} numbers of a patch are no square times {channels}"}


_LAYER = "transformer.layers.{i}"

TORCH = Layout(
    family="crate",
    code="torch",
    leaves=(
        Leaf("pos_embedding", "1 tokens width", "embedding/pos_embedding"),
        Leaf("cls_token", "1 1 width", "embedding/cls_token"),
        Leaf("to_patch_embedding.1.weight", "pixels", "patches/norm_pixels/scale"),
        Leaf("to_patch_embedding.1.bias", "pixels", "patches/norm_pixels/bias"),
        Leaf("to_patch_embedding.2.weight", "width pixels -> pixels width", "patches/embed/kernel"),
        Leaf("to_patch_embedding.2.bias", "width", "patches/embed/bias"),
        Leaf("to_patch_embedding.3.weight", "width", "patches/norm_tokens/scale"),
        Leaf("to_patch_embedding.3.bias", "width", "patches/norm_tokens/bias"),
        Leaf(f"{_LAYER}.0.norm.weight", "width", "blocks_{i}/norm_attention/scale"),
        Leaf(f"{_LAYER}.0.norm.bias", "width", "blocks_{i}/norm_attention/bias"),
        Leaf(
            f"{_LAYER}.0.fn.qkv.weight",
            "(heads head_dim) width -> width heads head_dim",
            "blocks_{i}/attention/subspaces/kernel",
        ),
        Leaf(
            f"{_LAYER}.0.fn.to_out.0.weight",
            "width (heads head_dim) -> heads head_dim width",
            "blocks_{i}/attention/out/kernel",
            _has_out,
        ),
        Leaf(f"{_LAYER}.0.fn.to_out.0.bias", "width", "blocks_{i}/attention/out/bias", _has_out),
        Leaf(f"{_LAYER}.1.norm.weight", "width", "blocks_{i}/norm_ista/scale"),
        Leaf(f"{_LAYER}.1.norm.bias", "width", "blocks_{i}/norm_ista/bias"),
        Leaf(f"{_LAYER}.1.fn.weight", "width width'", "blocks_{i}/ista/D"),
        Leaf("mlp_head.0.weight", "width", "norm/scale"),
        Leaf("mlp_head.0.bias", "width", "norm/bias"),
        Leaf(
            "mlp_head.1.weight", "num_classes width -> width num_classes", "head/kernel", _has_head
        ),
        Leaf("mlp_head.1.bias", "num_classes", "head/bias", _has_head),
    ),
    particulars=_particulars,
    shapes={
        "patching": "linear",
        "positions": "learned",
        "attention": "mssa",
        "feedforward": "ista",
        "out_map": "free+bias",
        "share_dictionary": False,
    },
    arithmetic={
        "attention_scale": None,
        "residual_from": "raw",
        "ista_skip": False,
        "prox": "relu",
        "ista_steps": 1,
    },
)
