"""CRATE-alpha's classifier as the released JAX and torch codes store it (UCSC-VLAA/CRATE-alpha).

The JAX code writes an npz with names joined by '/', bare or under ``params/``; its two biases of
stem and head have one switch. The torch code has every LayerNorm at 1e-6 but the last, which has
torch's own 1e-5. D and D1 are the same in both, and in ours.
"""

from crate_jax.convert.layout import Layout, Leaf


def _has_head(settings):
    return settings["num_classes"]


def _has_head_bias(settings):
    return settings["num_classes"] and settings["head_bias"]


def _has_stem_bias(settings):
    return settings["stem_bias"]


def _is_decoupled(settings):
    return settings["decoupled"]


def _is_layer_scaled(settings):
    return settings["layer_scale"] is not None


def _has_positions(settings):
    return settings["positions"] == "learned"


def _particulars(sizes, has, given):
    expansion = sizes.get("atoms", 0) // (sizes.get("width") or 1)
    sizes["atoms"] = expansion * sizes.get("width", 0)
    told = {
        "patch": sizes.get("patch", 0),
        "channels": sizes.get("channels", 0),
        "expansion": expansion,
        "decoupled": has("blocks_{i}/ista/D1"),
    }
    if told["decoupled"] or "residual" in given:
        return told, {}
    return told, {"residual": "without D1 it is a rung of the ablation, and those differ in it"}


def _jax_particulars(sizes, has, given):
    told, lacking = _particulars(sizes, has, given)
    scaled = has("blocks_{i}/layer_scale_attention") or has("blocks_{i}/layer_scale_ista")
    told |= {
        "stem_bias": has("patches/embed/bias"),
        "head_bias": has("head/bias") if sizes.get("num_classes") else given.get("head_bias", True),
        # Its value starts a training; one that has been trained only needs it to be there.
        "layer_scale": given.get("layer_scale", 1.0) if scaled else None,
    }
    return told, lacking


_SHAPES = {"overcomplete": True}
_ARITHMETIC = {
    "residual": True,
    "pool": "cls",
    "attention_scale": None,
    "prox": "relu",
    "ista_steps": 2,
}

_BLOCK = "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductSubspaceAttention_0"
_DICTIONARY = f"{_BLOCK}/OvercompleteISTABlock_0"

JAX = Layout(
    family="crate_alpha",
    code="jax",
    leaves=(
        Leaf("cls", "1 1 width", "embedding/cls_token"),
        Leaf("pos_embedding", "1 tokens width", "embedding/pos_embedding", _has_positions),
        Leaf("embedding/kernel", "patch patch' channels width", "patches/embed/kernel"),
        Leaf("embedding/bias", "width", "patches/embed/bias", _has_stem_bias),
        Leaf(f"{_BLOCK}/LayerNorm_0/scale", "width", "blocks_{i}/norm_attention/scale"),
        Leaf(f"{_BLOCK}/LayerNorm_0/bias", "width", "blocks_{i}/norm_attention/bias"),
        Leaf(
            f"{_ATTENTION}/proj/kernel",
            "width heads head_dim",
            "blocks_{i}/attention/subspaces/kernel",
        ),
        Leaf(f"{_ATTENTION}/out/kernel", "heads head_dim width", "blocks_{i}/attention/out/kernel"),
        Leaf(f"{_BLOCK}/ls1/ls1", "width", "blocks_{i}/layer_scale_attention", _is_layer_scaled),
        Leaf(f"{_BLOCK}/LayerNorm_1/scale", "width", "blocks_{i}/norm_ista/scale"),
        Leaf(f"{_BLOCK}/LayerNorm_1/bias", "width", "blocks_{i}/norm_ista/bias"),
        Leaf(f"{_DICTIONARY}/D", "width atoms", "blocks_{i}/ista/D"),
        Leaf(f"{_DICTIONARY}/D1", "width atoms", "blocks_{i}/ista/D1", _is_decoupled),
        Leaf(f"{_BLOCK}/ls2/ls2", "width", "blocks_{i}/layer_scale_ista", _is_layer_scaled),
        Leaf("encoder_norm/scale", "width", "norm/scale"),
        Leaf("encoder_norm/bias", "width", "norm/bias"),
        Leaf("head/kernel", "width num_classes", "head/kernel", _has_head),
        Leaf("head/bias", "num_classes", "head/bias", _has_head_bias),
    ),
    particulars=_jax_particulars,
    shapes=_SHAPES,
    arithmetic=_ARITHMETIC,
    limits=(
        (
            lambda s: s["num_classes"] and s["stem_bias"] != s["head_bias"],
            "stem_bias={stem_bias} with head_bias={head_bias} (they are one switch)",
        ),
    ),
)

_LAYER = "transformer.layers.{i}"

TORCH = Layout(
    family="crate_alpha",
    code="torch",
    leaves=(
        Leaf("pos_embedding", "1 tokens width", "embedding/pos_embedding"),
        Leaf("cls_token", "1 1 width", "embedding/cls_token"),
        Leaf(
            "conv1.weight",
            "width channels patch patch' -> patch patch' channels width",
            "patches/embed/kernel",
        ),
        Leaf("conv1.bias", "width", "patches/embed/bias"),
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
        ),
        Leaf(f"{_LAYER}.1.norm.weight", "width", "blocks_{i}/norm_ista/scale"),
        Leaf(f"{_LAYER}.1.norm.bias", "width", "blocks_{i}/norm_ista/bias"),
        Leaf(f"{_LAYER}.1.fn.D", "width atoms", "blocks_{i}/ista/D"),
        Leaf(f"{_LAYER}.1.fn.D1", "width atoms", "blocks_{i}/ista/D1", _is_decoupled),
        Leaf("mlp_head.0.weight", "width", "norm/scale"),
        Leaf("mlp_head.0.bias", "width", "norm/bias"),
        Leaf(
            "mlp_head.1.weight", "num_classes width -> width num_classes", "head/kernel", _has_head
        ),
        Leaf("mlp_head.1.bias", "num_classes", "head/bias", _has_head),
    ),
    particulars=_particulars,
    defaults={"head_norm_eps": 1e-5},
    shapes={
        **_SHAPES,
        "positions": "learned",
        "stem_bias": True,
        "head_bias": True,
        "layer_scale": None,
    },
    arithmetic=_ARITHMETIC,
    limits=(
        (
            lambda s: s["heads"] == 1 and s["head_dim"] in (None, s["width"]),
            "heads=1 as wide as the model (this code then has no output map)",
        ),
    ),
)
