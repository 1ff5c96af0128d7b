"""The theory of attention sinks: integrated flows beside their closed forms (arXiv 2410.13835).

    python -m crate_jax.main --config configs/extreme_tokens/theory.py --workdir runs/theory
    python -m crate_jax.main --config configs/extreme_tokens/theory.py:source=synthetic ...
    python -m crate_jax.main --config configs/extreme_tokens/theory.py:train_simple ...

Random dense laws of 8 tokens by default; another ``source`` is a bigram law of
``crate_jax.data.bigram`` (``tfds:tiny_shakespeare``, say), whose rare tokens ask for a later
horizon. ``train_simple`` also trains the simplified model on its task, by AdamW and by SGD.

Expected: every claim of the verdict table holds (25 of 25 by default).
Cost: about half a minute on two CPU cores, as much again with ``train_simple``; no download.
"""

from crate_jax import studies
from crate_jax.recipe import parse_study_arg


def get_config(arg=None):
    """Arguments: ``source``, ``train_simple``, ``smoke``."""
    arg = parse_study_arg(arg, source="dirichlet", train_simple=False)
    config = studies.default("theory")
    config.source, config.train_simple = arg.source, arg.train_simple
    if arg.source != "dirichlet":
        config.update(starts=2, length=256, horizon=1e12)
    if arg.smoke:
        config.update(laws=1, starts=2, points=41, optimizer_steps=20_000)
        config.simple.update(steps=100, batch=8, length=16, evaluation_batch=64)
    return config
