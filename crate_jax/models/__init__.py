"""Networks by name: ``create('crate_alpha', variant='B/16', num_classes=1000)``.

``MODELS`` are transformers with a head for classes, ``NETS`` all others: encoders of features, and
players of a game. Both are linen modules whose fields are their settings.
"""

import dataclasses
import typing
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from crate_jax.config import ConfigError, check_type, nearest
from crate_jax.layers.attention import OUT_MAPS
from crate_jax.layers.positions import RESAMPLINGS
from crate_jax.layers.stack import REMATS
from crate_jax.layers.tokens import POOLS, POSITIONS
from crate_jax.models import crate, crate_alpha, dcgan, mlp, resnet, sngan, vit
from crate_jax.ops.attention import IMPLEMENTATIONS
from crate_jax.ops.convolutional_sparse_coding import GRADIENTS_AT
from crate_jax.ops.sparse import PROX

MODELS = {
    "crate": (crate.CRATE, crate.VARIANTS),
    "crate_alpha": (crate_alpha.CRATEAlpha, crate_alpha.VARIANTS),
    "vit": (vit.ViT, vit.VARIANTS),
}
"""Name to the module class and its table of sizes."""

NETS = {
    "mlp": (mlp.MLPEncoder, mlp.VARIANTS),
    "resnet": (resnet.ResNet, resnet.VARIANTS),
    "dcgan": (dcgan.DCGANTranscription, dcgan.VARIANTS),
    "sngan": (sngan.SNGANTranscription, sngan.VARIANTS),
}
"""As ``MODELS``, for networks without patches, heads and classes.

Their settings are checked against the types of their fields; an int has to be at least 1.
"""

_DTYPES = ("float32", "bfloat16", "float16", "float64")

CHOICES = {
    "attention": ("mssa", "mhsa"),
    "attention_implementation": IMPLEMENTATIONS,
    "dtype": (None, *_DTYPES),
    "encoder": dcgan.ENCODERS,
    "feedforward": ("ista", "mlp"),
    "gradient_at": GRADIENTS_AT,
    "out_map": OUT_MAPS,
    "param_dtype": _DTYPES,
    "patching": ("linear", "conv"),
    "pool": POOLS,
    "position_resampling": RESAMPLINGS,
    "positions": POSITIONS,
    "prox": tuple(PROX),
    "remat": REMATS,
    "residual_from": ("raw", "ln"),
    "tied": dcgan.TIED,
}
"""The fields that are one word of a few."""

IDLE = {
    ("attention", "mhsa"): ("out_map", "attention_scale"),
    ("feedforward", "mlp"): (
        "eta", "lmbda", "prox", "ista_steps", "ista_skip", "share_dictionary",
    ),
    ("overcomplete", False): ("expansion", "ista_steps"),
    ("encoder", "conv"): ("steps", "lmbda", "mu", "squared", "gradient_at", "adaptive_lmbda"),
}  # fmt: skip
"""Settings that another one leaves without effect: they must stay at their defaults then."""

_SIZES = ("width", "depth", "heads", "patch")
_COUNTS = (*_SIZES, "expansion", "ista_steps")
_RATES = ("drop_path", "dropout")
_FLAX_FIELDS = ("parent", "name")


def fields(name: str) -> dict[str, dataclasses.Field]:
    """The settings of a model, by name."""
    cls, _ = _find(name)
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in _FLAX_FIELDS}


def _find(name: str):
    """Class and sizes of a network."""
    known = MODELS | NETS
    if name not in known:
        raise ConfigError(f"there is no model {name!r}{nearest(str(name), known)}")
    return known[name]


def settings(name: str, *, variant: str | None = None, **overrides) -> ConfigDict:
    """``config.model`` for a config file: every setting of a model, each open to the command line.

    ``num_classes``, and sizes that the variant decides, are left to be filled in.
    """
    cls, variants = _find(name)
    hints = typing.get_type_hints(cls)
    model = ConfigDict({"name": name, "variant": placeholder(str)})
    left_open = {"num_classes", "patch" if variant and "/" in variant else None}
    left_open.update(*variants.values())
    for key, field in fields(name).items():
        hint = hints[key]
        if typing.get_origin(hint) is not tuple:
            hint = next(t for t in (typing.get_args(hint) or [hint]) if t is not type(None))
        filled_in = key in left_open or field.default in (None, dataclasses.MISSING)
        model[key] = placeholder(typing.get_origin(hint) or hint) if filled_in else field.default
    model.update({"variant": variant} | overrides)
    return model


def create(name: str, *, variant: str | None = None, **overrides) -> nn.Module:
    """A network by name and size.

    Args:
      name: a key of ``MODELS`` or ``NETS``.
      variant: ``B`` or ``B/16``: a row of the model's size table, and the patch side. None takes
        the sizes (of transformers ``width``, ``depth`` and ``heads``) from the overrides.
      **overrides: any field of the model; they win over the variant.

    Raises:
      ConfigError: on an unknown model, variant or field (with the nearest valid one), a word or
        number that a field does not take, or sizes that do not fit together.
    """
    known = fields(name)
    cls, variants = _find(name)
    sizes = {} if variant is None else _parse_variant(name, variant, variants)
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(f"model {name!r} has no setting {key!r}{nearest(key, known)}")
        if key in CHOICES and value not in CHOICES[key]:
            words = map(str, CHOICES[key])
            raise ConfigError(f"model setting {key}={value!r}{nearest(str(value), words)}")
    for (switch, value), idle in IDLE.items():
        for key in idle if overrides.get(switch) == value else ():
            if overrides.get(key, known[key].default) != known[key].default:
                raise ConfigError(
                    f"model setting {key}={overrides[key]!r} has no effect with "
                    f"{switch}={value!r}; leave it at {known[key].default!r}."
                )
    settings = sizes | overrides
    if name in NETS:
        return _create_net(name, settings)
    for key in (k for k in _COUNTS if k in known):
        value = settings.get(key, known[key].default)
        if value is dataclasses.MISSING:
            raise ConfigError(
                f"model {name!r} needs {key}: give variant= (one of {', '.join(variants)}) or "
                f"width=, depth= and heads=."
            )
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"model setting {key} must be a positive integer; got {value!r}.")
    for key in (k for k in _RATES if k in known):
        value = settings.get(key, known[key].default)
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ConfigError(f"model setting {key} must be at least 0 and below 1; got {value!r}.")
    if settings.get("positions") == "sincos2d" and settings["width"] % 4:
        raise ConfigError(
            f"positions='sincos2d' needs a width divisible by 4; got width={settings['width']}."
        )
    if settings.get("head_dim") is None and settings["width"] % settings["heads"]:
        raise ConfigError(
            f"width={settings['width']} does not divide over heads={settings['heads']}; change one "
            f"or give head_dim=."
        )
    return cls(**settings)


def _create_net(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network of ``NETS``, every setting of the type of its field."""
    cls, variants = NETS[name]
    hints = typing.get_type_hints(cls)
    settings = {k: check_type(hints[k], v, f"model setting {k}") for k, v in settings.items()}
    for key, field in fields(name).items():
        if key not in settings and field.default is dataclasses.MISSING:
            raise ConfigError(
                f"model {name!r} needs {key}: give it, or variant= (one of {', '.join(variants)})."
            )
        value = settings.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ConfigError(f"model setting {key} must be a positive integer; got {value}.")
        if key == "depths" and (len(value) != 4 or min(value) < 1):
            raise ConfigError(f"model setting depths must be four positive integers; got {value}.")
    return cls(**settings)


def describe(name: str, module: nn.Module) -> dict[str, Any]:
    """Every setting of a network as a plain dict, ``name`` first: what a checkpoint says of it."""
    return {"name": name, **{key: getattr(module, key) for key in fields(name)}}


NUMBERLESS = (
    "attention_implementation", "dropout", "drop_path", "dtype", "layer_scale", "param_dtype",
    "remat", "scan_layers",
)  # fmt: skip
"""Settings that decide how a trained network is made or run, and not what it computes."""


def _parse_variant(name, variant, variants):
    size, slash, patch = str(variant).partition("/")
    if name in NETS and (size not in variants or slash):
        raise ConfigError(f"model {name!r} has no variant {variant!r}{nearest(size, variants)}")
    if size not in variants or (slash and not patch.isdigit()):
        raise ConfigError(
            f"model {name!r} has no variant {variant!r}{nearest(size, variants)} Write 'B', or "
            f"'B/16' to say the patch side too."
        )
    return {**variants[size], **({"patch": int(patch)} if slash else {})}
