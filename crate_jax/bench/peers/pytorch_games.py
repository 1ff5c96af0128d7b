"""The game CTRL-MSP in eager PyTorch, in a process of its own; see ``bench.games``.

    /path/to/python crate_jax/bench/peers/pytorch_games.py start.npz '{"rates": "svd", ...}'

It imports nothing of this package, so that its interpreter needs torch and numpy alone. For each
word on its standard input it answers with a line of JSON: ``loss`` gives the leader's utility at
the start on the first batch, ``step`` makes some steps of the leader and of the follower and gives
the mean seconds of one of each. The start has ``F (d_z, d_x)``, ``G (d_x, d_z)`` and the batches
``X (T, B, d_x)``, ``y (T, B)``.

``rates`` is ``svd``, log-determinants from singular values and everything recomputed, with a
gradient for both players, in each step, as published; or ``cholesky``: the smaller Gram matrix,
features of the leader computed once and no gradient for it.
"""

import json
import sys
import time

import numpy as np


def make_rates(torch, eps_sq, kind):
    """``R``, ``Delta R`` and the summed distance of features, as functions of rows."""

    def rate(Z):
        n, d = Z.shape
        scale = d / (n * eps_sq)
        if kind == "svd":
            values = torch.linalg.svdvals(torch.eye(d) + scale * Z.T @ Z)
            return 0.5 * torch.log(values.clamp(min=1e-8)).sum()
        gram = Z @ Z.T if n < d else Z.T @ Z
        factor = torch.linalg.cholesky(torch.eye(len(gram)) + scale * gram)
        return torch.log(torch.diagonal(factor)).sum()

    def quality(Z, y, K):
        parts = [(y == j).float().mean() * rate(Z[y == j]) for j in range(K) if (y == j).any()]
        return rate(Z) - sum(parts)

    def distance(Z, Zhat, y, K):
        total = 0.0
        for j in range(K):
            A, B = Z[y == j], Zhat[y == j]
            if len(A):
                total = total + rate(torch.cat([A, B])) - 0.5 * rate(A) - 0.5 * rate(B)
        return total

    return quality, distance


def main(argv=None) -> int:
    """Answers the words of standard input; see the top of the file."""
    import torch

    torch.set_num_threads(1)  # matrices this small are slower on more
    path, settings = (sys.argv[1:] if argv is None else argv)[:2]
    settings, start = json.loads(settings), np.load(path)
    F, G = (torch.nn.Parameter(torch.from_numpy(np.array(start[name]))) for name in ("F", "G"))
    X, y = torch.from_numpy(start["X"]), torch.from_numpy(start["y"]).long()
    K, published = int(y.max()) + 1, settings["rates"] == "svd"
    quality, distance = make_rates(torch, settings["eps_sq"], settings["rates"])
    leader = torch.optim.Adam([F], lr=settings["leader_rate"])
    follower = torch.optim.Adam([G], lr=settings["follower_rate"])

    def leader_loss(F, G, X, y):
        Z = X @ F.T
        return -quality(Z, y, K) - distance(Z, Z @ G.T @ F.T, y, K)

    def follow(X, y, steps):
        held = F if published else F.detach()
        Z = X @ held.T
        for _ in range(steps):
            if published:
                Z = X @ F.T
            loss = distance(Z, Z @ G.T @ held.T, y, K)
            follower.zero_grad()
            loss.backward()
            follower.step()

    for word in map(str.strip, sys.stdin):
        if word == "loss":
            # In float32 the rank-deficient matrices of a random start leave 1 % of it to rounding.
            with torch.no_grad():
                loss = leader_loss(F.double(), G.double(), X[0].double(), y[0])
            answer = {"loss": loss.item(), "torch": torch.__version__}
        else:
            begin = time.perf_counter()
            for t in range(settings["leader_steps"]):
                loss = leader_loss(F, G, X[t % len(X)], y[t % len(X)])
                leader.zero_grad()
                loss.backward()
                leader.step()
            middle = time.perf_counter()
            follow(X[0], y[0], settings["follower_steps"])
            end = time.perf_counter()
            answer = {
                "leader_s": (middle - begin) / settings["leader_steps"],
                "follower_s": (end - middle) / settings["follower_steps"],
            }
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
