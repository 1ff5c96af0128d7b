"""Official weights in, ours out.

    module, variables = convert.load("c.npz", family="crate", heads=3, eta=0.1, lmbda=0.1)
    convert.export(module, variables, "back.safetensors")
    module, variables = convert.load("SmolLM-135M", family="llama")

``python -m crate_jax.convert`` does the same between a file and a directory that training and
evaluation read. Files are ``.npz``, ``.safetensors`` or torch's ``.pth``, which is read without
torch. A layout is a table, in one file a family, that both directions read. Language models come
from a directory with ``config.json`` and safetensors, see ``huggingface.py``, and are not exported.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from crate_jax import models
from crate_jax.config import ConfigError, nearest
from crate_jax.convert import crate, crate_alpha, files, huggingface
from crate_jax.convert.layout import Layout
from crate_jax.layers.stack import stack_layers, unstack_layers

LAYOUTS = {
    "crate": {"torch": crate.TORCH},
    "crate_alpha": {"jax": crate_alpha.JAX, "torch": crate_alpha.TORCH},
}
"""Family to its official layouts; the first is the one of the released training code."""

_OTHERS = {
    "mask_token": "CRATE-MAE",
    "transformer.wte.weight": "CRATE-GPT",
    "img/embedding/kernel": "CRATE-alpha's vision-language model (jax)",
    "visual.class_embedding": "CRATE-alpha's vision-language model (torch)",
}
"""A key that tells a model which has no layout here."""


def load(
    path: str | pathlib.Path, *, family: str, channels: int | None = None, **overrides
) -> tuple[nn.Module, dict]:
    """A model and its variables from an official checkpoint.

    Sizes and switches come from the shapes. What no shape tells has to be said: ``eta`` and
    ``lmbda`` always, ``heads`` where the projection is stored as one matrix, ``channels`` where the
    pixels of a patch are no square of 3. The arrays keep the file's dtype as far as jax has it
    (float64 needs x64).

    Args:
      path: ``.npz``, ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.tar``; torch keys with or
        without ``module.``, bare or under ``state_dict`` or ``model``. Of a language model the
        directory.
      family: a key of ``LAYOUTS``, or of ``huggingface.FAMILIES``.
      channels: image channels.
      **overrides: any field of the module, such as ``scan_layers=True`` or ``dtype='bfloat16'``; of
        a language model ``dtype`` and ``param_dtype``.

    Returns:
      ``(module, {'params': ...})``; ``module.apply(variables, image_BHWC)``, or ``tokens_BT``,
      gives the official model's logits.

    Raises:
      ConfigError: on arguments that are lacking, unknown or contradict the file, with the keys that
        are missing, unexpected or of another shape, and on a file that cannot be read.
    """
    if family in huggingface.FAMILIES:
        given = overrides if channels is None else overrides | {"channels": channels}
        return _load_language_model(path, family, given)
    if family not in LAYOUTS:
        known = (*LAYOUTS, *huggingface.FAMILIES)
        raise ConfigError(f"family={family!r} has no official layout{nearest(family, known)}")
    known = models.fields(family)
    for key in overrides:
        if key not in known:
            raise ConfigError(f"model {family!r} has no setting {key!r}{nearest(key, known)}")
    arrays = {
        name.removeprefix("module.").removeprefix("params/"): array
        for name, array in files.read(path).items()
    }
    layout = _recognise(arrays, family, path)
    given = overrides if channels is None else overrides | {"channels": channels}
    settings, params = layout.read(arrays, given, str(path))
    params = jax.tree.map(jnp.asarray, params)
    settings |= {"param_dtype": str(jnp.result_type(*params.values()))} | overrides
    module = models.create(family, **settings)
    params = traverse_util.unflatten_dict(params, sep="/")
    return module, {"params": stack_layers(params) if module.scan_layers else params}


def export(
    module: nn.Module, variables: dict, path: str | pathlib.Path, *, layout: str | None = None
) -> None:
    """Writes variables as the official code names, shapes and orders them.

    The epsilons of LayerNorms, eta and lmbda are in no file; the official codes have them as
    constants.

    Args:
      module: a module of a family of ``LAYOUTS``, layers scanned or not.
      variables: ``{'params': ...}``; dtypes are kept.
      path: ``.npz``, ``.safetensors``, or ``.pth`` where torch is installed.
      layout: ``torch`` or ``jax``; None is ``torch`` but for CRATE-alpha into an npz.

    Raises:
      ConfigError: on a module that the official code cannot express, naming the fields.
    """
    classes = {models.MODELS[family][0]: family for family in LAYOUTS}
    if type(module) not in classes:
        raise ConfigError(
            f"{type(module).__name__} has no official layout; families: {', '.join(LAYOUTS)}."
        )
    family = classes[type(module)]
    layouts = LAYOUTS[family]
    if layout is None:
        layout = "jax" if pathlib.Path(path).suffix == ".npz" and "jax" in layouts else "torch"
    if layout not in layouts:
        raise ConfigError(f"family {family!r} has no layout {layout!r}{nearest(layout, layouts)}")
    params = traverse_util.flatten_dict(unstack_layers(variables["params"]), sep="/")
    settings = {key: getattr(module, key) for key in models.fields(family)}
    arrays = layouts[layout].write(jax.tree.map(np.asarray, params), settings)
    files.write(path, arrays)


def _load_language_model(path, family, given) -> tuple[nn.Module, dict]:
    known = ("dtype", "param_dtype")
    for key in given:
        if key not in known:
            raise ConfigError(f"a {family} has no setting {key!r}{nearest(key, known)}")
    found = huggingface.read_architecture(path).family
    if found != family:
        raise ConfigError(f"{path} holds a model of family {found!r}, not {family!r}.")
    return huggingface.load(path, **given)


def _recognise(arrays, family, path) -> Layout:
    """The layout whose table has most of the names, if it is one of the family's."""
    for key, model in _OTHERS.items():
        if key in arrays:
            raise ConfigError(f"{path} looks like {model}; only {', '.join(LAYOUTS)} load.")

    def matches(layout):
        return sum(layout.names.fullmatch(name) is not None for name in arrays)

    own = max(LAYOUTS[family].values(), key=matches)
    best = max((one for codes in LAYOUTS.values() for one in codes.values()), key=matches)
    if matches(best) > matches(own):
        raise ConfigError(f"{path} looks like {best}; load it with family={best.family!r}.")
    if not matches(own):
        raise ConfigError(
            f"{path} has no key of {family}'s; its first are {', '.join(sorted(arrays)[:3])}."
        )
    return own
