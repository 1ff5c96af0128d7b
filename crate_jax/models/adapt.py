"""Trained parameters into a network of another resolution, patch size or head."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util

from crate_jax.config import ConfigError
from crate_jax.layers.positions import resample
from crate_jax.layers.stack import stack_layers, unstack_layers


def adapt(
    params: Mapping, like: Mapping, *, skip: Sequence[str] = (), position_resampling: str = "linear"
) -> dict[tuple[str, ...], np.ndarray]:
    """The leaves of ``params`` that a network of shapes ``like`` starts from.

    Scanned and unrolled layers are taken for each other. A position table goes to the new grid of
    patches, a convolutional patch kernel to the new patch side by bilinear resizing (CRATE-alpha's
    rule, by which a /32 model is fine-tuned at /14 or /8).

    Args:
      params: trained parameters.
      like: nested dict of arrays or shapes of the network to start.
      skip: path prefixes (``head``, ``patches/embed``) that keep their fresh values.
      position_resampling: see ``layers.positions.resample``.

    Returns:
      Flat dict from path to array, without the skipped paths.

    Raises:
      ConfigError: listing the leaves that are missing, unexpected or of another shape.
    """
    params = stack_layers(params) if "blocks" in like else unstack_layers(params)
    old, new = traverse_util.flatten_dict(params), traverse_util.flatten_dict(like)

    def skipped(path):
        return any("/".join(path).startswith(prefix) for prefix in skip)

    out, wrong = {}, []
    for path, leaf in new.items():
        if skipped(path):
            continue
        name = "/".join(path)
        if path not in old:
            wrong.append(f"{name}: missing in the checkpoint, {tuple(leaf.shape)} wanted")
            continue
        value = old[path]
        if path[-1] == "pos_embedding" and value.shape != leaf.shape:
            value = _to_grid_of(value, leaf, position_resampling)
        elif path[-2:] == ("embed", "kernel") and value.ndim == leaf.ndim == 4:
            value = jax.image.resize(value, (*leaf.shape[:2], *value.shape[2:]), "bilinear")
        if value.shape != leaf.shape:
            wrong.append(
                f"{name}: {tuple(value.shape)} in the checkpoint, {tuple(leaf.shape)} wanted"
            )
        out[path] = value
    wrong += [
        f"{'/'.join(path)}: unexpected, {tuple(old[path].shape)} in the checkpoint"
        for path in old
        if path not in new and not skipped(path)
    ]
    if wrong:
        lines = "\n  ".join(wrong)
        raise ConfigError(
            f"the checkpoint does not fit this model:\n  {lines}\n"
            f"Change config.model, or name the prefixes to start afresh in config.train.init_skip."
        )
    return out


def _to_grid_of(table, leaf, method):
    side = round((leaf.shape[1] - 1) ** 0.5)
    if side * side + 1 != leaf.shape[1] or table.shape[-1] != leaf.shape[-1]:
        return table
    return resample(table, (side, side), method=method)
