"""Our training step beside the same model as other code has it: a plain Flax port, and PyTorch.

    python -m crate_jax.bench peers --family crate_alpha --batch 8 --torch-python PATH/TO/python

All take the same weights and batch, with AdamW, in turn round after round. PyTorch runs in a
process of its own, by an interpreter that has it; without ``--torch-python`` it is left out. Each
way holds its state: where memory is short, name fewer with ``--ways``.

Predicted are the products and the state's way through memory (``bench.step.predict``), each at the
rate that the peer's own library was measured to have. CRATE's port has five products of d x d a
token and layer where ours has four; CRATE-alpha's has as many as ours.
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
TORCH = {
    "PyTorch eager": {"fused_attention": False, "compile": False},
    "PyTorch eager, fused": {"fused_attention": True, "compile": False},
    "PyTorch compiled": {"fused_attention": True, "compile": True},
}
"""``fused`` is its scaled_dot_product_attention."""
PORT = "plain Flax port"
WAYS = (*OURS, PORT, *TORCH)


class Torch:
    """The peer in a process of its own."""

    SCRIPT = "pytorch.py"
    """Beside this file: what its interpreter runs."""

    def __init__(self, python: str, weights: pathlib.Path, settings: dict):
        script = pathlib.Path(__file__).with_name(self.SCRIPT)
        try:
            self._process = subprocess.Popen(
                [python, str(script), str(weights), json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"--torch-python={python} cannot be run: {error.strerror}."
            ) from error

    def ask(self, word: str) -> dict:
        """Its answer to ``rates``, ``loss`` or ``step``."""
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:  # it has ended
            line = ""
        if not line:
            raise ConfigError("PyTorch did not answer; does --torch-python have torch and numpy?")
        return json.loads(line)

    def __call__(self) -> float:
        return self.ask("step")["step_s"]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def make_config(args, overrides: dict) -> Config:
    """The bench's, with the peers' optimizer."""
    config = step.make_config(args.family, args.variant, args.size, args.batch, overrides)
    optimizer = dataclasses.replace(config.optimizer, name="adamw", learning_rate=LEARNING_RATE)
    return dataclasses.replace(config, optimizer=optimizer)


def measure(args) -> dict[str, timing.Row]:
    """Seconds a step, predicted and measured, and the loss of the common weights, by peer."""
    timing.check_rounds(args.rounds)
    if not args.torch_python and not set(args.ways) - set(TORCH):
        raise ConfigError("--ways names PyTorch alone, which needs --torch-python.")
    config, key = make_config(args, {}), jax.random.key(3)
    system, batch = system_alone(config), step.make_batch(config)
    params = jax.jit(system.init)(jax.random.key(0), batch).params
    module = system.module
    sizes = {
        "width": module.width, "depth": module.depth, "heads": module.heads, "patch": module.patch,
    }  # fmt: skip
    loss, init, port_step = plain.make_step(plain.Plain(args.family, **sizes), LEARNING_RATE)
    shapes = jax.eval_shape(init, params)
    ours = float(plain.mean_loss(jax.jit(system.forward)(params, batch), batch["label"]))
    rates, rows, runs = step.measure_rates(), {}, {}
    for name in (way for way in args.ways if way in OURS):
        way = system_alone(make_config(args, OURS[name]))
        state = jax.jit(way.init)(jax.random.key(0), batch)
        predicted = step.predict(way.step, state, batch, key, rates=rates)
        rows[name] = {"loss": ours, "predicted": predicted}
        runs[name] = timing.Stepping(jax.jit(way.step, donate_argnums=0), state, batch, key)
    if PORT in args.ways:
        predicted = step.predict(port_step, shapes, batch, rates=rates)
        rows[PORT] = {"loss": float(jax.jit(loss)(params, batch)), "predicted": predicted}
        state = jax.jit(init)(jax.tree.map(jnp.copy, params))
        runs[PORT] = timing.Stepping(jax.jit(port_step, donate_argnums=0), state, batch)
    with contextlib.ExitStack() as stack:
        if args.torch_python:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            weights = pathlib.Path(directory) / "weights.npz"
            flat = traverse_util.flatten_dict(params, sep="/")
            np.savez(weights, **{k: np.asarray(v) for k, v in (flat | batch).items()})
            settings = {
                "family": args.family, **sizes, "learning_rate": LEARNING_RATE, "dtype": "float32",
            }  # fmt: skip
            its = None
            for name in (way for way in args.ways if way in TORCH):
                peer = Torch(args.torch_python, weights, settings | TORCH[name])
                stack.callback(peer.close)
                its = its or step.Rates(**peer.ask("rates"))
                predicted = step.predict(port_step, shapes, batch, rates=its)
                rows[name] = {"loss": peer.ask("loss")["loss"], "predicted": predicted}
                runs[name] = peer
        timing.race(rows, runs, args.rounds)
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
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if "compiled" not in way]
    )
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    device = jax.devices()[0].device_kind
    title = f"{args.family} {args.variant}, {args.size} px, batch {args.batch}, {device}"
    losses = [row["loss"] for row in rows.values()]
    note = f"Losses of the same weights agree to {max(losses) - min(losses):.1e}."
    timing.show(rows, title, note)
    timing.write(args.json, rows)
    return 0
