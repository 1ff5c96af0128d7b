"""The train step of a run, compiled for a TPU that is not here: the very function the loop runs."""

import dataclasses
import re
import time

import jax

from crate_jax.plan import hlo
from crate_jax.run import Run, example_batch
from crate_jax.sharding import place
from crate_jax.train import loop

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemoryError(Exception):
    """The compiler found no way to fit a step into a chip.

    Attributes:
      needed, available: bytes, by the compiler; None where it does not say.
    """

    def __init__(self, message: str):
        super().__init__(message.splitlines()[0])
        self.needed = _quantity(message, r"Used ([\d.]+)([KMGT]?)i?B? of")
        self.needed = self.needed or _quantity(message, r"required[^(]*\(([\d.]+)([KMGT]?)i?B?\)")
        self.available = _quantity(message, r"Used \S+ of ([\d.]+)([KMGT]?)i?B? hbm")
        self.available = self.available or _quantity(
            message, r"available[^(]*\(([\d.]+)([KMGT]?)i?B?\)"
        )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step, for one chip.

    Attributes:
      seconds: of compilation.
      arguments, output, alias, temporaries, code: bytes; the output mostly takes over the
        arguments, ``alias`` of it.
      xla_flops: the compiler's own count, in which a loop's body counts once.
      module: the optimized module, or None where its text cannot be had, which ``note`` explains.
    """

    seconds: float
    arguments: int
    output: int
    alias: int
    temporaries: int
    code: int
    xla_flops: float | None
    module: hlo.Module | None
    note: str = ""

    @property
    def total(self) -> int:
        """Bytes in use at the peak, as the compiler allots them."""
        return self.arguments + self.output - self.alias + self.temporaries + self.code


def compile_step(run: Run) -> Compiled:
    """Compiles the step of a run for the devices of its mesh.

    Raises:
      OutOfMemoryError: where the step does not fit.
    """
    mesh = run.mesh
    sharding = place.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in example_batch(run.config).items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=place.replicated(mesh))
    state = loop.abstract_state(run.system, mesh, batch)
    began = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            step = loop.compile_step(run.system, mesh, state, batch, key)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "HbmOom" in str(error):
            raise OutOfMemoryError(str(error)) from error
        raise
    seconds = time.perf_counter() - began
    memory, costs = step.memory_analysis(), step.cost_analysis() or {}
    module, note = None, ""
    try:
        module = hlo.Module(step.as_text())
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # seen with v6e and some shardings
        note = f"the optimized module cannot be read: {str(error).splitlines()[0]}"
    return Compiled(
        seconds, memory.argument_size_in_bytes, memory.output_size_in_bytes,
        memory.alias_size_in_bytes, memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes, costs.get("flops"), module, note,
    )  # fmt: skip


def _quantity(text: str, pattern: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) * _UNITS[found[2]] if found else None
