"""The training loop of every system.

At the top of iteration i the state has seen exactly i updates: checkpoint, evaluate, *then* fetch
batch i and step. Batch i and the randomness of step i are functions of (seed, i), so a resumed run
needs the state alone and goes on bit for bit. Metrics of a step are read after the next one is
under way. The step is compiled once.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import Array
from jax.sharding import Mesh
from rich.console import Console

from crate_jax.config import Config, ConfigError
from crate_jax.sharding import place, rules
from crate_jax.train.checkpoint import Checkpoints
from crate_jax.train.data import Data, abstract_batch, on_devices
from crate_jax.train.debug import explained
from crate_jax.train.evaluation import Evaluator
from crate_jax.train.metrics import MetricsWriter
from crate_jax.train.preemption import Preemption
from crate_jax.train.profile import Profile
from crate_jax.train.progress import Progress
from crate_jax.train.protocol import State, System
from crate_jax.train.readout import NonFiniteError, Readout
from crate_jax.train.workdir import check_same


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
      state: the last state.
      step, total_steps: updates seen, and wanted.
      metrics: the last evaluation, by name.
      layers: the last measurement of the layers, each ``(layers,)``; empty without one.
      timing: images a second, seconds in steps and in compilation, peak memory.
      exit_code: 0, or what a run that was told to stop exits with.
    """

    state: Any
    step: int
    total_steps: int
    metrics: dict[str, float]
    layers: dict[str, np.ndarray]
    timing: dict[str, float]
    exit_code: int


def abstract_state(system: System, mesh: Mesh, batch: Mapping) -> Any:
    """Shapes, dtypes and shardings of a system's state; ``batch`` may hold shapes."""
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes, rules.shardings(mesh, shapes),
    )  # fmt: skip


def fresh_state(system: System, like: State, batch: Mapping, key: Array) -> State:
    """A state born on the devices that keep it; ``like`` and ``batch`` may hold shapes."""
    shardings = jax.tree.map(lambda x: x.sharding, like)
    example = {name: np.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    return jax.jit(lambda key: system.init(key, example), out_shardings=shardings)(key)


def compile_step(
    system: System, mesh: Mesh, state: Any, batch: Mapping, key: Array, *, donate: bool = True
):
    """The compiled ``(state, batch, key) -> (state, metrics)``; the state it is given is consumed.

    ``state`` and ``batch`` may hold shapes, with shardings; without ``donate`` the state is left.
    """

    def step(state, batch, key):
        return system.step(state, batch, jax.random.fold_in(key, state.step))

    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
        step,
        donate_argnums=(0,) if donate else (),
        out_shardings=(shardings, place.replicated(mesh)),
    )
    return jitted.lower(state, batch, key).compile()


def run(
    system: System,
    config: Config,
    *,
    workdir: pathlib.Path,
    mesh: Mesh,
    total_steps: int,
    meta: Mapping[str, Any],
    data: Data,
    start_from: Callable[[State], State] = lambda state: state,
    console: Console | None = None,
    step_flops: float = 0.0,
    peak_flops: float | None = None,
) -> Result:
    """Trains to the end, from the last checkpoint in ``workdir`` where there is one.

    Args:
      system: what is trained.
      config: of the run; its ``train`` section says how often to do what.
      workdir: where the run's files go; claimed by this config.
      mesh: devices.
      total_steps: updates of the whole run.
      meta: JSON saved with every checkpoint, ``config`` and ``total_steps`` in it.
      data: batches.
      start_from: what to do to a fresh state, where there is no checkpoint.
      console: for the live view; None is silent.
      step_flops, peak_flops: see ``train.progress.Progress``.

    Raises:
      NonFiniteError: after ``config.train.max_bad_steps`` bad steps in a row.
      CheckpointError: when the newest checkpoint is of another model.
      ConfigError: when it is of a run of another config or length.
      WriteError: when a checkpoint could not be written.
    """
    train = config.train
    init_key, step_key = place.replicated_keys(mesh, config.seed, 2)
    report = logging.error if console is None else console.print
    with (
        jax.set_mesh(mesh),
        Preemption(mesh) as preemption,
        Checkpoints(
            workdir, keep_last=train.keep_last, keep_best=train.keep_best, report=report
        ) as checkpoints,
    ):
        first = checkpoints.newest()
        source = data.train(first or 0)
        rows = next(source)
        batch = abstract_batch(mesh, rows)
        like = abstract_state(system, mesh, batch)
        if first is None:
            first, state = 0, start_from(fresh_state(system, like, batch, init_key))
        else:
            hoped, (first, state, saved) = first, checkpoints.restore_newest(like)
            check_same(saved["config"], config, checkpoints.directory / str(first))
            check_length(saved["total_steps"], total_steps)
            if first != hoped:
                source = data.train(first)
                rows = next(source)

        def save(i):
            readout.flush()
            keep(i)

        def keep(i):
            with progress.paused("saving"):
                checkpoints.save(i, state, meta, judged=_outside(system.eval_params(state), state))

        def evaluate(i):
            readout.flush()
            with progress.paused("evaluating"):
                params = system.eval_params(state)
                scalars = evaluator.run(params, stop=preemption.poll)
            if scalars is None:
                return
            writer.write(i, scalars)
            best = scalars.get(train.best_metric)
            if best is not None:
                checkpoints.score(i, -best if train.best_metric.endswith("loss") else best)
                progress.update(i, {train.best_metric: best})

        with (
            MetricsWriter(workdir, first) as writer,
            Progress(
                first, total_steps, train.batch_size, console,
                step_flops=step_flops, peak_flops=peak_flops,
            ) as progress,
            Profile(workdir, first, total_steps, config.profile) as profile,
        ):  # fmt: skip
            readout = Readout(train, workdir, writer, progress)
            evaluator = Evaluator(system, mesh, data)
            with progress.paused("compiling"):
                began = time.perf_counter()
                step = compile_step(
                    system, mesh, like, batch, step_key, donate=not config.debug_nans
                )
                progress.compile_seconds = time.perf_counter() - began
            if config.debug_nans:
                step = explained(system, workdir, step)

            try:
                for i in range(first, total_steps + 1):
                    last = i == total_steps
                    judged = last or _due(i, train.eval_every)
                    scored = judged and train.keep_best > 0
                    stop = preemption.poll()
                    if scored or stop or _due(i, train.checkpoint_every) or last:
                        save(i)
                    if judged:
                        evaluate(i)
                    if preemption.requested and not stop:  # it came while evaluating
                        save(i)
                    if last or preemption.requested:
                        break
                    with progress.waiting(readout.under_way):
                        try:
                            rows = rows if i == first else next(source)
                        except Exception:  # a record, or a loader that a signal has ended too
                            if jax.process_count() == 1:
                                save(i)
                                if preemption.poll():
                                    break
                                raise
                            if preemption.received is None:  # the others would not save
                                raise
                            source = data.train(i)
                            rows = next(source)
                        placed = on_devices(mesh, rows)
                    profile.before(i)
                    with jax.transfer_guard("disallow"):
                        state, metrics = step(state, placed, step_key)
                    readout.push(i + 1, metrics, rows)
                    checkpoints.check()
            except NonFiniteError:
                readout.flush()
                keep(int(jax.device_get(state.step)))  # good parameters, to start another run from
                checkpoints.wait()
                raise
            with progress.paused("saving"):
                checkpoints.wait()
            timing = progress.timing(i)
    return Result(
        state, i, total_steps, evaluator.metrics, evaluator.layers, timing,
        preemption.exit_code if preemption.requested else 0,
    )  # fmt: skip


def check_length(saved: int, wanted: int) -> None:
    """Raises where a run was begun with another number of steps than it has now."""
    if saved != wanted:
        raise ConfigError(
            f"this run was begun with {saved:,} steps and now has {wanted:,}: the training split "
            f"has changed its size. Put the data back, or start another --workdir with "
            f"config.train.init_from."
        )


def _due(step: int, every: int) -> bool:
    """Whether what is done every so many steps, and never for 0, is due."""
    return every > 0 and step > 0 and step % every == 0


def _outside(judged: Any, state: State) -> Any:
    """``judged`` where it is no part of the state already, else None."""
    inside = (state.params, getattr(state, "ema", None))
    return None if any(judged is part for part in inside) else judged
