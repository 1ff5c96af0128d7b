"""What the tasks share: a state, a way to start it from a checkpoint, and the end of a step.

A task's ``params`` is whatever tree it likes, as long as all of it is saved, averaged and judged
together. A network with statistics of its own (batch normalisation) keeps them there too, as linen
has them: ``{"params": ..., "batch_stats": ...}``. Which part of the tree the optimizer moves is the
task's to say, see :meth:`Task.trained`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax import Array

from crate_jax import optim
from crate_jax.config import Config, ConfigError
from crate_jax.models.adapt import adapt
from crate_jax.optim.guard import guarded


@struct.dataclass
class State:
    """What a run carries from step to step.

    Attributes:
      step: updates tried so far.
      bad_steps: consecutive steps up to here whose loss or gradient was not finite.
      bad_total: all such steps so far.
      params, opt_state: parameters and the optimizer's state.
      ema: moving average of the parameters, or None.
    """

    step: Array
    bad_steps: Array
    bad_total: Array
    params: Any
    opt_state: Any
    ema: Any


class Task:
    """A system of one optimizer; see ``train.protocol.System`` for the contract.

    A subclass sets ``module``, calls ``__init__`` and sets ``tx``; it gives ``fresh_params``,
    ``step``, ``forward``, ``evaluate`` and ``evaluation_metrics``. One with several optimizers
    overrides :meth:`optimizer_state` and :meth:`eval_params`.

    Args:
      config: the run.
      total_steps, steps_per_epoch: length of the run, for the schedule.

    Attributes:
      abstract_params: shapes of the parameters.
      schedule: factor on the learning rate by step.
    """

    def __init__(self, config: Config, *, total_steps: int, steps_per_epoch: int):
        self.config = config
        self.schedule = optim.schedules.create(config.schedule, total_steps, steps_per_epoch)
        data = config.data
        image = jax.ShapeDtypeStruct(
            (1, data.image_size, data.image_size, data.channels), "float32"
        )
        self.abstract_params = jax.eval_shape(self.fresh_params, jax.random.key(0), image)
        if config.train.ema_decay and config.optimizer.name.startswith("schedule_free"):
            raise ConfigError(
                f"config.optimizer.name={config.optimizer.name!r} averages the parameters itself; "
                f"set config.train.ema_decay=0."
            )

    def fresh_params(self, rng: Array, image: Array):
        """Parameters for images like ``(1, H, W, C)``."""
        raise NotImplementedError

    def trained(self, params):
        """The part of ``params`` that the optimizer moves: all of it."""
        return params

    def with_trained(self, params, trained):
        """``params`` with another :meth:`trained` part."""
        del params
        return trained

    def optimizer_state(self, params):
        """The optimizer's state for fresh ``params``."""
        return self.tx.init(self.trained(params))

    def init(self, rng: Array, example_batch: Mapping[str, Array]) -> State:
        """A fresh state; only the shapes of ``example_batch['image']`` matter."""
        params = self.fresh_params(rng, example_batch["image"][:1])
        return State(
            step=jnp.zeros((), jnp.int32),
            bad_steps=jnp.zeros((), jnp.int32),
            bad_total=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer_state(params),
            ema=jax.tree.map(jnp.copy, params) if self.config.train.ema_decay else None,
        )

    def adapt(self, params: Mapping, skip: Sequence[str] = ()) -> dict[str, Any]:
        """Trained parameters as this network's: other layout of layers, patch side or resolution.

        Args:
          params: nested dict.
          skip: path prefixes that are left out.

        Raises:
          ConfigError: listing the leaves that do not fit.
        """
        resampling = getattr(self.module, "position_resampling", "linear")
        flat = adapt(params, self.abstract_params, skip=skip, position_resampling=resampling)
        return traverse_util.unflatten_dict(flat)

    def start_from(self, state: State, params: Mapping) -> State:
        """A fresh state with the parameters that :meth:`adapt` gave.

        The optimizer's state is made anew, since some hold a copy of the parameters.
        """
        flat = traverse_util.flatten_dict(state.params)
        for path, value in traverse_util.flatten_dict(params).items():
            fresh = flat[path]
            flat[path] = jax.device_put(np.asarray(value, fresh.dtype), fresh.sharding)
        params = traverse_util.unflatten_dict(flat)
        shardings = jax.tree.map(lambda x: x.sharding, state.opt_state)
        return state.replace(
            params=params,
            opt_state=jax.jit(self.optimizer_state, out_shardings=shardings)(params),
            ema=None if state.ema is None else jax.tree.map(jnp.copy, params),
        )

    def finish(
        self, state: State, params, opt_state, *, finite: Sequence[Array], **metrics: Array
    ) -> tuple[State, dict[str, Array]]:
        """The end of a step: the new state where all is finite, and what a step reports.

        Args:
          state: before the step.
          params, opt_state: after it.
          finite: scalars (losses, norms of gradients and updates); one that is not finite leaves
            the parameters alone.
          **metrics: what else to report.
        """
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - self.config.train.ema_decay)
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        ok = jnp.all(jnp.stack([jnp.isfinite(x) for x in finite]))
        new = guarded(state, new, ok)
        updates_made = state.step - state.bad_total  # what the optimizer counts
        rate = self.config.optimizer.learning_rate * self.schedule(updates_made)
        counters = {"bad_steps": new.bad_steps, "bad_total": new.bad_total}
        return new, {**metrics, "learning_rate": rate, **counters}

    def eval_params(self, state: State):
        """The parameters that are judged: the moving average where there is one."""
        if state.ema is not None:
            return state.ema
        trained = self.trained(state.params)
        judged = optim.eval_params(self.config.optimizer, state.opt_state, trained)
        return state.params if judged is trained else self.with_trained(state.params, judged)

    def measure(self, params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Curves over the depth: none."""
        del params, batch
        return {}
