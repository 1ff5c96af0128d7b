"""The residual networks of MCR^2 in PyTorch, and what they compute: ``resnet.npz``.

    python -m tests.models.golden.make_resnet

Written with torch's own layers after the released networks, narrower. Weights and images are drawn
by numpy, so that the file holds outputs only; float64.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("resnet.npz")
SIDE, BATCH, FEATURES, WIDTH, EPS_SQ = 32, 6, 5, 4, 0.5
LABELS = np.array([0, 1, 0, 2, 1, 0])
NETWORKS = {
    "18": {"depths": (2, 2, 2, 2), "channels": 3, "head": True},
    "18ctrl": {"depths": (2, 2, 2, 2), "channels": 3, "head": False},
    "10mnist": {"depths": (1, 1, 1, 1), "channels": 1, "head": False},
}


def images(channels):
    """Images ``(B, C, H, W)``."""
    return np.random.default_rng(1).normal(size=(BATCH, channels, SIDE, SIDE))


def shapes(depths, channels, head):
    """Names and torch shapes of all parameters and running statistics."""
    out, last = {}, 8 * WIDTH if head else FEATURES

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            out[f"{name}.{part}"] = (width,)

    out["stem.weight"] = (WIDTH, channels, 3, 3)
    norm("norm_stem", WIDTH)
    before = WIDTH
    for s, (depth, width) in enumerate(
        zip(depths, (WIDTH, 2 * WIDTH, 4 * WIDTH, last), strict=True), 1
    ):
        for b in range(depth):
            block = f"stage{s}_{b}"
            out[f"{block}.conv1.weight"] = (width, before, 3, 3)
            norm(f"{block}.norm1", width)
            out[f"{block}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{block}.norm2", width)
            if (s > 1 and b == 0) or before != width:
                out[f"{block}.shortcut.weight"] = (width, before, 1, 1)
                norm(f"{block}.norm_shortcut", width)
            before = width
    if head:
        out["hidden.weight"] = (last, last)
        norm("norm_hidden", last)
        out |= {"features.weight": (FEATURES, last), "features.bias": (FEATURES,)}
    return out


def weights(depths, channels, head):
    """Random values of all of these."""
    rng, out = np.random.default_rng(0), {}
    for name, shape in shapes(depths, channels, head).items():
        value = rng.normal(size=shape)
        if name.endswith("running_var"):
            value = 1.0 + value**2
        elif len(shape) > 1:
            value *= 1.5 / np.sqrt(np.prod(shape[1:]))
        elif "norm" in name and name.endswith("weight"):
            value = 1.0 + 0.3 * value
        out[name] = value
    return out


def main():
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_default_dtype(torch.float64)

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.changes = stride != 1 or before != width
            if self.changes:
                self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
                self.norm_shortcut = nn.BatchNorm2d(width)

        def forward(self, x):
            y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
            return F.relu(y + (self.norm_shortcut(self.shortcut(x)) if self.changes else x))

    class Net(nn.Module):
        def __init__(self, depths, channels, head):
            super().__init__()
            self.stem = nn.Conv2d(channels, WIDTH, 3, 1, 1, bias=False)
            self.norm_stem = nn.BatchNorm2d(WIDTH)
            self.blocks, before = [], WIDTH
            last = 8 * WIDTH if head else FEATURES
            for s, (depth, width) in enumerate(
                zip(depths, (WIDTH, 2 * WIDTH, 4 * WIDTH, last), strict=True), 1
            ):
                for b in range(depth):
                    self.blocks.append(f"stage{s}_{b}")
                    block = Block(before, width, 2 if s > 1 and b == 0 else 1)
                    setattr(self, self.blocks[-1], block)
                    before = width
            self.head = head
            if head:
                self.hidden = nn.Linear(last, last, bias=False)
                self.norm_hidden = nn.BatchNorm1d(last)
                self.features = nn.Linear(last, FEATURES)

        def forward(self, x):
            x = F.relu(self.norm_stem(self.stem(x)))
            for name in self.blocks:
                x = getattr(self, name)(x)
            z = F.avg_pool2d(x, 4).flatten(1)
            if self.head:
                z = self.features(F.relu(self.norm_hidden(self.hidden(z))))
            return F.normalize(z)

    def rate(Z, n):
        return 0.5 * torch.logdet(torch.eye(FEATURES) + FEATURES / (n * EPS_SQ) * Z.T @ Z)

    found = {}
    for name, settings in NETWORKS.items():
        net = Net(**settings)
        values = {k: torch.tensor(v) for k, v in weights(**settings).items()}
        missing = net.load_state_dict(values, strict=False)
        assert not missing.unexpected_keys
        assert all(k.endswith("num_batches_tracked") for k in missing.missing_keys)
        x = torch.tensor(images(settings["channels"]))
        with torch.no_grad():
            found[f"{name}/eval"] = net.eval()(x).numpy()
        Z = net.train()(x)
        parts = [Z[torch.tensor(LABELS == k)] for k in range(3)]
        loss = sum(len(P) / BATCH * rate(P, len(P)) for P in parts) - rate(Z, BATCH)
        loss.backward()
        state = net.state_dict()
        found |= {
            f"{name}/train": Z.detach().numpy(),
            f"{name}/loss": loss.detach().numpy(),
            f"{name}/stem_gradient": net.stem.weight.grad.numpy(),
            f"{name}/mean": state["stage4_0.norm1.running_mean"].numpy(),
            f"{name}/var": state["stage4_0.norm1.running_var"].numpy(),
        }
    np.savez(FILE, **found)


if __name__ == "__main__":
    main()
