"""Step time and memory of the ways to run one model, measured side by side.

    python -m crate_jax.bench step --model crate_alpha --variant B/16 --batch 4 --rounds 3

Every way is compiled first; then the rounds go through all of them in turn, so that whatever else
the machine does falls on all alike. Only the ratios of one run are worth comparing. Memory is what
the compiler allots: temporaries, and with state and batch the peak. GFLOP/s are model FLOPs: what
the step without rematerialisation multiplies, over the time of each way. The last row is the
white-box measurement of the layers, on as many images as the step has.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
from rich.table import Table

from crate_jax import config as configs
from crate_jax import models
from crate_jax.bench import timing
from crate_jax.config import Config, ConfigError
from crate_jax.run import step_flops, system_alone

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


def make_config(name: str, variant: str, size: int, batch: int, overrides: dict) -> Config:
    """A model of some size on images of some side, ``overrides`` saying in which way."""
    raw = configs.default()
    raw.model = models.settings(name, variant=variant, **overrides)
    raw.data.update(image_size=size, channels=3, num_classes=1000)
    raw.train.update(batch_size=batch, steps=100)
    return configs.resolve(raw)


def make_batch(config: Config) -> dict[str, jax.Array]:
    """Random images, each of its own class."""
    batch, size = config.train.batch_size, config.data.image_size
    image = jax.random.normal(jax.random.key(1), (batch, size, size, config.data.channels))
    return {"image": image, "label": jnp.arange(batch, dtype=jnp.int32)}


def make_step(config: Config):
    """A system and its compiled training step, with a state and a batch to run it on."""
    system, data = system_alone(config), make_batch(config)
    state = jax.jit(system.init)(jax.random.key(0), data)
    step = jax.jit(system.step, donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(state, data, jax.random.key(2)).compile()
    return system, compiled, state, data, time.perf_counter() - start


def measure(args) -> dict[str, dict[str, float]]:
    """Seconds a step (median over rounds), seconds to compile, GiB, FLOPs: one row a way."""
    if args.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1; got {args.rounds}.")
    sizes = (args.model, args.variant, args.size, args.batch)
    flops = step_flops(make_config(*sizes, {"scan_layers": True}))
    rows, runs = {}, {}
    for way in args.ways:
        system, step, state, data, compile_s = make_step(make_config(*sizes, WAYS[way]))
        memory = step.memory_analysis()
        peak = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        )  # fmt: skip
        rows[way] = {
            "compile_s": compile_s,
            "temporary_gib": memory.temp_size_in_bytes / 2**30,
            "peak_gib": peak / 2**30,
        }
        runs[way] = timing.Stepping(step, state, data, jax.random.key(0))
    layers, last = jax.jit(system.measure), runs[way]
    measuring = {MEASURING: lambda: layers(last.state.params, data)}
    for way, seconds in timing.alternate(runs | measuring, args.rounds).items():
        rows.setdefault(way, {})["step_s"] = seconds
    for way in args.ways:
        rows[way]["images_per_s"] = args.batch / rows[way]["step_s"]
        rows[way]["gflops_per_s"] = flops / rows[way]["step_s"] / 1e9
    return rows


def show(rows: dict[str, dict[str, float]], title: str) -> None:
    """Prints the rows, each with its time as a ratio to the first."""
    columns = ("step_s", "images_per_s", "gflops_per_s", "temporary_gib", "peak_gib", "compile_s")
    table = Table("way", "ratio", *columns, title=title, box=None)
    table.columns[0].no_wrap = True
    first = next(iter(rows.values()))["step_s"]
    for way, row in rows.items():
        cells = (f"{row[c]:.3g}" if c in row else "" for c in columns)
        table.add_row(way, f"{row['step_s'] / first:.2f}", *cells)
    console = timing.wide_console()
    console.print(table)
    share = rows[MEASURING]["step_s"] / first / EVALUATION_INTERVAL
    console.print(
        f"Measuring the layers once in {EVALUATION_INTERVAL:,} steps adds {100 * share:.3f} % to "
        f"their time."
    )


def main(argv=None) -> int:
    """The command line; returns the exit code, 2 with a sentence on sizes that do not fit."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench", description=__doc__)
    parser.add_argument("--model", default="crate_alpha", choices=models.MODELS)
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    device = jax.devices()[0]
    title = f"{args.model} {args.variant}, {args.size} px, batch {args.batch}, {device.device_kind}"
    show(rows, title)
    timing.write(args.json, rows)
    return 0
