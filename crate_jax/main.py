"""Trains, evaluates or shows a run, or carries out a study.

    python -m crate_jax.main --config configs/quickstart.py --workdir runs/quickstart
    python -m crate_jax.main --config FILE:ARGUMENT --workdir D --config.optimizer.name=sgd
    python -m crate_jax.main --config FILE --workdir D --mode=eval --step=best
    python -m crate_jax.main --config FILE --mode=show

A config file of ``crate_jax.studies`` is carried out by the same command, and may be shown.

Started again on the same workdir, a run goes on where it stopped, bit for bit; a workdir that holds
another config is refused. A run that SIGTERM stops saves first and exits with 75, which asks a
launcher to start it again (130 after Ctrl-C). A mistake in the config exits with 2.
"""

import errno
import itertools
import json
import logging as standard_logging
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from crate_jax import config as configs
from crate_jax import run, studies
from crate_jax.config import Config, ConfigError
from crate_jax.interpret import summary
from crate_jax.sharding import processes
from crate_jax.train import workdir as workdirs
from crate_jax.train.checkpoint import WriteError
from crate_jax.train.preemption import EXIT_INTERRUPTED, EXIT_RESUME
from crate_jax.train.reading import DamagedError, ReadError, UnreachableError
from crate_jax.train.readout import NonFiniteError

config_flags.DEFINE_config_file("config", help_string="config file, FILE or FILE:ARGUMENT")
WORKDIR = flags.DEFINE_string("workdir", None, "where the run's files go")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "show"], "what to do")
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"],
    "several processes: auto starts them where a cluster is found or --coordinator is given, on "
    "refuses to run alone, off runs alone",
)  # fmt: skip
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where not found")
PROCESSES = flags.DEFINE_integer("processes", None, "number of processes, where not found")
PROCESS = flags.DEFINE_integer("process", None, "number of this process, where not found")
START_TIMEOUT = flags.DEFINE_float("start_timeout", 300.0, "seconds to wait for other processes")
STEP = flags.DEFINE_string("step", "latest", "checkpoint of --mode=eval: latest, best or a number")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags.

    Raises:
      ConfigError: a config file that does not load or refuses its argument, an unknown setting
        (with the nearest valid one), or a value of the wrong type.
    """
    app.define_help_flags()
    names = [b for a, b in itertools.pairwise(argv) if a == "--config"]
    names += [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    file = load_file(names[-1]) if names else None
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    except (AttributeError, KeyError) as error:  # ml_collections', of an override
        raise ConfigError(explain_override(argv, file) or str(error)) from error


def load_file(name: str) -> ConfigDict:
    """The ConfigDict of ``FILE`` or ``FILE:ARGUMENT``."""
    path, _, argument = name.partition(":")
    try:
        return runpy.run_path(path)["get_config"](argument or None)
    except ConfigError:
        raise
    except Exception as error:  # whatever the file's own code raises
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config file {path!r} does not load. {why}") from error


def explain_override(argv: list[str], file: ConfigDict) -> str | None:
    """What is wrong with the first ``--config.a.b`` that names no setting of the file."""
    for argument in argv[1:]:
        if not argument.startswith("--config."):
            continue
        node, path = file, "config"
        for key in argument.partition("=")[0].removeprefix("--config.").split("."):
            if not isinstance(node, ConfigDict):
                return f"{path} is a value and has no setting {key!r}."
            if key not in node:
                return f"{path}.{key} is not a setting{configs.nearest(key, node.keys())}"
            node, path = node[key], f"{path}.{key}"
    return None


CRASHED = 70
"""What a run exits with on an error that is no sentence (EX_SOFTWARE)."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that takes no more."""

EITHER = (
    ("train", "steps", "epochs", None),
    ("schedule", "warmup_steps", "warmup_epochs", 0),
)
"""Pairs of settings of which one is in force, and what the other then is."""


def read_config():
    """The config of the flags, resolved: a :class:`Config`, or the settings of a study.

    Where the command line names another optimizer than the file, the hyperparameters that the file
    set for its own are forgotten; learning rate, decay and clip stay, and what the command line
    sets. Where it sets one of a pair (steps or epochs), the file's other is forgotten.
    """
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise ConfigError("--config is not given; write --config configs/quickstart.py, say.")
    raw, given = flag.value, config_flags.get_override_values(flag)
    if "study" in raw:
        return studies.resolve(raw)
    for section, a, b, off in EITHER:
        for one, other in ((a, b), (b, a)):
            if f"{section}.{one}" in given and f"{section}.{other}" not in given:
                raw[section][other] = off
    if "optimizer.name" in given:
        file = load_file(config_flags.get_config_filename(flag))
        if file.optimizer.name != raw.optimizer.name:
            for name in configs.HYPERPARAMETERS:
                if f"optimizer.{name}" not in given:
                    raw.optimizer[name] = None
    return configs.resolve(raw)


def start_processes(config) -> None:
    """Starts ``jax.distributed`` where this is one process of several."""
    if DISTRIBUTED.value == "off":
        return
    place = processes.find_place(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, timeout=START_TIMEOUT.value
    )
    if place is not None:
        settings = configs.common_settings(config)
        card = processes.make_card(**settings, mode=MODE.value, step=STEP.value)
        processes.start(place, card, timeout=START_TIMEOUT.value)
    elif DISTRIBUTED.value == "on":
        raise ConfigError(
            "--distributed=on, but no cluster is found; give --coordinator, --processes and "
            "--process, or leave it at auto to run alone."
        )


def main(argv) -> int:
    """Runs the mode; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(f"do not know what to do with {' '.join(argv[1:])!r}; see --help.")
    config = read_config()
    if MODE.value != "show":
        start_processes(config)
    console = Console(quiet=jax.process_index() > 0)
    is_study = not isinstance(config, Config)
    if MODE.value == "show":
        show_study(config, console) if is_study else run.show(config, console)
        return 0
    if WORKDIR.value is None:
        raise ConfigError("--workdir is not given; write --workdir runs/NAME.")
    workdir = pathlib.Path(WORKDIR.value).absolute()
    if is_study:
        if MODE.value == "eval":
            raise ConfigError("a study has no --mode=eval: its run ends in its tables and figures.")
        workdirs.claim(workdir, config)
        try:
            return studies.run(config, workdir, console)
        except ConfigError:
            workdirs.release(workdir)  # nothing was begun: the mended command may have it
            raise
    if MODE.value == "eval":
        step, evaluator = run.evaluate(config, workdir, STEP.value)
        report(console, evaluator.metrics, evaluator.layers, {"checkpoint": f"step {step}"})
        return 0
    result = run.train(config, workdir, console)
    if result.exit_code:
        console.print(f"Stopped at step {result.step:,} of {result.total_steps:,}; saved.")
        return result.exit_code
    report(console, result.metrics, result.layers, facts_of(result) | {"files": str(workdir)})
    return 0


def show_study(settings, console: Console) -> None:
    """Prints the resolved settings of a study."""
    console.print_json(json.dumps(configs.as_dict(settings)))
    console.print(summary.facts(study=settings.study, digest=configs.digest(settings)))


def facts_of(result) -> dict[str, str]:
    """The rows of the final table that tell how the run went."""
    timing = result.timing
    return {
        "parameters": f"{summary.count(result.state.params):,}",
        "training": f"{timing['timing/seconds']:.1f} s",
        "compiling": f"{timing['timing/compile_seconds']:.1f} s",
        "images/s": f"{timing['timing/images_per_second']:,.0f}",
    }


def report(console: Console, metrics, layers, rows) -> None:
    """The final table, and the layers as bars."""
    evaluation = {
        name.removeprefix("eval/"): f"{100 * value:.2f} %" if "accuracy" in name else f"{value:.4f}"
        for name, value in metrics.items()
        if name.startswith("eval/")
    }
    console.print(summary.facts(**evaluation, **rows))
    if layers:
        console.print(summary.layers_chart(layers))


LAST_SECONDS = 3.0
"""What process 0, whose end aborts the others, leaves them to exit with codes of their own."""


def leave(code: int, *, together: bool = False) -> None:
    """Exits; where a process gives up, which others may not do, without waiting for them."""
    place = processes.started()
    if not together and place is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        if place.index == 0:
            time.sleep(LAST_SECONDS)
        os._exit(code)
    sys.exit(code)


class StoppedEarly(BaseException):
    """SIGTERM before the loop, which saves first, has taken it over: nothing is begun or lost."""


def stop_early(*_) -> None:
    raise StoppedEarly


def cli() -> None:
    """The command line: sentences for what the user can mend, tracebacks for the rest."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    # What matters is raised here; --verbosity=0 shows the rest.
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)  # Orbax's threads'
    signal.signal(signal.SIGTERM, stop_early)
    try:
        leave(main(parse(sys.argv)), together=True)
    except StoppedEarly:
        leave(EXIT_RESUME)
    except KeyboardInterrupt:
        leave(EXIT_INTERRUPTED)
    except ConfigError as error:
        console.print(str(error), markup=False)
        leave(2)
    except (NonFiniteError, WriteError, ReadError, DamagedError) as error:
        console.print(str(error), markup=False)
        leave(1)
    except (processes.StartError, UnreachableError) as error:
        console.print(str(error), markup=False)
        leave(EXIT_RESUME)
    except Exception as error:
        if processes.has_lost_another(error):
            console.print(
                "Another process of this run has ended; its own log says why. Start all again with "
                "the same command: the run goes on from its newest checkpoint.",
            )
            leave(EXIT_RESUME)
        if isinstance(error, OSError) and error.errno in FULL:
            console.print(
                f"{error.filename or 'the workdir'} cannot be written: {error.strerror}. Free "
                f"space, then run the same command again; it goes on from the newest checkpoint.",
                markup=False,
            )
            leave(1)
        traceback.print_exc()
        leave(CRASHED)


if __name__ == "__main__":
    cli()
