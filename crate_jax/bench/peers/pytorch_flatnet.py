"""FlatNet's construction in eager PyTorch, in a process of its own; see ``bench.flatnet``.

    /path/to/python crate_jax/bench/peers/pytorch_flatnet.py data.npz '{"iterations": 3, ...}'

The algorithm of arXiv 2305.01777 in the plain way of its code: every inner step solves the
least-squares problem by a library call, takes the gradient of U by autograd, and retracts by a
D x D system. It imports nothing of this package. For ``step`` on its standard input it carries out
the first iterations on ``X`` and answers with a line of JSON: their seconds, inner steps and
dimensions.
"""

import json
import math
import sys
import time

import numpy as np


def products(c):
    """``c_i c_j``, i <= j."""
    import torch

    i, j = torch.triu_indices(c.shape[1], c.shape[1])
    return c[:, i] * c[:, j]


def fit(Z, z_c, U, r, max_steps=1000, tolerance=1e-5):
    """The inner problem; U, V, loss, weighted residuals, coordinates and steps."""
    import torch

    gamma = math.log(2) / r**2
    k = torch.exp(-gamma * (Z - z_c).square().sum(1))
    mu = (k[:, None] * Z).sum(0) / k.sum()
    k = torch.exp(-gamma * (Z - mu).square().sum(1))
    selected = k > 1e-6
    C, k = Z[selected] - z_c, k[selected][:, None]
    D = Z.shape[1]
    eye = torch.eye(D)
    m, v = torch.zeros_like(U), torch.zeros(())
    for step in range(1, max_steps + 1):
        U = U.detach().requires_grad_(True)
        c = C @ U
        P = C - c @ U.T
        q = products(c)
        V = torch.linalg.lstsq((k * q).detach(), (k * P).detach(), rcond=1e-4).solution.T
        R = k * (P - q @ V.T)
        loss = 0.5 * R.square().mean()
        (E,) = torch.autograd.grad(loss, U)
        with torch.no_grad():
            g = E - U @ E.T @ U
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * (g.square().sum() - 0.5 * (U.T @ g).square().sum())
            direction = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            A = -direction @ U.T + U @ direction.T
            moved = torch.linalg.solve(
                eye - 0.5 * A, torch.cat([U, m], 1) + 0.5 * A @ torch.cat([U, m], 1)
            )
            new, m = moved.split(U.shape[1], 1)
            change = (new - U).square().mean().sqrt()
            U = new
        if change < tolerance:
            break
    return U.detach(), V, loss.item(), R.detach(), c.detach(), mu, step


class Construction:
    """The outer iterations, without the decoder's part."""

    def __init__(self, X, d_max, seed=0):
        import torch

        X = X - X.mean(0)
        self.Z = X / X.square().sum(1).sqrt().max()
        self.diameter = torch.cdist(self.Z, self.Z).max().item()
        self.generator = torch.Generator().manual_seed(seed)
        self.d, self.d_max, self.steps, self.dims = 1, d_max, 0, []

    def _fit(self, z_c, U, r):
        out = fit(self.Z, z_c, U, r)
        self.steps += out[-1]
        return out

    def _random(self, d):
        import torch

        return torch.linalg.qr(torch.randn(self.Z.shape[1], d, generator=self.generator))[0]

    def _find_dimension(self, z_c, r):
        import torch

        U, growing, kept = self._random(self.d), None, None
        for _ in range(self.Z.shape[1]):
            U, _, loss, R, c, _, _ = self._fit(z_c, U, r)
            d = U.shape[1]
            if R.square().sum(1).max().sqrt() <= 0.3 * r:
                if growing or d == 1:
                    return U, loss
                growing, kept = False, (U, loss)
                drop = c.abs().mean(0).argmin()
                U = U[:, [j for j in range(d) if j != drop]]
            else:
                if growing is False:
                    return kept
                if d >= self.d_max:
                    return U, loss
                growing = True
                U = torch.linalg.qr(torch.cat([U, self._random(1)], 1))[0]
        return U, loss

    def advance(self):
        """One iteration."""
        import torch

        N = self.Z.shape[0]
        z_c = self.Z[torch.randint(N, (), generator=self.generator)]
        r_d, low, high = (share * self.diameter for share in (0.15, 0.15, 1.1))
        U, loss_d = self._find_dimension(z_c, r_d)
        middle, goal = (low + high) / 2, math.log(1e-5)
        U, _, loss, *_ = self._fit(z_c, U, middle)
        rise = math.log(max(loss, 1e-20)) - math.log(max(loss_d, 1e-20))
        rise = math.copysign(max(abs(rise), 1e-6), rise)
        r = middle - (math.log(max(loss, 1e-20)) - goal) * (middle - r_d) / rise
        r = min(max(r, low), high)
        U, _, loss, _, _, mu, _ = self._fit(z_c, U, r)
        alpha = min(0.5, math.sqrt(1e-5 / max(loss, 1e-20)))
        c = self.Z - mu
        k = alpha * torch.exp(-math.log(2) / r**2 * c.square().sum(1, keepdim=True))
        Y = self.Z - k * (c - c @ U @ U.T)
        Y = Y - Y.mean(0)
        new = Y / Y.square().sum(1).sqrt().max()
        if (new - self.Z).square().mean().sqrt() >= 1e-4:
            self.Z, self.d = new, U.shape[1]
        self.dims.append(U.shape[1])


def main(argv=None) -> int:
    """Answers the words of standard input; see the top of the file."""
    import torch

    path, settings = (sys.argv[1:] if argv is None else argv)[:2]
    settings = json.loads(settings)
    X = torch.from_numpy(np.load(path)["X"])
    for _ in sys.stdin:
        construction = Construction(X, settings["d_max"])
        start = time.perf_counter()
        for _ in range(settings["iterations"]):
            construction.advance()
        answer = {
            "step_s": time.perf_counter() - start, "steps": construction.steps,
            "dims": construction.dims, "torch": torch.__version__,
        }  # fmt: skip
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
