"""Many seeds under one vmap beside one after the other, and beside an eager PyTorch step.

    python -m crate_jax.bench sweep --seeds 8 --torch-python PATH/TO/python

All ways make the same number of updates of the same transformer on Bigram-Backcopy, in turn round
after round: ``mapped`` all seeds in one compiled step, on one device and, where there are several,
spread over them; ``one by one`` the seeds in turn, by one compiled step for one seed, its updates
in one call or a call each; PyTorch eagerly, one seed whose time counts once for each. We make every
batch anew on the device inside the step; PyTorch is given its batches ready. On a CPU every core
becomes a device. Predicted: the products are the same, so mapping gains where a step is so small
that its many operations cost more to start than to carry out, and on several devices.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from flax import traverse_util

from crate_jax.bench import timing
from crate_jax.bench.peers import Torch
from crate_jax.config import ConfigError
from crate_jax.data import backcopy, bigram
from crate_jax.studies.ablation import settings as ablation
from crate_jax.studies.ablation.training import Trainer

BATCHES = 16
"""Ready batches that PyTorch goes through."""


class Peer(Torch):
    """The transformer in PyTorch, in a process of its own."""

    SCRIPT = "pytorch_backcopy.py"


def make_settings(args, seeds: int, devices: int) -> ablation.Settings:
    """The study's settings for a bench of one cell."""
    return ablation.Settings(
        grid=ablation.Grid(layers=(str(args.layers),)),
        sweep=ablation.Sweep(seeds=seeds, devices=devices),
        model=ablation.Model(width=args.width),
        data=ablation.Data(length=args.length, batch=args.batch),
        train=ablation.Train(evaluation_batch=1),
    )


def measure(args) -> dict[str, dict[str, float]]:
    """Seconds for ``steps`` updates of every seed, and run-steps a second, by way."""
    law = bigram.load("synthetic")

    def trainer(seeds: int, devices: int) -> Trainer:
        settings = make_settings(args, seeds, devices)
        ablation.check(settings)
        return Trainer(settings, ablation.list_cells(settings)[0], law)

    mapped, alone = trainer(args.seeds, 1), trainer(1, 1)
    runs: dict[str, Callable] = {
        "mapped, 1 device": _training(mapped, 1, args.steps),
        "one by one": _training(alone, args.seeds, args.steps),
        "one by one, a call an update": _training(alone, args.seeds, args.steps, calls=args.steps),
    }
    spread = trainer(args.seeds, 0)
    if spread.mesh.size > 1:
        runs = {f"mapped, {spread.mesh.size} devices": _training(spread, 1, args.steps)} | runs
    with contextlib.ExitStack() as stack:
        if args.torch_python:
            peer, ours = _peer(args, alone, law, stack)
            theirs = peer.ask("loss")["loss"]
            if abs(theirs - ours) > 1e-4 * abs(ours):
                raise ConfigError(f"PyTorch's loss of the same weights is {theirs}, ours {ours}.")
            runs["PyTorch eager"] = lambda: args.seeds * peer()
        rows = timing.alternate(runs, args.rounds)
    for row in rows.values():
        row["run_steps_per_s"] = args.seeds * args.steps / row["seconds"]
    return rows


def _training(trainer: Trainer, times: int, steps: int, calls: int = 1) -> Callable:
    """``steps`` updates in so many calls, for the trainer's runs, ``times`` times over."""
    held = {"state": trainer.init()}

    def way():
        for _ in range(times * calls):
            held["state"], last = trainer.advance(held["state"], steps // calls)
        return held["state"], last

    return way


def _peer(args, trainer: Trainer, law: bigram.Law, stack) -> tuple[Peer, float]:
    """PyTorch with the weights of the first seed, and our loss of them on its first batch."""
    params = jax.tree.map(lambda x: np.asarray(x[0]), trainer.init()["params"])
    task = ablation.task_of(trainer.settings, trainer.cell)
    keys = jax.random.split(jax.random.key(1), BATCHES)
    tokens = jax.vmap(lambda key: backcopy.sample(key, law, task, args.batch))(keys)
    log_q = jax.nn.log_softmax(trainer.model.apply({"params": params}, tokens[0, :, :-1]))
    loss = -np.take_along_axis(np.asarray(log_q), np.asarray(tokens[0, :, 1:, None]), -1).mean()
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    weights = pathlib.Path(directory) / "weights.npz"
    np.savez(weights, tokens=np.asarray(tokens), **traverse_util.flatten_dict(params, sep="/"))
    run = trainer.runs[0]
    settings = dataclasses.asdict(run) | {"depth": args.layers, "steps": args.steps}
    peer = Peer(args.torch_python, weights, settings)
    stack.callback(peer.close)
    return peer, float(loss)


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench sweep", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--length", type=int, default=32, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences an update")
    parser.add_argument("--steps", type=int, default=50, help="updates of a seed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", help="an interpreter that has torch")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    with contextlib.suppress(RuntimeError):  # the devices are there already
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    try:
        timing.check_rounds(args.rounds)
        if args.steps < 1:
            raise ConfigError(f"--steps must be at least 1; got {args.steps}.")
        timing.check_interpreter(args.torch_python)
        if args.json and not pathlib.Path(args.json).absolute().parent.is_dir():
            raise ConfigError(f"--json={args.json}: the folder that it is in is not there.")
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    title = (
        f"{args.seeds} seeds, {args.steps} updates each: {args.layers} layer(s), width "
        f"{args.width}, {args.batch} x {args.length} tokens, {jax.devices()[0].device_kind}"
    )
    timing.show(rows, title, columns=("run_steps_per_s",))
    timing.write(args.json, rows)
    return 0
