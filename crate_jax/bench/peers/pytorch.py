"""CRATE and CRATE-alpha in PyTorch, in a process of their own: the peer that another Python runs.

    /path/to/python crate_jax/bench/peers/pytorch.py weights.npz '{"family": "crate", ...}'

It imports nothing of this package, so that its interpreter needs torch and numpy alone. For each
word on its standard input it answers with a line of JSON: ``rates`` gives FLOP/s of a product and
bytes a second of a pass over memory, ``loss`` the loss of the weights as they are, ``step`` takes a
training step and gives its seconds. Weights come under our names, with the batch as ``image`` and
``label``.
"""

import json
import sys
import time

import numpy as np

ETA = LMBDA = 0.1


def make_model(weights, settings):
    """An ``nn.Module`` of the released classifier with these weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    family, heads, patch = settings["family"], settings["heads"], settings["patch"]
    alpha = family == "crate_alpha"
    eps = 1e-6 if alpha else 1e-5

    def tensor(name):
        return torch.from_numpy(np.array(weights[name]))

    def linear(kernel, bias=None):
        """A kernel ``(in, ..., out)`` as a Linear."""
        layer = nn.Linear(*kernel.shape, bias=bias is not None)
        layer.weight = nn.Parameter(kernel.T.contiguous())
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        return layer

    def norm(name):
        scale, bias = tensor(f"{name}/scale"), tensor(f"{name}/bias")
        layer = nn.LayerNorm(scale.shape[0], eps=eps)
        layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
        return layer

    class Attention(nn.Module):
        def __init__(self, name):
            super().__init__()
            kernel = tensor(f"{name}/subspaces/kernel")
            out = tensor(f"{name}/out/kernel")
            bias = None if alpha else tensor(f"{name}/out/bias")
            self.qkv = linear(kernel.reshape(kernel.shape[0], -1))
            self.out = linear(out.reshape(-1, out.shape[-1]), bias)

        def forward(self, x):
            B, N, D = x.shape
            w = self.qkv(x).reshape(B, N, heads, D // heads).transpose(1, 2)
            if settings["fused_attention"]:
                out = F.scaled_dot_product_attention(w, w, w)
            else:
                weights = torch.softmax(w @ w.transpose(-1, -2) * (D // heads) ** -0.5, dim=-1)
                out = weights @ w
            return self.out(out.transpose(1, 2).reshape(B, N, D))

    class ISTA(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.D = nn.Parameter(tensor(f"{name}/D"))
            if alpha:
                self.D1 = nn.Parameter(tensor(f"{name}/D1"))

        def forward(self, y):
            if not alpha:
                approximation = F.linear(y, self.D)
                gradient = F.linear(y, self.D.t()) - F.linear(approximation, self.D.t())
                return F.relu(y + ETA * gradient - ETA * LMBDA)
            z1 = F.relu(ETA * (y @ self.D) - ETA * LMBDA)
            residual = z1 @ self.D.t() - y
            z2 = F.relu(z1 - ETA * (residual @ self.D) - ETA * LMBDA)
            return z2 @ self.D1.t()

    class Block(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.norm_attention = norm(f"{name}/norm_attention")
            self.attention = Attention(f"{name}/attention")
            self.norm_ista = norm(f"{name}/norm_ista")
            self.ista = ISTA(f"{name}/ista")

        def forward(self, x):
            x = x + self.attention(self.norm_attention(x))
            y = self.ista(self.norm_ista(x))
            return x + y if alpha else y

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            kernel, bias = tensor("patches/embed/kernel"), tensor("patches/embed/bias")
            if alpha:
                self.embed = nn.Conv2d(3, bias.shape[0], patch, stride=patch)
                self.embed.weight = nn.Parameter(kernel.permute(3, 2, 0, 1).contiguous())
                self.embed.bias = nn.Parameter(bias)
            else:
                self.norm_pixels = norm("patches/norm_pixels")
                self.embed = linear(kernel, bias)
                self.norm_tokens = norm("patches/norm_tokens")
            self.cls_token = nn.Parameter(tensor("embedding/cls_token"))
            self.positions = nn.Parameter(tensor("embedding/pos_embedding"))
            self.blocks = nn.ModuleList(Block(f"blocks_{l}") for l in range(settings["depth"]))
            self.norm = norm("norm")
            self.head = linear(tensor("head/kernel"), tensor("head/bias"))

        def forward(self, image):
            if alpha:
                x = self.embed(image).flatten(2).transpose(1, 2)
            else:
                B, C, H, W = image.shape
                x = image.reshape(B, C, H // patch, patch, W // patch, patch)
                x = x.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)
                x = self.norm_tokens(self.embed(self.norm_pixels(x)))
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    return Classifier()


def measure_rates(device: str) -> dict[str, float]:
    """FLOP/s of a square float32 product, and bytes a second of a pass in place, at best."""
    import torch

    def seconds(work):
        times = []
        for _ in range(10):  # the first warms up
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    x = torch.ones((1024, 1024), device=device)
    y = torch.ones(2**25, device=device)
    return {
        "flops": 2 * 1024**3 / seconds(lambda: x @ x),
        "memory": 8 * 2**25 / seconds(lambda: y.mul_(0.5)),
    }


def main(argv=None) -> int:
    """Answers the words of standard input; see the top of the file."""
    import torch
    from torch.nn import functional as F

    path, settings = (sys.argv[1:] if argv is None else argv)[:2]
    settings, weights = json.loads(settings), np.load(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(weights, settings).to(device)
    image = torch.from_numpy(weights["image"]).permute(0, 3, 1, 2).contiguous().to(device)
    label = torch.from_numpy(weights["label"]).long().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"])
    forward = torch.compile(model) if settings["compile"] else model
    half = settings["dtype"] == "bfloat16"

    def loss_of_batch():
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = forward(image)
        return F.cross_entropy(logits.float(), label)

    for word in map(str.strip, sys.stdin):
        if word == "rates":
            answer = measure_rates(device)
        elif word == "loss":
            with torch.no_grad():
                answer = {"loss": loss_of_batch().item(), "torch": torch.__version__}
        else:
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of_batch()
            loss.backward()
            optimizer.step()
            answer = {"loss": loss.item()}
            if device == "cuda":
                torch.cuda.synchronize()
            answer["step_s"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
