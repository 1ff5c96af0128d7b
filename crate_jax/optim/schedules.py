"""Learning-rate factors over a run: what multiplies the peak learning rate at each step."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from crate_jax.config import ConfigError, ScheduleConfig, nearest


def _cosine(t, s, config):
    return config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * t))


def _linear(t, s, config):
    return 1 - (1 - config.final) * t


def _rsqrt(t, s, config):
    return jnp.sqrt(config.rsqrt_timescale / (config.rsqrt_timescale + s))


def _constant(t, s, config):
    return jnp.ones_like(t)


DECAYS = {"cosine": _cosine, "linear": _linear, "rsqrt": _rsqrt, "constant": _constant}
"""Factor after the warm-up, from t in [0, 1] and s, the steps since the warm-up ended."""


def create(
    config: ScheduleConfig, total_steps: int, steps_per_epoch: int
) -> Callable[[Array | int], Array]:
    """The factor as a function of the step.

    With a warm-up of w steps in a run of T, ``min(1, s/w) decay((s - w)/(T - w))``: the first
    update has learning rate 0 when there is a warm-up. ``epoch_cosine`` is the CRATE code's,
    constant over an epoch e of E: ``min((e + 1)/warmup_epochs, (1 + cos(pi e/E))/2)``.
    ``multistep`` is ``step_factor`` to the number of ``milestones``, in epochs, that are behind.

    Raises:
      ConfigError: on an unknown name, or a warm-up that does not end before the run.
    """
    names = (*DECAYS, "epoch_cosine", "multistep")
    if config.name not in names:
        raise ConfigError(f"config.schedule.name={config.name!r}{nearest(config.name, names)}")
    if config.name == "epoch_cosine":
        return _epoch_cosine(config, total_steps, steps_per_epoch)
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    if warmup and warmup >= total_steps:
        raise ConfigError(
            f"the warm-up of {warmup} steps does not end before the run of {total_steps}; lower "
            f"config.schedule.warmup_steps or .warmup_epochs."
        )
    decay = _multistep(steps_per_epoch) if config.name == "multistep" else DECAYS[config.name]

    def schedule(step):
        s = jnp.asarray(step, jnp.result_type(float))
        t = jnp.clip((s - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        since = s if config.name == "multistep" else jnp.maximum(s - warmup, 0.0)
        factor = decay(t, since, config)
        return factor * jnp.minimum(1.0, s / warmup) if warmup else factor

    return schedule


def _multistep(steps_per_epoch):
    def decay(t, s, config):
        milestones = jnp.asarray(config.milestones, t.dtype) * steps_per_epoch
        return config.step_factor ** jnp.sum(s >= jnp.round(milestones)).astype(t.dtype)

    return decay


def _epoch_cosine(config, total_steps, steps_per_epoch):
    if config.warmup_steps:
        raise ConfigError("epoch_cosine warms up by config.schedule.warmup_epochs, not steps.")
    epochs = total_steps / steps_per_epoch

    def schedule(step):
        e = jnp.asarray(step) // steps_per_epoch
        factor = 0.5 * (1 + jnp.cos(jnp.pi * e / epochs))
        return (
            jnp.minimum((e + 1) / config.warmup_epochs, factor) if config.warmup_epochs else factor
        )

    return schedule
