"""The Bigram-Backcopy transformer in eager PyTorch, in a process of its own; see ``bench.sweep``.

    /path/to/python crate_jax/bench/peers/pytorch_backcopy.py weights.npz '{"steps": 50, ...}'

It imports nothing of this package, so that its interpreter needs torch and numpy alone. For each
word on its standard input it answers with a line of JSON: ``loss`` gives the loss of the weights as
they are, ``step`` trains on for ``steps`` updates and gives their seconds. Weights come under our
names, with the sequences ``(S, B, N + 1)`` as ``tokens``, which are gone through in turn.
"""

import json
import sys
import time

import numpy as np


def make_model(weights, depth):
    """An ``nn.Module`` of pre-norm layers with one head, softmax, and no biases."""
    import torch
    from torch import nn

    def parameter(name):
        return nn.Parameter(torch.from_numpy(np.array(weights[name])))

    def linear(name):
        kernel = weights[f"{name}/kernel"]
        layer = nn.Linear(*kernel.shape, bias=False)
        layer.weight = nn.Parameter(torch.from_numpy(np.array(kernel.T)))
        return layer

    def norm(name):
        layer = nn.LayerNorm(weights[f"{name}/scale"].shape[0], eps=1e-5)
        layer.weight, layer.bias = parameter(f"{name}/scale"), parameter(f"{name}/bias")
        return layer

    class Block(nn.Module):
        def __init__(self, name, length):
            super().__init__()
            self.norm_attention = norm(f"{name}/norm_attention")
            for w in ("wq", "wk", "wv", "wo"):
                setattr(self, w, linear(f"{name}/attention/{w}"))
            self.norm_mlp = norm(f"{name}/norm_mlp")
            self.w1, self.w2 = linear(f"{name}/mlp/w1"), linear(f"{name}/mlp/w2")
            self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

        def forward(self, x):
            y = self.norm_attention(x)
            scores = self.wq(y) @ self.wk(y).transpose(-1, -2) * x.shape[-1] ** -0.5
            x = x + self.wo(torch.softmax(scores + self.mask, dim=-1) @ self.wv(y))
            return x + self.w2(torch.relu(self.w1(self.norm_mlp(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            embedding = parameter("token_embedding/embedding")
            self.embedding = nn.Embedding(*embedding.shape)
            self.embedding.weight = embedding
            self.positions = parameter("pos_embedding")
            length = self.positions.shape[0]
            self.blocks = nn.ModuleList(Block(f"blocks_{l}", length) for l in range(depth))
            self.norm, self.output = norm("norm"), linear("output")

        def forward(self, tokens):
            x = self.embedding(tokens) + self.positions
            for block in self.blocks:
                x = block(x)
            return self.output(self.norm(x))

    return Transformer()


def main(argv=None) -> int:
    """Answers the words of standard input; see the top of the file."""
    import torch
    from torch.nn import functional as F

    path, settings = (sys.argv[1:] if argv is None else argv)[:2]
    settings, weights = json.loads(settings), np.load(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(weights, settings["depth"]).to(device)
    batches = torch.from_numpy(weights["tokens"]).long().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.99),
        weight_decay=settings["weight_decay"],
    )  # fmt: skip

    def loss_of(tokens):
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    for word in map(str.strip, sys.stdin):
        if word == "loss":
            with torch.no_grad():
                answer = {"loss": loss_of(batches[0]).item(), "torch": torch.__version__}
        else:
            start = time.perf_counter()
            for i in range(settings["steps"]):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(batches[i % len(batches)])
                loss.backward()
                optimizer.step()
            answer = {"loss": loss.item()}  # waits for the device
            answer["step_s"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
