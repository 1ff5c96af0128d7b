"""What a run would need and take on a machine that is not here.

    python -m crate_jax.plan --config configs/crate_alpha/imagenet21k.py:variant=L/14 \
        --topology v5e:16x16 --json plan.json
    python -m crate_jax.plan --config FILE --topology v5p:4x4x4 --search --max_compiles 8
    python -m crate_jax.plan --config FILE --topology h100:64 --batch 2048

The config's own train step is compiled for TPUs (v4, v5e, v5p, v6e; two slices as 2xv5e:16x16) by
libtpu, with no TPU present; for GPUs (a100, a100-40, h100, h200) everything is a formula. A mistake
in the config or the topology exits with 2, a plan that does not fit with 1.
"""

import os

os.environ |= {  # before jax starts: nothing may wait for, or complain of, a TPU that is not here
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

import dataclasses
import json
import sys

from absl import flags, logging
from rich.console import Console

from crate_jax import main as front
from crate_jax.config import Config, ConfigError
from crate_jax.plan import predict, report, search, topology

TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SHAPE, as v5e:16x16 or h100:8")
BATCH = flags.DEFINE_integer("batch", None, "global batch, instead of config.train.batch_size")
EXAMPLES = flags.DEFINE_integer("examples", None, "training images, where the data is not here")
JSON = flags.DEFINE_string("json", None, "file to write the plan, or with --search all, to")
SEARCH = flags.DEFINE_bool("search", False, "try remat x mesh x attention (x --batches)")
BATCHES = flags.DEFINE_list("batches", [], "global batches that --search tries besides")
MAX_COMPILES = flags.DEFINE_integer("max_compiles", 8, "plans that --search makes at most")


def main(argv) -> int:
    """Plans; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(f"do not know what to do with {' '.join(argv[1:])!r}; see --help.")
    config = front.read_config()
    if not isinstance(config, Config):
        raise ConfigError("a study has no training step to plan; give the config of a run.")
    if TOPOLOGY.value is None:
        raise ConfigError("--topology is not given; write --topology v5e:16x16, say.")
    machine = topology.parse(TOPOLOGY.value)
    if BATCH.value is not None:
        train = dataclasses.replace(config.train, batch_size=_positive("batch", BATCH.value))
        config = dataclasses.replace(config, train=train)
    if EXAMPLES.value is not None:
        _positive("examples", EXAMPLES.value)
    console = Console()
    console.width = report.WIDTH
    if SEARCH.value:
        return _search(config, machine, console)
    plan = predict.make(config, machine, EXAMPLES.value)
    report.show(plan, console)
    _write(plan.as_dict())
    return 0 if plan.fits else 1


def _search(config, machine, console: Console) -> int:
    try:
        others = [_positive("batches", int(b)) for b in BATCHES.value]
    except ValueError:
        raise ConfigError(f"--batches={','.join(BATCHES.value)}: write numbers.") from None
    plans, failures = search.search(
        config, machine, examples=EXAMPLES.value,
        batches=list(dict.fromkeys([config.train.batch_size, *others])),
        max_compiles=_positive("max_compiles", MAX_COMPILES.value),
        say=lambda line: console.print(line, highlight=False, markup=False),
    )  # fmt: skip
    report.ranking(plans, failures, console)
    _write({"plans": [plan.as_dict() for plan in plans], "failures": failures})
    if not plans:
        console.print("Nothing fits; take more chips or a smaller batch.")
        return 1
    report.show(plans[0], console)
    return 0


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"--{flag} must be at least 1; got {value}.")
    return value


def _write(plain: dict) -> None:
    if JSON.value is None:
        return
    try:
        with open(JSON.value, "w") as file:
            json.dump(plain, file, indent=2)
    except OSError as error:
        raise ConfigError(f"--json {JSON.value} cannot be written: {error.strerror}.") from error


if __name__ == "__main__":
    logging.set_verbosity(logging.FATAL)
    try:
        sys.exit(main(front.parse(sys.argv)))
    except ConfigError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(str(error), markup=False)
        sys.exit(2)
