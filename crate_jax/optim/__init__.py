"""Optimizers by name, over the same hyperparameters, decay masks and schedules.

    direction of steepest descent  x  learning rate x schedule, after a global-norm clip

The table says of each what it takes, its defaults, and whether ``weight_decay`` is decoupled
(``- lr wd p`` beside the step) or L2 (``wd p`` in the gradient, as torch has it for the same name).
Where layers are stacked the update is what unrolled layers would get, for every one of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from crate_jax.config import HYPERPARAMETERS, ConfigError, OptimizerConfig, nearest
from crate_jax.optim import schedules
from crate_jax.optim.layerwise import per_layer
from crate_jax.optim.masks import RULES, decay_mask
from crate_jax.optim.muon import muon
from crate_jax.optim.sophia import scale_by_sophia

__all__ = ["OPTIMIZERS", "Optimizer", "create", "decay_mask", "eval_params", "schedules"]

chain, step = optax.chain, optax.scale_by_learning_rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One row of the table.

    Attributes:
      build: from the hyperparameters ``h``, the decay (a transform) and the learning rate (a
        function of the step) to the whole transform.
      defaults: the hyperparameters that it takes.
      decay: ``decoupled`` or ``l2``.
      clip: ``gradient``, the one that ``update`` is given, or ``inside``: it finds another gradient
        by itself, and the clip of that comes with the decay.
    """

    build: Callable[..., optax.GradientTransformation]
    defaults: Mapping[str, Any]
    decay: str = "decoupled"
    clip: str = "gradient"


_ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "mu_dtype": None}


def _adam(h, nesterov=False):
    return optax.scale_by_adam(
        h["b1"], h["b2"], h["eps"], mu_dtype=h["mu_dtype"], nesterov=nesterov
    )


def _trust_ratio(h):
    return per_layer(optax.scale_by_trust_ratio(trust_coefficient=h.get("trust_coefficient", 1.0)))


def _adafactor(h, decay, lr):
    rms = optax.scale_by_factored_rms(
        h["factored"], decay_rate=h["decay"], min_dim_size_to_factor=h["min_dim_size_to_factor"],
        epsilon=h["eps"],
    )  # fmt: skip
    scaled = chain(rms, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    return chain(per_layer(scaled), decay, step(lr))


def _rmsprop(h, decay, lr):
    momentum = optax.trace(h["momentum"]) if h["momentum"] else optax.identity()
    return chain(decay, optax.scale_by_rms(h["decay"], h["eps"]), momentum, step(lr))


def _schedule_free(inner):
    def build(h, decay, lr):
        base = chain(inner(h), decay, step(lr))
        return contrib.schedule_free(base, lr, b1=h["b1"])

    return build


def _prodigy(h, decay, lr):
    def positive(count):  # a rate of exactly 0, as in a warm-up, makes its estimate 0/0
        return jnp.maximum(lr(count), 1e-12)

    prodigy = contrib.prodigy(
        positive, (h["b1"], h["b2"]), h["b3"], h["eps"], estim_lr_coef=h["d_coef"]
    )
    return _with_prodigys_decay(prodigy, decay, positive, h)


def _with_prodigys_decay(prodigy, decay, schedule, h):
    """Prodigy's decoupled decay on the masked leaves: ``- wd d lr p``, d its own estimate."""

    def update(updates, state, params=None, **extra):
        updates, new = prodigy.update(updates, state, params, **extra)
        zeros = jax.tree.map(lambda p: p * 0, params)
        decayed, _ = decay.update(zeros, decay.init(params), params)
        count = new.count
        bias = (1 - h["b2"] ** count) ** 0.5 / (1 - h["b1"] ** count)
        rate = state.estim_lr * schedule(state.count) * bias
        return jax.tree.map(lambda u, d: (u - rate * d).astype(u.dtype), updates, decayed), new

    return optax.GradientTransformationExtraArgs(prodigy.init, update)


def _sam(h, decay, lr):
    base = chain(decay, optax.trace(h["momentum"]), step(lr))
    sam = contrib.sam(base, chain(contrib.normalize(), optax.sgd(h["rho"])), opaque_mode=True)

    def update(updates, state, params=None, *, grad_fn, **_):
        return sam.update(updates, state, params, grad_fn=lambda p, _: grad_fn(p))

    return optax.GradientTransformationExtraArgs(sam.init, update)


OPTIMIZERS = {
    "sgd": Optimizer(lambda h, decay, lr: chain(decay, step(lr)), {}, "l2"),
    "momentum": Optimizer(
        lambda h, decay, lr: chain(decay, optax.trace(h["momentum"]), step(lr)),
        {"momentum": 0.9}, "l2",
    ),
    "nesterov": Optimizer(
        lambda h, decay, lr: chain(decay, optax.trace(h["momentum"], nesterov=True), step(lr)),
        {"momentum": 0.9}, "l2",
    ),
    "adam": Optimizer(lambda h, decay, lr: chain(decay, _adam(h), step(lr)), _ADAM, "l2"),
    "adamw": Optimizer(lambda h, decay, lr: chain(_adam(h), decay, step(lr)), _ADAM),
    "nadam": Optimizer(
        lambda h, decay, lr: chain(decay, _adam(h, nesterov=True), step(lr)), _ADAM, "l2"
    ),
    "radam": Optimizer(
        lambda h, decay, lr: chain(
            decay, optax.scale_by_radam(h["b1"], h["b2"], h["eps"]), step(lr)
        ),
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8}, "l2",
    ),
    "adan": Optimizer(
        lambda h, decay, lr: chain(
            optax.scale_by_adan(h["b1"], h["b2"], h["b3"], h["eps"]), decay, step(lr)
        ),
        {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8},
    ),
    "lion": Optimizer(
        lambda h, decay, lr: chain(
            optax.scale_by_lion(h["b1"], h["b2"], h["mu_dtype"]), decay, step(lr)
        ),
        {"b1": 0.9, "b2": 0.99, "mu_dtype": None},
    ),
    "signsgd": Optimizer(
        lambda h, decay, lr: chain(optax.scale_by_sign(), decay, step(lr)), {}
    ),
    "signum": Optimizer(
        lambda h, decay, lr: chain(
            optax.ema(h["momentum"], debias=False), optax.scale_by_sign(), decay, step(lr)
        ),
        {"momentum": 0.9},
    ),
    "rmsprop": Optimizer(
        lambda h, decay, lr: _rmsprop(h, decay, lr),
        {"decay": 0.9, "eps": 1e-8, "momentum": 0.0}, "l2",
    ),
    "adagrad": Optimizer(
        lambda h, decay, lr: chain(
            decay, optax.scale_by_rss(h["initial_accumulator_value"], h["eps"]), step(lr)
        ),
        {"initial_accumulator_value": 0.1, "eps": 1e-7}, "l2",
    ),
    "adafactor": Optimizer(
        lambda h, decay, lr: _adafactor(h, decay, lr),
        {"factored": True, "decay": 0.8, "min_dim_size_to_factor": 128, "eps": 1e-30},
    ),
    "lamb": Optimizer(
        lambda h, decay, lr: chain(_adam(h), decay, _trust_ratio(h), step(lr)),
        _ADAM | {"eps": 1e-6},
    ),
    "lars": Optimizer(
        lambda h, decay, lr: chain(
            decay, _trust_ratio(h), step(lr), optax.trace(h["momentum"])
        ),
        {"momentum": 0.9, "trust_coefficient": 0.001}, "l2",
    ),
    "schedule_free_sgd": Optimizer(_schedule_free(lambda h: optax.identity()), {"b1": 0.9}),
    "schedule_free_adamw": Optimizer(
        _schedule_free(lambda h: optax.scale_by_adam(0.0, h["b2"], h["eps"])),
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    ),
    "prodigy": Optimizer(
        _prodigy, {"b1": 0.9, "b2": 0.999, "b3": None, "eps": 1e-8, "d_coef": 1.0}
    ),
    "muon": Optimizer(
        lambda h, decay, lr: chain(muon(**h), decay, step(lr)),
        {"momentum": 0.95, "ns_steps": 5, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    ),
    "sophia": Optimizer(
        lambda h, decay, lr: chain(scale_by_sophia(**h), decay, step(lr)),
        {"b1": 0.965, "b2": 0.99, "eps": 1e-12, "gamma": 0.01, "update_interval": 10},
    ),
    "sam": Optimizer(_sam, {"rho": 0.05, "momentum": 0.9}, "l2", clip="inside"),
}  # fmt: skip
"""Every optimizer that ``config.optimizer.name`` may name."""


def hyperparameters(config: OptimizerConfig) -> dict[str, Any]:
    """The optimizer's defaults with what the config sets.

    Raises:
      ConfigError: on an unknown optimizer, or a hyperparameter that it does not take.
    """
    if config.name not in OPTIMIZERS:
        raise ConfigError(
            f"config.optimizer.name={config.name!r}{nearest(config.name, OPTIMIZERS)}"
        )
    values = dict(OPTIMIZERS[config.name].defaults)
    for name in HYPERPARAMETERS:
        value = getattr(config, name)
        if value is None:
            continue
        if name not in values:
            takes = ", ".join(sorted(values)) or "none besides learning_rate and weight_decay"
            raise ConfigError(
                f"config.optimizer.{name}: {config.name} has no such hyperparameter. It "
                f"takes: {takes}."
            )
        values[name] = value
    return values


def create(
    config: OptimizerConfig, schedule: Callable, params
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a config.

    Its ``update`` takes, beside gradients, state and parameters, ``value`` (the loss) and
    ``grad_fn`` (parameters to gradient, on the same batch), which SAM and Sophia use.

    Args:
      config: name and hyperparameters.
      schedule: step to a factor on the learning rate.
      params: parameters or their shapes, for the decay mask.

    Raises:
      ConfigError: see :func:`hyperparameters`; also on an unknown decay mask.
    """
    h = hyperparameters(config)
    if config.decay_mask not in RULES:
        raise ConfigError(
            f"config.optimizer.decay_mask={config.decay_mask!r}{nearest(config.decay_mask, RULES)}"
        )
    decay = optax.identity()
    if config.weight_decay:
        mask = decay_mask(params, config.decay_mask)
        decay = optax.add_decayed_weights(config.weight_decay, mask)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )

    def lr(count):
        return config.learning_rate * schedule(count)

    row = OPTIMIZERS[config.name]
    if row.clip == "inside":
        clip, decay = optax.identity(), chain(clip, decay)
    return optax.with_extra_args_support(chain(clip, row.build(h, decay, lr)))


def eval_params(config: OptimizerConfig, opt_state, params):
    """The parameters to evaluate: the average x of a schedule-free optimizer, else ``params``."""
    if not config.name.startswith("schedule_free"):
        return params
    return jax.jit(contrib.schedule_free_eval_params)(opt_state[1], params)
