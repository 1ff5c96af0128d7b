"""Our training step beside the same model as other code has it: a plain Flax port, and PyTorch.

    python -m crate_jax.bench peers --family crate_alpha --batch 8 --torch-python PATH/TO/python

All take the same weights and batch, with AdamW, in turn round after round. PyTorch runs in a
process of its own, by an interpreter that has it; without ``--torch-python`` it is left out.
Predicted of a plain port on a CPU: as ours, since the products are the same.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from crate_jax.bench import step, timing
from crate_jax.bench.peers import plain
from crate_jax.config import Config, ConfigError
from crate_jax.run import system_alone

LEARNING_RATE = 1e-5
OURS = {
    "ours": {},
    "ours, scan": {"scan_layers": True},
    "ours, remat attention": {"remat": "attention"},
}


class Torch:
    """The peer in a process of its own."""

    def __init__(self, python: str, weights: pathlib.Path, settings: dict):
        script = pathlib.Path(__file__).with_name("pytorch.py")
        self._process = subprocess.Popen(
            [python, str(script), str(weights), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, word: str) -> dict:
        """Its answer to ``loss`` or ``step``."""
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError("PyTorch did not answer; does --torch-python have torch and numpy?")
        return json.loads(line)

    def __call__(self) -> float:
        return self.ask("step")["step_s"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def make_config(args, overrides: dict) -> Config:
    """The bench's, with the peers' optimizer."""
    config = step.make_config(args.family, args.variant, args.size, args.batch, overrides)
    optimizer = dataclasses.replace(config.optimizer, name="adamw", learning_rate=LEARNING_RATE)
    return dataclasses.replace(config, optimizer=optimizer)


def measure(args) -> dict[str, dict[str, float]]:
    """Seconds a step, and the loss of the common weights, by peer."""
    config = make_config(args, {})
    system, batch = system_alone(config), step.make_batch(config)
    params = jax.jit(system.init)(jax.random.key(0), batch).params
    module = system.module
    sizes = {
        "width": module.width, "depth": module.depth, "heads": module.heads, "patch": module.patch,
    }  # fmt: skip
    port = plain.Plain(args.family, **sizes)
    loss, init, port_step = plain.make_step(port, LEARNING_RATE)
    logits = system.forward(params, batch)
    ours = plain.mean_loss(logits, batch["label"])
    rows = {name: {"loss": float(ours)} for name in OURS}
    rows["plain Flax port"] = {"loss": float(jax.jit(loss)(params, batch))}
    runs = {}
    for name, overrides in OURS.items():
        way = system_alone(make_config(args, overrides))
        state = jax.jit(way.init)(jax.random.key(0), batch)
        compiled = jax.jit(way.step, donate_argnums=0)
        runs[name] = timing.Stepping(compiled, state, batch, jax.random.key(3))
    state = jax.jit(init)(jax.tree.map(jnp.copy, params))
    compiled = jax.jit(port_step, donate_argnums=0)
    runs["plain Flax port"] = timing.Stepping(compiled, state, batch)
    with contextlib.ExitStack() as stack:
        if args.torch_python:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            weights = pathlib.Path(directory) / "weights.npz"
            flat = traverse_util.flatten_dict(params, sep="/")
            np.savez(weights, **{k: np.asarray(v) for k, v in (flat | batch).items()})
            settings = {
                "family": args.family, **sizes, "learning_rate": LEARNING_RATE, "compile": False,
                "dtype": "float32",
            }  # fmt: skip
            for name, fused in (("PyTorch eager", False), ("PyTorch eager, fused", True)):
                peer = Torch(args.torch_python, weights, settings | {"fused_attention": fused})
                stack.callback(peer.close)
                rows[name] = {"loss": peer.ask("loss")["loss"]}
                runs[name] = peer
        for name, seconds in timing.alternate(runs, args.rounds).items():
            rows[name]["seconds"] = seconds
    return rows


def main(argv) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench peers", description=__doc__)
    parser.add_argument("--family", default="crate_alpha", choices=["crate", "crate_alpha"])
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-python", help="an interpreter that has torch")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise ConfigError(f"--rounds must be at least 1; got {args.rounds}.")
        rows = measure(args)
    except (ConfigError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    device = jax.devices()[0].device_kind
    title = f"{args.family} {args.variant}, {args.size} px, batch {args.batch}, {device}"
    losses = [row["loss"] for row in rows.values()]
    note = f"Losses of the same weights agree to {max(losses) - min(losses):.1e}."
    timing.show(rows, title, note)
    timing.write(args.json, rows)
    return 0
