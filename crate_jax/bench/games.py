"""The whole main experiment of CTRL-MSP, beside steps of the same game in eager PyTorch.

    python -m crate_jax.bench games --torch-python PATH/TO/python

Ours plays to the end: 60 steps of the leader, 1,000 of the follower after each, projections
included, everything compiled before. PyTorch is timed over some steps of each player from the same
start, and scaled to the experiment; its leader is not projected (the released code calls a conic
solver for that, once a step of the leader). ``published`` takes log-determinants from singular
values and recomputes the leader's features in every step; ``Cholesky`` does what ours does on the
samples themselves. Predicted: the matrices are tiny, so what counts is operations started. Ours
starts a few dozen compiled ones a step; PyTorch some hundred, each through its dispatcher.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from crate_jax.bench import timing
from crate_jax.bench.peers import Torch
from crate_jax.config import ConfigError
from crate_jax.studies.games import batches, play, samples
from crate_jax.studies.games.methods import order_of
from crate_jax.studies.games.players import make_game
from crate_jax.studies.games.settings import Play, Settings, check

RATES = {"PyTorch, published": "svd", "PyTorch, Cholesky": "cholesky"}
"""PyTorch's ways to a log-determinant."""


class Peer(Torch):
    """The game in PyTorch, in a process of its own."""

    SCRIPT = "pytorch_games.py"

    def scaled(self, turns: int, inner_steps: int) -> float:
        """Seconds that an experiment of so many steps would take, from some of them."""
        each = self.ask("step")
        return turns * (each["leader_s"] + inner_steps * each["follower_s"])


class Experiment:
    """The game and its batches, as the study has them.

    Args:
      settings: of the study.
    """

    def __init__(self, settings: Settings):
        self.settings, task = settings, samples.load(settings)
        X, y, K = task.train.X, task.train.y, task.num_classes
        order = order_of(settings, task, settings.play.epochs)
        rows = batches.class_rows(X, y, K, order)
        self.game = make_game(settings, K, X.shape[1], linear=True)
        self.batches = [batches.take(X, y, K, o, rows, np.float32) for o in order]
        self.samples = X[order].astype(np.float32), y[order].astype(np.int32)
        self.turn = play.make_turn(self.game, settings.play.inner_steps)

    def start(self) -> play.State:
        """The state before the first turn."""
        return play.init_state(self.game, jax.random.key(self.settings.seed), np.float32)

    def __call__(self):
        """Plays to the end."""
        state, rates = self.start(), self.settings.play
        for batch in self.batches:
            state, record = self.turn(state, batch, (rates.leader_rate, rates.follower_rate))
        return state, record


def measure(args) -> dict[str, timing.Row]:
    """Seconds of the experiment, by way."""
    settings = Settings(play=Play(epochs=args.epochs, inner_steps=args.inner_steps))
    check(settings)
    begin = time.perf_counter()
    ours = Experiment(settings)
    jax.block_until_ready(ours())
    first = time.perf_counter() - begin
    runs: dict[str, Callable] = {"ours": ours}
    turns, inner = len(ours.batches), args.inner_steps
    with contextlib.ExitStack() as stack:
        for name, kind in RATES.items() if args.torch_python else ():
            peer = _peer(args, ours, kind, stack)
            runs[name] = lambda peer=peer: peer.scaled(turns, inner)
        rows = timing.alternate(runs, args.rounds)
    rows["ours"]["first_s"] = first
    for row in rows.values():
        row["follower_steps_per_s"] = turns * inner / row["seconds"]
    return rows


def _peer(args, ours: Experiment, kind: str, stack) -> Peer:
    """PyTorch at our start, after it has given the same utility of it."""
    state, (X, y) = ours.start(), ours.samples
    utility = float(ours.game.leader_utility(state.F, state.G, ours.batches[0]))
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    file = pathlib.Path(directory) / "start.npz"
    np.savez(file, F=np.asarray(state.F), G=np.asarray(state.G), X=X, y=y)
    settings = {
        "rates": kind, "eps_sq": ours.game.eps_sq,
        "leader_rate": ours.settings.play.leader_rate,
        "follower_rate": ours.settings.play.follower_rate,
        "leader_steps": args.peer_steps, "follower_steps": 20 * args.peer_steps,
    }  # fmt: skip
    peer = Peer(args.torch_python, file, settings)
    stack.callback(peer.close)
    theirs = -peer.ask("loss")["loss"]
    if abs(theirs - utility) > 1e-3 * abs(utility):
        raise ConfigError(f"PyTorch's utility of the same start is {theirs}, ours {utility}.")
    return peer


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.bench games", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=2, help="thirty steps of the leader each")
    parser.add_argument("--inner-steps", type=int, default=1000, help="of the follower")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-python", help="an interpreter that has torch")
    parser.add_argument(
        "--peer-steps", type=int, default=5,
        help="the leader's that PyTorch is timed over, and twenty times as many of the follower",
    )  # fmt: skip
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        timing.check_rounds(args.rounds)
        if args.peer_steps < 1:
            raise ConfigError(f"--peer-steps must be at least 1; got {args.peer_steps}.")
        timing.check_interpreter(args.torch_python)
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    title = (
        f"CTRL-MSP, {30 * args.epochs} x {args.inner_steps:,} steps, {jax.devices()[0].device_kind}"
    )
    note = f"Ours with compiling and drawing of samples: {rows['ours']['first_s']:.1f} s."
    if args.torch_python:
        note += (
            f" PyTorch is scaled from {args.peer_steps} steps of the leader and "
            f"{20 * args.peer_steps} of the follower, without projections."
        )
    timing.show(rows, title, note, columns=("follower_steps_per_s",))
    timing.write(args.json, rows)
    return 0
