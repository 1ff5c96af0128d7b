"""A cell's runs, trained side by side: one compiled step, mapped over seeds and rates.

The runs lie on the ``sweep`` axis of the mesh and never speak to each other; on the ``data`` axis,
where it is longer than 1, the batch is split. Batch i of a seed is a function of the seed and i,
made on the device. How many updates one call takes is an argument: however the training is cut
into calls, it is the same program that goes through the same numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram
from crate_jax.models.backcopy import FORCES, Interventions, frozen_mask
from crate_jax.sharding.rules import named_leaves
from crate_jax.studies.ablation import measure, optimizers
from crate_jax.studies.ablation.settings import (
    BLOCKS,
    Cell,
    Settings,
    Sweep,
    list_runs,
    make_model,
    task_of,
)

Array = jax.Array

_FORCED = {"ideal": "ideal attention", "bos": "all to <s>", "diagonal": "diagonal"}
_EVALUATION = 2**31 - 1  # folded into the seed's key for the evaluation batch: no run's number


class Trainer:
    """Trains and judges all runs of a cell at once.

    Everything that belongs to the runs has a leading axis of R.

    Args:
      settings: of the study.
      cell: of the grid.
      law: of the transitions.
      devices: to lay the runs out on; None takes those of this process.

    Attributes:
      runs: seed and rates of each.
      model: of the cell.
      mesh: ``sweep`` x ``data``.
      leaf_names: the parameters in the order of the metrics ``leaf_...``.
      abstract_state: shapes, dtypes and shardings of a state.
      first_sequence: ``(N,)`` tokens, of which :meth:`portrait` is.
    """

    def __init__(
        self,
        settings: Settings,
        cell: Cell,
        law: bigram.Law,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.settings, self.cell, self._law = settings, cell, law
        self.runs = list_runs(settings, cell)
        self._task = task_of(settings, cell)
        self.model = make_model(settings, cell, backcopy.vocabulary(law, self._task))
        devices = jax.local_devices() if devices is None else devices
        self.mesh = make_mesh(settings.sweep, len(self.runs), settings.data.batch, devices)
        self._sharding = NamedSharding(self.mesh, PartitionSpec("sweep"))
        key = jax.random.key(settings.seed)
        seeds = jnp.array([run.seed for run in self.runs])
        rates = [[run.learning_rate, run.weight_decay] for run in self.runs]
        members = (
            jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds),
            *np.asarray(rates, np.float32).T,
        )
        self._members = jax.device_put(members, self._sharding)
        self._batch = jax.device_put(
            measure.make_evaluation(law, self._task, self._evaluation_tokens(key)),
            NamedSharding(self.mesh, PartitionSpec()),
        )
        self._judge = measure.Judge(self.model, cell, measure.ordinary(law, self._task))
        self._init = self._map(self._init_run)
        self._metrics = self._map(self._metrics_of_run, common=1)
        self._portrait = self._map(self._judge.portrait, common=1)
        self._intervened = self._map(self._intervened_run, common=1)
        self._advance = self._shard(self._advance_runs, common=1, donate_argnums=0)
        self.first_sequence = np.asarray(self._batch.tokens_BN[0])
        self.abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding),
            jax.eval_shape(self._init, *self._members),
        )
        self.leaf_names = list(named_leaves(self.abstract_state["params"]))

    def _evaluation_tokens(self, key: Array) -> Array:
        batch = self.settings.train.evaluation_batch
        if self.settings.train.official_evaluation:
            return jnp.asarray(backcopy.official_batch(self._law, self._task, batch))
        return backcopy.sample(jax.random.fold_in(key, _EVALUATION), self._law, self._task, batch)

    def init(self) -> dict[str, Any]:
        """``params``, ``opt_state`` and ``step`` of all runs before the first update."""
        return self._init(*self._members)

    def advance(self, state, count: int):
        """``count`` more updates, at least one.

        Args:
          state: of all runs; consumed.
          count: of updates.

        Returns:
          The new state, and gradients, updates and training loss ``(R,)`` of the last step.
        """
        return self._advance(state, *self._members, jnp.int32(count))

    def metrics(self, state, last=None) -> dict[str, Array]:
        """The metrics of ``measure``, each ``(R, ...)``.

        Args:
          state: of all runs.
          last: what :meth:`advance` returned beside it; None before the first update.
        """
        if last is None:
            zeros = jax.tree.map(jnp.zeros_like, state["params"])
            last = (zeros, zeros, jnp.full(len(self.runs), jnp.nan))
        return self._metrics(state["params"], *last, self._batch)

    def portrait(self, state) -> dict[str, Array]:
        """The first evaluation sequence in full; see ``measure.Judge.portrait``."""
        return self._portrait(state["params"], self._batch)

    def intervene(self, state) -> dict[str, Array]:
        """The metrics under each of :meth:`interventions`, ``(R, I, ...)``."""
        return self._intervened(state["params"], self._batch)

    def interventions(self) -> dict[str, Interventions]:
        """By name, ``none`` first: heads zeroed, MLPs dropped, attention forced, values zeroed."""
        heads = range(self.settings.model.heads)
        triggers = np.flatnonzero(~self._judge.ordinary_V)
        none = Interventions.none(self.cell.depth, len(heads), triggers)
        out = {"none": none}
        for l, kind in enumerate(self.cell.blocks):
            if l in self.cell.attentive:
                for h in heads:
                    gain = none.head_gain.at[l, h].set(0)
                    out[f"zero head {l}.{h}"] = none._replace(head_gain=gain)
                for name in ("ideal", "bos", "diagonal"):
                    force = none.force.at[l].set(FORCES[name])
                    out[f"{_FORCED[name]} {l}"] = none._replace(force=force)
                gain = none.bos_value_gain.at[l].set(0)
                out[f"zero <s> value {l}"] = none._replace(bos_value_gain=gain)
                gain = none.bos_attention_gain.at[l].set(0)
                out[f"zero <s> attention {l}"] = none._replace(bos_attention_gain=gain)
            if "no_mlp" not in BLOCKS[kind]:
                out[f"drop MLP {l}"] = none._replace(mlp_gain=none.mlp_gain.at[l].set(0))
                gain = none.bos_mlp_gain.at[l].set(0)
                out[f"zero <s> MLP {l}"] = none._replace(bos_mlp_gain=gain)
        return out

    def _optimizer(self, learning_rate, weight_decay, params):
        names = self.settings.model.frozen
        frozen = frozen_mask(params, names) if names else None
        return optimizers.build(self.cell.optimizer, learning_rate, weight_decay, frozen)

    def _init_run(self, key, learning_rate, weight_decay):
        tokens = jnp.zeros((1, self.settings.data.length), jnp.int32)
        params = self.model.init(jax.random.fold_in(key, 0), tokens)["params"]
        tx = self._optimizer(learning_rate, weight_decay, params)
        return {"params": params, "opt_state": tx.init(params), "step": jnp.int32(0)}

    def _step(self, state, key, learning_rate, weight_decay):
        """One update of one run."""
        batch_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
        tokens = backcopy.sample(batch_key, self._law, self._task, self.settings.data.batch)
        tokens = jax.lax.with_sharding_constraint(tokens, PartitionSpec("data"))
        params = state["params"]
        tx = self._optimizer(learning_rate, weight_decay, params)

        def loss(params):
            logits = self.model.apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        update, opt_state = tx.update(gradient, state["opt_state"], params)
        new = {
            "params": optax.apply_updates(params, update),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        return new, gradient, update, value

    def _advance_runs(self, state, keys, learning_rates, weight_decays, count):
        def body(_, carry):
            return jax.vmap(self._step)(carry[0], keys, learning_rates, weight_decays)

        zeros = jax.tree.map(jnp.zeros_like, state["params"])
        start = (state, zeros, zeros, jnp.zeros(keys.shape[0]))
        state, *last = jax.lax.fori_loop(0, count, body, start)
        return state, tuple(last)

    def _metrics_of_run(self, params, gradient, update, loss, batch):
        motion = self._judge.motion(params, gradient, update, batch)
        return {"train_loss": loss} | self._judge.metrics(params, batch) | motion

    def _intervened_run(self, params, batch):
        several = jax.tree.map(lambda *x: jnp.stack(x), *self.interventions().values())
        return jax.lax.map(lambda one: self._judge.metrics(params, batch, one), several)

    def _map(self, function, common: int = 0):
        """``function`` of one run, and of ``common`` last arguments that all runs share."""

        def of_runs(*args):
            split = len(args) - common
            axes = (0,) * split + (None,) * common
            return jax.vmap(function, in_axes=axes)(*args)

        return self._shard(of_runs, common)

    def _shard(self, function, common: int = 0, **how):
        """``function`` on each device's own runs; the ``common`` last arguments are on all."""

        def whole(*args):
            runs = PartitionSpec("sweep")
            specs = (runs,) * (len(args) - common) + (PartitionSpec(),) * common
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=runs, axis_names={"sweep"},
                check_vma=False,
            )(*args)  # fmt: skip

        return jax.jit(whole, **how)


def make_mesh(sweep: Sweep, runs: int, batch: int, devices: Sequence[jax.Device]) -> Mesh:
    """``sweep`` x ``data``.

    Raises:
      ConfigError: where runs or batch do not divide over the devices, or there are too few.
    """
    if batch % sweep.data_devices:
        raise ConfigError(
            f"config.data.batch={batch} does not divide over "
            f"config.sweep.data_devices={sweep.data_devices}."
        )
    available = len(devices) // sweep.data_devices
    along = sweep.devices or max((n for n in range(1, available + 1) if runs % n == 0), default=0)
    if not 1 <= along <= available or runs % along:
        raise ConfigError(
            f"config.sweep.devices={sweep.devices} x .data_devices={sweep.data_devices} does not "
            f"lay out {runs} runs on {len(devices)} devices; the runs must divide evenly."
        )
    shape = (along, sweep.data_devices)
    grid = np.asarray(devices[: math.prod(shape)]).reshape(shape)
    return Mesh(grid, ("sweep", "data"), axis_types=(AxisType.Auto,) * 2)
