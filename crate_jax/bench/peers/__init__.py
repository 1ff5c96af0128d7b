"""Our training step beside the same model as other code has it: a plain Flax port, and PyTorch.

    python -m crate_jax.bench peers --family crate_alpha --batch 8 --torch-python PATH/TO/python

All take the same weights and batch, with AdamW, in turn round after round. PyTorch runs in a
process of its own, by an interpreter that has it; without ``--torch-python`` it is left out.
Predicted of a plain port on a CPU: as ours, since the products are the same.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from crate_jax import config as configs
from crate_jax import models
from crate_jax.bench import timing
from crate_jax.bench.peers import plain
from crate_jax.config import ConfigError
from crate_jax.run import system_alone

LEARNING_RATE = 1e-5
OURS = {
    "ours": {},
    "ours, scan": {"scan_layers": True},
    "ours, remat attention": {"remat": "attention"},
}


class Stepping:
    """A compiled step of ours or of the plain port, and the state that it hands on."""

    def __init__(self, step, state, *args):
        self._step = jax.jit(step, donate_argnums=0)
        self._state, self._args = state, args

    def __call__(self):
        self._state, out = self._step(self._state, *self._args)
        return self._state, out


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


def make_system(args, overrides: dict):
    """Our task, on random images."""
    raw = configs.default()
    raw.model = models.settings(args.family, variant=args.variant, **overrides)
    raw.data.update(image_size=args.size, channels=3, num_classes=1000)
    raw.optimizer.update(name="adamw", learning_rate=LEARNING_RATE)
    raw.train.update(batch_size=args.batch, steps=100)
    return system_alone(configs.resolve(raw))


def make_batch(args) -> dict[str, jax.Array]:
    """Random images of as many classes."""
    shape = (args.batch, args.size, args.size, 3)
    return {
        "image": jax.random.normal(jax.random.key(1), shape),
        "label": jnp.arange(args.batch, dtype=jnp.int32),
    }


def measure(args) -> dict[str, dict[str, float]]:
    """Seconds a step, and the loss of the common weights, by peer."""
    system, batch = make_system(args, {}), make_batch(args)
    params = jax.jit(system.init)(jax.random.key(0), batch).params
    module = system.module
    sizes = {
        "width": module.width, "depth": module.depth, "heads": module.heads, "patch": module.patch,
    }  # fmt: skip
    port = plain.Plain(args.family, **sizes)
    loss, init, step = plain.make_step(port, LEARNING_RATE)
    logits = system.forward(params, batch)
    ours = plain.mean_loss(logits, batch["label"])
    rows = {name: {"loss": float(ours)} for name in OURS}
    rows["plain Flax port"] = {"loss": float(jax.jit(loss)(params, batch))}
    runs = {}
    for name, overrides in OURS.items():
        way = make_system(args, overrides)
        state = jax.jit(way.init)(jax.random.key(0), batch)
        runs[name] = Stepping(way.step, state, batch, jax.random.key(3))
    state = jax.jit(init)(jax.tree.map(jnp.copy, params))
    runs["plain Flax port"] = Stepping(step, state, batch)
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
