"""Step time and memory of the ways to run one model, measured side by side.

    python -m crate_jax.bench step --model crate_alpha --variant B/16 --batch 4 --rounds 3

Every way is compiled first; then the rounds go through all of them in turn, so that whatever else
the machine does falls on all alike. Only the ratios of one run are worth comparing. Memory is what
the compiler allots: temporaries, and with state and batch the peak. GFLOP/s are model FLOPs: what
the step without rematerialisation multiplies, over the time of each way; ``mfu`` is their share of
the chip's peak, where that is published. Predicted is :func:`predict`. The last row is the
white-box measurement of the layers, on as many images as the step has.
"""

import argparse
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crate_jax import config as configs
from crate_jax import models
from crate_jax.bench import timing
from crate_jax.config import Config, ConfigError
from crate_jax.plan.chips import peak_flops
from crate_jax.run import step_flops, system_alone
from crate_jax.train.flops import matmul_flops

WAYS = {
    "unrolled": {},
    "scan": {"scan_layers": True},
    "scan, remat attention": {"scan_layers": True, "remat": "attention"},
    "scan, remat dots_no_batch": {"scan_layers": True, "remat": "dots_no_batch"},
    "scan, remat dots": {"scan_layers": True, "remat": "dots"},
    "scan, remat full": {"scan_layers": True, "remat": "full"},
    "scan, bfloat16": {"scan_layers": True, "dtype": "bfloat16"},
}


MEASURING = "measuring the layers"
EVALUATION_INTERVAL = 1000
"""Steps between two evaluations, for the share that the measurement costs."""


class Rates(NamedTuple):
    """What this machine does: FLOP/s of a product, and bytes a second of a pass over memory."""

    flops: float
    memory: float


def measure_rates(dtype: str | None = None) -> Rates:
    """The rates of the first device; None is float32."""
    return Rates(timing.matmul_rate(dtype=dtype or "float32"), timing.copy_rate())


def predict(step, state, *args, rates: Rates) -> float:
    """Seconds of a training step by its products, recomputed ones included, and its state.

    The state is read and written once, and the gradients as well. Activations are left out: what
    the compiler fuses does not go through memory.
    """
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    moved = 2 * (held + gradients)
    return matmul_flops(step, state, *args) / rates.flops + moved / rates.memory


def make_config(name: str, variant: str, size: int, batch: int, overrides: dict) -> Config:
    """A model of some size on images of some side, ``overrides`` saying in which way."""
    raw = configs.default()
    raw.model = models.settings(name, variant=variant, **overrides)
    raw.data.update(image_size=size, channels=3, num_classes=1000)
    raw.train.update(batch_size=batch, steps=100)
    return configs.resolve(raw)


def config_of(args, overrides: dict) -> Config:
    """What the options of :func:`add_sizes` say, ``overrides`` on top."""
    overrides = {"dtype": args.dtype} | overrides
    return make_config(args.model, args.variant, args.size, args.batch, overrides)


def make_batch(config: Config) -> dict[str, jax.Array]:
    """Random images, each of its own class."""
    batch, size = config.train.batch_size, config.data.image_size
    image = jax.random.normal(jax.random.key(1), (batch, size, size, config.data.channels))
    return {"image": image, "label": jnp.arange(batch, dtype=jnp.int32)}


def make_step(config: Config, donate: bool = True):
    """A system and its compiled training step, with a state and a batch to run it on."""
    system, data = system_alone(config), make_batch(config)
    state = jax.jit(system.init)(jax.random.key(0), data)
    step = jax.jit(system.step, donate_argnums=(0,) if donate else ())
    start = time.perf_counter()
    compiled = step.lower(state, data, jax.random.key(2)).compile()
    return system, compiled, state, data, time.perf_counter() - start


def peak_gib(compiled) -> float:
    """Memory of a compiled step: arguments, results that do not take their place, temporaries."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    ) / 2**30  # fmt: skip


def measure(args) -> dict[str, timing.Row]:
    """Seconds a step, predicted and measured, seconds to compile, GiB, FLOPs: one row a way."""
    timing.check_rounds(args.rounds)
    flops = step_flops(config_of(args, {"scan_layers": True}))
    rates, rows, runs, key = {}, {}, {}, jax.random.key(0)
    for way in args.ways:
        config = config_of(args, WAYS[way])
        dtype = config.model["dtype"]
        if dtype not in rates:
            rates[dtype] = measure_rates(dtype)
        system, step, state, data, compile_s = make_step(config)
        rows[way] = {
            "predicted": predict(system.step, state, data, key, rates=rates[dtype]),
            "compile_s": compile_s,
            "temporary_gib": step.memory_analysis().temp_size_in_bytes / 2**30,
            "peak_gib": peak_gib(step),
        }
        runs[way] = timing.Stepping(step, state, data, key)
    layers, last = jax.jit(system.measure), runs[way]
    measuring = {MEASURING: lambda: layers(last.state.params, data)}
    timing.race(rows, runs | measuring, args.rounds)
    for way in args.ways:
        row, dtype = rows[way], config_of(args, WAYS[way]).model["dtype"]
        row["images_per_s"] = args.batch / row["seconds"]
        row["gflops_per_s"] = flops / row["seconds"] / 1e9
        peak = peak_flops(jax.devices()[0].device_kind, dtype)
        if peak:
            row["mfu"] = flops / row["seconds"] / peak
    return rows


def add_sizes(parser: argparse.ArgumentParser, *, variant: str, size: int, batch: int) -> None:
    """The options of a bench of training steps, with its defaults."""
    parser.add_argument("--model", default="crate_alpha", choices=models.MODELS)
    parser.add_argument("--variant", default=variant)
    parser.add_argument("--size", type=int, default=size, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="also write the rows to this file")


def title(args) -> str:
    """What is measured, on what."""
    device = jax.devices()[0].device_kind
    return f"{args.model} {args.variant}, {args.size} px, batch {args.batch}, {device}"


def main(argv=None) -> int:
    """The command line; returns the exit code, 2 with a sentence on sizes that do not fit."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench step", description=__doc__)
    add_sizes(parser, variant="B/16", size=224, batch=4)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    share = rows[MEASURING]["seconds"] / rows[args.ways[0]]["seconds"] / EVALUATION_INTERVAL
    columns = ["images_per_s", "gflops_per_s", "temporary_gib", "peak_gib", "compile_s"]
    if any("mfu" in row for row in rows.values()):
        columns.append("mfu")
    note = (
        f"Measuring the layers once in {EVALUATION_INTERVAL:,} steps adds {100 * share:.3f} % to "
        f"their time."
    )
    timing.show(rows, title(args), note, columns)
    timing.write(args.json, rows)
    return 0
