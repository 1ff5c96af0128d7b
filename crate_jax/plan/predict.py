"""One plan: what is known of a config on a topology, reported by the compiler, and predicted."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from crate_jax import config as configs
from crate_jax import models
from crate_jax import run as runs
from crate_jax.config import Config, ConfigError
from crate_jax.interpret import summary
from crate_jax.plan import compile as compiling
from crate_jax.plan import estimate, length
from crate_jax.plan.advice import advise
from crate_jax.plan.collectives import Collective, mesh_axes
from crate_jax.plan.formula import lay_out, on_mesh
from crate_jax.plan.roofline import Roofline, Work, exposed_seconds, roofline, seconds
from crate_jax.plan.topology import Topology

DAY, HOUR = 86_400, 3_600


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is said of one setting. Bytes and FLOPs are of one chip unless named so.

    Attributes:
      config, topology: what was planned.
      mesh: devices along each axis.
      examples: size of the training split, or None.
      total_steps: updates of the run, or None.
      parameters: their number.
      facts: FLOPs of the step and bytes that the backward pass keeps.
      estimated: memory by formula.
      compiled: the compiler's report; None for GPUs and for a step that does not fit.
      out_of_memory: the compiler's refusal.
      work: what the roofline is made of: from the module where there is one, else by formula.
      roofline: bounds of the step.
      compiler_step: seconds by the compiler's cycles, kernels by formula and exposed
        communication; None without cycles.
      kernel_seconds: of these, the kernels'.
      advice: what to change where the step does not fit.
    """

    config: Config
    topology: Topology
    mesh: dict[str, int]
    examples: int | None
    examples_source: str
    total_steps: int | None
    parameters: int
    facts: estimate.Traced
    estimated: estimate.Memory
    compiled: compiling.Compiled | None
    out_of_memory: compiling.OutOfMemoryError | None
    work: Work
    roofline: Roofline
    compiler_step: float | None
    kernel_seconds: float
    collective_seconds: Sequence[tuple[float, float]]
    advice: Sequence[str]

    @property
    def capacity(self) -> float:
        """Bytes of a chip."""
        return self.topology.chip.memory.value

    @property
    def needed(self) -> float:
        """Bytes in use: the compiler's word where it gave one, else the formula's."""
        if self.compiled is not None:
            return self.compiled.total
        if self.out_of_memory is not None and self.out_of_memory.needed:
            return self.out_of_memory.needed
        return self.estimated.total

    @property
    def fits(self) -> bool:
        """The compiler's verdict where it was asked, else the formula's."""
        if self.out_of_memory is not None:
            return False
        return self.compiled is not None or self.needed <= self.capacity

    @property
    def step_seconds(self) -> float:
        """The prediction: by the compiler's cycles where there are any, else the roofline."""
        return self.compiler_step or self.roofline.step

    def mfu(self, step: float) -> float:
        """Model FLOPs over what the chips could do in ``step`` seconds."""
        peak = self.topology.chips * self.topology.chip.flops.value
        return self.facts.model_flops / (peak * step)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        chip, compiled, config = self.topology.chip, self.compiled, self.config
        batch = config.train.batch_size
        out = {
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "digest": configs.digest(config),
            "setting": setting(config) | {"mesh": self.mesh},
            "fits": self.fits,
            "known": {
                "parameters": self.parameters,
                "model_flops_per_step": self.facts.model_flops,
                "hardware_flops_per_step": self.facts.hardware_flops,
                "kernel_flops_per_step": self.facts.kernel_flops,
                "model_flops_per_image": self.facts.model_flops / batch,
                "examples": self.examples,
                "examples_source": self.examples_source,
                "total_steps": self.total_steps,
                "chip": {
                    field.name: dataclasses.asdict(value)
                    for field in dataclasses.fields(chip)
                    if dataclasses.is_dataclass(value := getattr(chip, field.name))
                },
            },
            "compiler": None,
            "predicted": {
                "memory_estimate_bytes": dataclasses.asdict(self.estimated)
                | {"total": self.estimated.total},
                "bytes_needed": self.needed,
                "bytes_to_spare": self.capacity - self.needed,
                "hbm_bytes": self.work.hbm_bytes,
                "hbm_bytes_from": "optimized module" if compiled and compiled.module else "formula",
                "collectives": [
                    {
                        "kind": c.kind,
                        "axis": "+".join(self.axes(c)),
                        "devices": len(c.devices),
                        "bytes": c.bytes,
                        "count": c.count,
                        "asynchronous": c.asynchronous,
                        "seconds": sum(times),
                    }
                    for c, times in zip(self.work.collectives, self.collective_seconds, strict=True)
                ],
                "roofline_seconds": dataclasses.asdict(self.roofline),
                "roofline_mfu": self.mfu(self.roofline.step),
                "compiler_step_seconds": self.compiler_step,
                "compiler_mfu": self.compiler_step and self.mfu(self.compiler_step),
                "kernel_seconds": self.kernel_seconds,
                "step_seconds": self.step_seconds,
                "mfu": self.mfu(self.step_seconds),
                "images_per_second": batch / self.step_seconds,
            },
            "advice": list(self.advice),
        }
        if self.total_steps:
            total = self.total_steps * self.step_seconds
            out["predicted"]["days"] = total / DAY
            out["predicted"]["chip_hours"] = total * self.topology.chips / HOUR
        if compiled is not None:
            names = ("arguments", "output", "alias", "temporaries", "code", "total")
            module = compiled.module
            out["compiler"] = {
                "seconds_to_compile": compiled.seconds,
                "bytes": {name: getattr(compiled, name) for name in names},
                "flops_counting_loops_once": compiled.xla_flops,
                "cycles": module and module.cycles,
                "loops_of_unknown_length": module.unknown_loops if module else [],
                "kernels": [dataclasses.asdict(k) for k in module.kernels] if module else [],
                "note": compiled.note,
            }
        if self.out_of_memory is not None:
            out["compiler"] = {"out_of_memory": str(self.out_of_memory)}
        return out

    def axes(self, collective: Collective) -> tuple[str, ...]:
        """The mesh axes over which a collective runs."""
        return mesh_axes(collective.devices, self.mesh)


def setting(config: Config) -> dict[str, Any]:
    """What the search varies, and the model's name."""
    model = config.model
    return {
        "model": f"{model['name']} {model.get('variant') or ''}".strip(),
        "batch": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "remat": model.get("remat", "none"),
        "attention_implementation": model.get("attention_implementation", "einsum"),
        "dtype": model.get("dtype") or "float32",
    }


def make(config: Config, topology: Topology, examples: int | None = None) -> Plan:
    """The plan of a config on a topology.

    Raises:
      ConfigError: a sentence about what cannot be.
    """
    if config.model.get("name") in models.NETS:
        raise ConfigError(
            f"config.model.name={config.model['name']!r}: plans are made for transformers "
            f"({', '.join(models.MODELS)})."
        )
    count, source = length.examples(config, examples)
    mesh, places = lay_out(config, topology)
    needs, work, bounds = on_mesh(config, topology, mesh, places)
    facts = estimate.traced(config)
    chip = topology.chip
    compiled = refused = compiler_step = None
    kernel_seconds = 0.0
    total_steps = runs.count_steps(config, count)
    if chip.kind == "tpu":
        run = runs.prepare(config, count or runs.ANY_LENGTH, mesh.devices.flatten().tolist())
        run = dataclasses.replace(run, mesh=mesh)
        try:
            compiled = compiling.compile_step(run)
        except compiling.OutOfMemoryError as error:
            refused = error
    if compiled is not None and compiled.module is not None:
        module = compiled.module
        work = Work(work.flops, module.hbm_bytes, module.collectives)
        bounds = roofline(work, chip, topology.shape, places)
        if module.cycles is not None:
            busy = module.cycles / chip.clock.value
            kernel_seconds = max(
                facts.kernel_flops / topology.chips / chip.flops.value,
                sum(k.bytes * k.count for k in module.kernels) / chip.bandwidth.value,
            )
            times = [(c, seconds(c, chip, topology.shape, places)) for c in work.collectives]
            compiler_step = busy + kernel_seconds + exposed_seconds(times, busy + kernel_seconds)
    plan = Plan(
        config, topology, dict(mesh.shape), count, source, total_steps,
        summary.count(facts.state.params), facts, needs, compiled, refused, work,
        bounds, compiler_step, kernel_seconds,
        [seconds(c, chip, topology.shape, places) for c in work.collectives], [],
    )  # fmt: skip
    return plan if plan.fits else dataclasses.replace(plan, advice=advise(plan))
