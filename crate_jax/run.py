"""From a config to a run: what the modes of the command line do."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console

from crate_jax import config as configs
from crate_jax import data, models, systems
from crate_jax import evaluate as evaluators
from crate_jax.config import Config, ConfigError
from crate_jax.interpret import plots, summary
from crate_jax.plan import chips
from crate_jax.sharding import mesh as meshes
from crate_jax.sharding import place, processes, rules
from crate_jax.train import checkpoint, flops, loop, reading, whole
from crate_jax.train import workdir as workdirs
from crate_jax.train.data import Data, on_devices
from crate_jax.train.evaluation import Evaluator
from crate_jax.train.loop import Result
from crate_jax.train.protocol import System

ANY_LENGTH = 10**6
"""Steps of a run that is not run."""


@dataclasses.dataclass
class Run:
    """A config and what is made of it without a compilation.

    Attributes:
      config: of the run.
      system: its task.
      mesh: its devices.
      total_steps: updates of the whole run.
    """

    config: Config
    system: System
    mesh: Mesh
    total_steps: int

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says of the run that wrote it."""
        return {
            "model": describe_model(self.config, self.system),
            "config": configs.as_dict(self.config),
            "digest": configs.digest(self.config),
            "total_steps": self.total_steps,
        }


def describe_model(config: Config, system: System) -> dict[str, Any]:
    """Every setting of the model, as a checkpoint keeps them."""
    return models.describe(config.model["name"], system.module)


def prepare(
    config: Config, examples: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Run:
    """Makes a run, having looked for everything that can be found wrong before a compile.

    Args:
      config: of the run.
      examples: size of the training split; None opens the data and looks at it.
      devices: to run on; None takes those that are here.

    Raises:
      ConfigError: a sentence about the first thing found; a DataMissingError where it is the data.
    """
    train = config.train
    mesh = create_mesh(config, ("batch_size", "eval_batch_size"), devices)
    if examples is None:
        data.validate(config.data)
        examples = data.num_examples(config.data, config.data.train_split)
    total_steps = count_steps(config, examples)
    if total_steps < 1:
        raise ConfigError("the run has no step; raise config.train.steps or config.train.epochs.")
    steps_per_epoch = max(1, round(examples * config.data.views / train.batch_size))
    system = systems.create(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    scores = [f"eval/{name}" for name in system.evaluation_metrics]
    if train.keep_best and train.best_metric not in scores:
        raise ConfigError(
            f"config.train.best_metric={train.best_metric!r} is not measured"
            f"{configs.nearest(train.best_metric, scores)}"
        )
    check_evaluators(config, system)
    return Run(config, system, mesh, total_steps)


def check_evaluators(config: Config, system: System) -> None:
    """Raises a sentence about an evaluator that is not there, or has nothing to look at."""
    evaluators.check(config, getattr(system, "feature_dim", None))
    if config.evaluate.evaluators and not hasattr(system, "features"):
        raise ConfigError(
            f"config.evaluate.evaluators look at features, which config.system={config.system!r} "
            f"does not give; leave them out."
        )


def create_mesh(
    config: Config, batches: Sequence[str], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The config's mesh; the batch sizes of ``config.train`` that are named divide over it."""
    mesh = meshes.create_mesh(config.mesh, devices)
    check_batches(config, mesh, batches)
    return mesh


def check_batches(config: Config, mesh: Mesh | AbstractMesh, batches: Sequence[str]) -> None:
    """Raises a sentence where a batch size of ``config.train`` does not divide over the mesh."""
    for name in batches:
        parts = config.train.accumulate if name == "batch_size" else 1
        field = f"config.train.{name}" + (" / .accumulate" if parts > 1 else "")
        meshes.check_batch(mesh, getattr(config.train, name) // parts, field)


def count_steps(config: Config, examples: int | None) -> int | None:
    """Updates of a whole run; None where that takes the size of a split that is not known."""
    train = config.train
    if train.steps is not None or examples is None:
        return train.steps
    return round(train.epochs * examples * config.data.views / train.batch_size)


def system_alone(config: Config) -> System:
    """The config's task where no step is taken and the length of the run does not matter."""
    return systems.create(config, total_steps=ANY_LENGTH, steps_per_epoch=ANY_LENGTH // 100)


def batches(config: Config, mesh: Mesh) -> Data:
    """The run's batches, by seed and step; the layers are measured on the first images."""
    train = config.train

    def read(batches, size, **kwargs):
        rows = place.process_rows(mesh, size, jax.process_index())
        return batches(config.data, batch_size=size, rows=rows, **kwargs)

    measured = None
    if train.measure_batch:
        size = min(train.measure_batch, data.num_examples(config.data, config.data.eval_split))
        shards = meshes.batch_shards(mesh)
        first = next(read(data.eval_batches, max(size // shards, 1) * shards))
        measured = {"image": first["image"]}
    return Data(
        train=lambda first: read(
            data.train_batches, train.batch_size, seed=config.seed, start_step=first
        ),
        evaluation=lambda: read(data.eval_batches, train.eval_batch_size),
        measured=measured,
    )


def train(config: Config, workdir: pathlib.Path, console: Console | None = None) -> Result:
    """Trains to the end of the run, from its last checkpoint if it has one.

    On several processes each calls this with the same config, and process 0 with the console.
    """

    begun = processes.of_first([checkpoint.exists(workdir)]) == [True]
    donor = None
    if config.train.init_from and not begun:
        donor = checkpoint.choose(config.train.init_from, config.train.init_checkpoint)

    def look():
        run = prepare(config)
        return run, _start(run, donor, console)

    run, start_from = processes.together(look, (ConfigError, *reading.ERRORS))
    workdirs.claim(workdir, config)
    peak = chips.peak_flops(jax.devices()[0].device_kind, config.model.get("dtype"))
    result = loop.run(
        run.system, config, workdir=workdir, mesh=run.mesh, total_steps=run.total_steps,
        meta=run.meta(), data=batches(config, run.mesh), start_from=start_from, console=console,
        step_flops=step_flops(config) if peak else 0.0,
        peak_flops=peak * run.mesh.size if peak else None,
    )  # fmt: skip
    if result.exit_code:
        return result
    params = run.system.eval_params(result.state)
    scores = evaluate_features(config, run.system, run.mesh, params)
    if scores and jax.process_index() == 0:
        write_scores(workdir, result.step, scores)
    result.metrics.update(scores)
    if result.layers and jax.process_index() == 0:
        title = f"{config.model['name']}, step {result.step}"
        plots.layers_figure({title: result.layers}, workdir / "layers.png", title)
    return result


def evaluate_features(config: Config, system: System, mesh: Mesh, params) -> dict[str, float]:
    """What the evaluators of the config find out about the features, ``eval/NAME/...``.

    The features of the training split are those of its images as evaluation sees them, and of its
    labels as training sees them.
    """
    if not config.evaluate.evaluators:
        return {}
    size = config.train.eval_batch_size
    rows = place.process_rows(mesh, size, jax.process_index())
    replicated = place.replicated(mesh)

    def apply(function, split):
        def outputs(params, batch):
            return function(params, batch), batch["label"], batch["mask"]

        jitted = jax.jit(outputs, out_shardings=replicated)
        found = []
        with jax.set_mesh(mesh):
            for batch in data.eval_batches(config.data, batch_size=size, rows=rows, split=split):
                out, label, mask = jax.device_get(jitted(params, on_devices(mesh, batch)))
                kept = mask > 0
                found.append(jax.tree.map(lambda x, kept=kept: x[kept], (out, label)))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    return evaluators.run(evaluators.Probe(config, system, apply))


def write_scores(workdir: pathlib.Path, step: int, scores: Mapping[str, float]) -> None:
    """``evaluation.json``: what the evaluators found, and after which step."""
    text = json.dumps({"step": step, **scores}, indent=1)
    whole.write_text(workdir / "evaluation.json", text + "\n")


def _start(run: Run, donor: pathlib.Path | None, console: Console | None):
    """What to do to a fresh state: nothing, or take over the parameters of another checkpoint."""
    if donor is None:
        return lambda state: state
    params, settings = reading.read_params(donor), reading.read_meta(donor)["model"]
    adapted = run.system.adapt(params, run.config.train.init_skip)
    differing = setting_differences(settings, describe_model(run.config, run.system))
    if differing and console is not None:
        console.print(
            f"Starting from {donor}, whose model had other settings:", *differing, sep="\n  "
        )
    return lambda state: run.system.start_from(state, adapted)


def setting_differences(saved: Mapping, wanted: Mapping) -> list[str]:
    """The settings of two models that make them compute different things, a line each."""
    a, b = (
        {k: v for k, v in settings.items() if k not in models.NUMBERLESS}
        for settings in (saved, wanted)
    )
    return configs.differences(a, json.loads(json.dumps(b)), "config.model")


def evaluate(config: Config, workdir: pathlib.Path, which: str = "latest") -> tuple[int, Evaluator]:
    """Evaluates the judged parameters of a run, or of converted weights, in ``workdir``.

    Returns:
      the checkpoint's step, and the evaluator with what it found.

    Raises:
      ConfigError: when the checkpoint is of another model than the config's.
    """
    path = checkpoint.choose(workdir, which)

    def look():
        mesh = create_mesh(config, ("eval_batch_size",))
        data.validate(config.data, splits=(config.data.eval_split,))
        system = system_alone(config)
        check_evaluators(config, system)
        return mesh, system, reading.read_params(path), reading.read_meta(path)

    mesh, system, params, meta = processes.together(look, (ConfigError, *reading.ERRORS))
    differing = setting_differences(meta["model"], describe_model(config, system))
    if differing:
        lines = "\n  ".join(differing)
        raise ConfigError(
            f"{workdir} holds another model than the config:\n  {lines}\n"
            f"Give the config it was made with, or these settings on the command line."
        )
    params = jax.device_get(system.adapt(params))
    evaluator = Evaluator(system, mesh, batches(config, mesh))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, rules.shardings(mesh, params))
        evaluator.run(params)
    scores = evaluate_features(config, system, mesh, params)
    if scores and jax.process_index() == 0:
        write_scores(workdir, int(path.name), scores)
    evaluator.metrics.update(scores)
    return int(path.name), evaluator


def show(config: Config, console: Console) -> None:
    """Prints the resolved config, the parameters and their sharding, and the FLOPs of a step."""
    mesh = create_mesh(config, ("batch_size", "eval_batch_size"))
    try:
        steps = f"{prepare(config).total_steps:,}"
    except data.DataMissingError:
        steps = "unknown: the data is not here"
    console.print_json(json.dumps(configs.as_dict(config)))
    system = system_alone(config)
    params = system.abstract_params
    console.print(summary.parameter_table(params, rules.shardings(mesh, params)))
    operations = step_flops(config)
    console.print(
        summary.facts(
            digest=configs.digest(config),
            steps=steps,
            mesh=", ".join(f"{axis} {n}" for axis, n in mesh.shape.items()),
            parameters=f"{summary.count(params):,}",
            **{
                "FLOPs a step": f"{operations:.4g}",
                "FLOPs an image": f"{operations / config.train.batch_size:.4g}",
            },
        )
    )


def example_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global training batch, as the pipeline makes it."""
    data, batch = config.data, config.train.batch_size
    image = (batch, data.image_size, data.image_size, data.channels)
    return {
        "image": jax.ShapeDtypeStruct(image, "float32"),
        "label": jax.ShapeDtypeStruct((batch,), "int32"),
    }


def step_flops(config: Config) -> int:
    """Floating-point operations of a training step, none of them done twice.

    Neither rematerialisation nor a kernel that forms its attention again in the backward pass
    counts: these are model FLOPs, whatever carries them out.
    """
    known = models.fields(config.model["name"])
    plain = {"remat": "none", "attention_implementation": "einsum"}
    model = {**config.model, **{key: plain[key] for key in plain if key in known}}
    system = system_alone(dataclasses.replace(config, model=model))
    batch = example_batch(config)
    state = jax.eval_shape(system.init, jax.random.key(0), batch)
    return flops.matmul_flops(system.step, state, batch, jax.random.key(0))
