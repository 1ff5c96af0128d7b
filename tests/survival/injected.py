"""``crate_jax.main`` with a hand in it: a phase made long and announced, or a record made bad.

    python -m tests.survival.injected WHAT... -- ARGUMENTS OF crate_jax.main

``compiling:FILE``, ``stepping:FILE``, ``evaluating:FILE`` and ``saving:FILE`` touch FILE when the
run is in that phase, and stay in it for a while: a signal that is sent once FILE is there hits it.
``records:DIRECTORY`` notes which records each step was given, ``poison:RECORD`` makes the image of
one record of the training split nan. Process 1 alone stays long in ``preparing:FILE``, and does not
see ``blind:DIRECTORY``.
"""

import asyncio
import json
import pathlib
import sys
import time

import jax
import numpy as np
from orbax.checkpoint._src.path import atomicity

from crate_jax import data, main, run
from crate_jax.train import evaluation, loop, reading

STAY_SECONDS, LONG_SECONDS = 1.0, 60.0
STEP = 5
"""Step of this process in which ``stepping`` stays."""


def preparing(file: str) -> None:
    """Before anything is begun, where the other process waits for this one."""
    prepare = run.prepare

    def slow(config):
        if jax.process_index() == 1:
            pathlib.Path(file).touch()
            time.sleep(LONG_SECONDS)
        return prepare(config)

    run.prepare = slow


def blind(directory: str) -> None:
    """A directory that the other host alone has, and little patience with its not being here."""
    is_dir = pathlib.Path.is_dir

    def seen(self, **kwargs):
        hidden = jax.process_index() == 1 and self.is_relative_to(directory)
        return not hidden and is_dir(self, **kwargs)

    pathlib.Path.is_dir = seen
    reading.SEEN_WITHIN = 1.0


def compiling(file: str) -> None:
    """The compilation of the step takes its own time, about a second."""
    compile_step = loop.compile_step

    def announced(*args, **kwargs):
        pathlib.Path(file).touch()
        return compile_step(*args, **kwargs)

    loop.compile_step = announced


def stepping(file: str) -> None:
    """Between the dispatch of a step and the next one."""
    compile_step = loop.compile_step

    def slow_step(*args, **kwargs):
        step, taken = compile_step(*args, **kwargs), []

        def slow(*args):
            out = step(*args)
            taken.append(1)
            if len(taken) == STEP:
                _stay(file)
            return out

        return slow

    loop.compile_step = slow_step


def evaluating(file: str) -> None:
    """At the second batch of the first evaluation."""
    on_devices, placed = evaluation.on_devices, []

    def slow(mesh, rows):
        placed.append(1)
        if len(placed) == 2:
            _stay(file)
        return on_devices(mesh, rows)

    evaluation.on_devices = slow


def saving(file: str) -> None:
    """Everything of the first checkpoint is written, but it has not yet got its name."""
    finalize, saved = atomicity.AtomicRenameTemporaryPath.finalize, []

    async def slow(self):
        saved.append(1)
        if len(saved) == 1:
            pathlib.Path(file).touch()
            await asyncio.sleep(STAY_SECONDS)
        await finalize(self)

    atomicity.AtomicRenameTemporaryPath.finalize = slow


def records(directory: str) -> None:
    """A line ``{"step": i, "records": [...]}`` for each batch, in a file of each process."""
    push = loop.Readout.push

    def noted(self, step, metrics, rows):
        path = pathlib.Path(directory) / f"{jax.process_index()}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "records": rows["index"].tolist()}) + "\n")
        push(self, step, metrics, rows)

    loop.Readout.push = noted


def poison(record: str) -> None:
    """No source can give nan, but a transform that goes wrong can."""
    train_batches = data.train_batches

    def spoilt(*args, **kwargs):
        for rows in train_batches(*args, **kwargs):
            rows["image"][rows["index"] == int(record)] = np.nan
            yield rows

    data.train_batches = spoilt


def _stay(file: str) -> None:
    pathlib.Path(file).touch()
    time.sleep(STAY_SECONDS)


HANDS = {
    f.__name__: f
    for f in (preparing, blind, compiling, stepping, evaluating, saving, records, poison)
}


if __name__ == "__main__":
    end = sys.argv.index("--")
    for what in sys.argv[1:end]:
        name, _, argument = what.partition(":")
        HANDS[name](argument)
    sys.argv[1 : end + 1] = []
    main.cli()
