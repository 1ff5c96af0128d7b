"""Makes ``flatnet_fit.npz``: a patch fitted by the PyTorch peer in float64, on points of its own.

    /path/to/python tests/bench/golden/make_flatnet.py

The interpreter needs torch and numpy, and nothing of this package.
"""

import pathlib
import sys

import numpy as np
import torch

FILE = pathlib.Path(__file__).with_name("flatnet_fit.npz")
sys.path.insert(0, str(FILE.parents[3] / "crate_jax/bench/peers"))
import pytorch_flatnet  # noqa: E402


def main():
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, (60, 2))
    q = np.stack([c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2], 1)
    X = np.concatenate([c, 0.3 * q @ rng.normal(size=(3, 3))], 1)
    X = X @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 0.01 * rng.normal(size=X.shape)
    start, r = np.linalg.qr(rng.normal(size=(5, 2)))[0], 0.7
    found = {"X": X, "start": start, "r": r}
    for name, steps in (("first", 3), ("last", 1000)):
        U, V, loss, R, spread, mu, count = pytorch_flatnet.fit(
            torch.from_numpy(X), torch.from_numpy(X[0]), torch.from_numpy(start), r, max_steps=steps
        )
        found |= {
            f"{name}_U": U.numpy(), f"{name}_V": V.numpy(), f"{name}_loss": loss,
            f"{name}_error": R.square().sum(1).max().sqrt().item(),
            f"{name}_spread": spread.abs().mean(0).numpy(), f"{name}_mu": mu.numpy(),
            f"{name}_steps": count,
        }  # fmt: skip
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
