"""The sweep's optimizers: learning rate and weight decay are arrays, so that runs can be mapped.

Defaults are those of the paper's code where it has the optimizer (AdamW, and SGD with heavy-ball
momentum and L2): a constant rate, no clip, and decay on all parameters, embeddings included.
"""

import dataclasses
import math

import jax
import optax

from crate_jax import optim
from crate_jax.config import ConfigError, OptimizerConfig, nearest

Array = jax.Array

NAMES = {
    "adamw": ("adamw", {"b2": 0.99}),
    "sgd": ("sgd", {}),
    "sgdm": ("momentum", {}),
    "rmsprop": ("rmsprop", {"decay": 0.99}),
    "adagrad": ("adagrad", {"initial_accumulator_value": 0.0, "eps": 1e-10}),
    "lion": ("lion", {}),
    "lamb": ("lamb", {"b2": 0.99}),
    "muon": ("muon", {"b2": 0.99}),
}
"""By the sweep's name: the name in ``optim.OPTIMIZERS``, and what differs from its defaults."""


_FRACTIONS = ("b1", "b2", "decay", "momentum")
"""Hyperparameters that say how much of the past is kept."""


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """The constant learning rate of each optimizer, before the sweep's factors.

    Attributes:
      adamw: of the paper.
      adamw_relu_1_layer: of AdamW where there is one layer, with ReLU attention; of the paper.
      sgd, sgdm: of the paper for ``sgdm``.
      rmsprop, adagrad, lion, lamb, muon: ours; the paper's code has none of them.
    """

    adamw: float = 3e-4
    adamw_relu_1_layer: float = 3e-3
    sgd: float = 0.03
    sgdm: float = 0.03
    rmsprop: float = 3e-4
    adagrad: float = 1e-2
    lion: float = 3e-5
    lamb: float = 3e-3
    muon: float = 3e-3


def parse(text: str) -> tuple[str, dict]:
    """``adamw:b2=0.999:eps=1e-6`` as the optimizer's name in ``optim`` and its hyperparameters.

    Raises:
      ConfigError: on an unknown optimizer or hyperparameter, or a value that it cannot have.
    """
    name, *changes = text.split(":")
    if name not in NAMES:
        raise ConfigError(f"there is no optimizer {name!r} in the sweep{nearest(name, NAMES)}")
    ours, given = NAMES[name][0], dict(NAMES[name][1])
    fields = {field.name: field.type for field in dataclasses.fields(OptimizerConfig)}
    for change in changes:
        key, _, value = change.partition("=")
        takes = optim.OPTIMIZERS[ours].defaults
        if key not in takes:
            raise ConfigError(
                f"optimizer {text!r}: {name} has no hyperparameter {key!r}{nearest(key, takes)}"
            )
        whole = "int" in str(fields[key])
        try:
            given[key] = int(value) if whole else float(value)
        except ValueError:
            kind = "whole number" if whole else "number"
            raise ConfigError(f"optimizer {text!r}: {key}={value!r} is no {kind}.") from None
        below = 1 if key in _FRACTIONS else math.inf
        if not whole <= given[key] < below:
            wants = f"from {int(whole)}" + ("" if below == math.inf else " to below 1")
            raise ConfigError(f"optimizer {text!r}: {key} must be {wants}; got {value}.")
    return ours, optim.hyperparameters(OptimizerConfig(ours, **given))


def learning_rate(rates: LearningRates, optimizer: str, attention: str, depth: int) -> float:
    """The learning rate of a cell."""
    name = optimizer.partition(":")[0]
    if (name, attention, depth) == ("adamw", "relu", 1):
        return rates.adamw_relu_1_layer
    return getattr(rates, name)


def build(
    optimizer: str, learning_rate: float | Array, weight_decay: float | Array, frozen=None
) -> optax.GradientTransformation:
    """An optimizer of the sweep.

    Its state has the same structure whatever the two rates are, so one compiled step serves all.

    Args:
      optimizer: see :func:`parse`.
      learning_rate, weight_decay: numbers or traced scalars.
      frozen: booleans like the parameters, True for those that must not move; None for none.
    """
    name, hyperparameters = parse(optimizer)
    decay = optax.add_decayed_weights(weight_decay)
    tx = optim.OPTIMIZERS[name].build(hyperparameters, decay, lambda count: learning_rate)
    if frozen is None:
        return tx
    return optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))
