"""Does Adam or softmax cause attention sinks, value drains and residual peaks?

    python -m crate_jax.main --config configs/extreme_tokens/ablation.py --workdir runs/ablation
    python -m crate_jax.main --config configs/extreme_tokens/ablation.py:preset=optimizers ...
    JAX_NUM_CPU_DEVICES=2 python -m crate_jax.main ... lays the runs out on two CPU devices

Presets: ``table``, the default, the six rows of the paper's answer (arXiv 2410.13835) at a size for
a desktop; ``paper``, the same at the paper's size, on tiny Shakespeare; ``optimizers``,
``attention``, ``norms``, ``blocks``, ``tasks`` and ``adam`` vary what they are called after;
``grid`` crosses depth, attention and optimizer. Where optimizers are compared each is tried at five
learning rates, and the one with the least loss speaks for it. Started again on the same workdir it
goes on where it stopped.

Expected: sinks in every softmax row and in no ReLU row (ours: docs/results.md).
Cost: ``seeds=5,steps=4000`` took half an hour on one CPU core; by the count of updates the default
is three times that and ``optimizers`` twenty times. ``paper`` and ``grid`` want accelerators; their
full size was not run.
"""

from crate_jax import studies
from crate_jax.recipe import choose, parse_study_arg

TABLE = (
    "layers=1", "layers=2", "layers=3", "layers=3,optimizer=sgdm", "layers=3,attention=relu",
    "layers=1,attention=relu",
)  # fmt: skip
"""Rows of the paper's table: which combination has sinks, drains and peaks."""

OPTIMIZERS = ("adamw", "sgd", "sgdm", "rmsprop", "adagrad", "lion", "lamb", "muon")
KINDS = ("softmax", "relu", "sigmoid", "softmax_plus_one")
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Times the optimizer's learning rate: the paper has no rates for most, and ours are guesses."""

DESKTOP = {
    "model": {"width": 64},
    "data": {"length": 64, "batch": 16},
    "train": {"steps": 10_000, "every": 100, "every_after": 500, "evaluation_batch": 128},
}
PAPER = {
    "data": {"law": "tfds:tiny_shakespeare"},
    "train": {"steps": 100_000, "official_evaluation": True},
}
TASKS = tuple(
    f"task={task},triggers={k}"
    for task in ("backcopy", "interpolate", "dormant_markov", "bietti")
    for k in (1, 3, 5)
)

PRESETS = {
    "table": {"cells": TABLE, **DESKTOP},
    "paper": {"cells": TABLE, **PAPER},
    "optimizers": {
        "grid": {"layers": ("3",), "optimizer": OPTIMIZERS},
        "sweep": {"learning_rate_factors": RATES}, **DESKTOP,
    },
    "attention": {"grid": {"layers": ("1", "3"), "attention": KINDS}, **DESKTOP},
    "norms": {"grid": {"layers": ("3",), "norm": ("pre", "post", "none", "rms")}, **DESKTOP},
    "blocks": {
        "grid": {"layers": ("2", "3", "TF+TF+MLP", "MLP+TF+MLP", "Attn+TF+MLP")}, **DESKTOP,
    },
    "tasks": {"cells": (*TASKS, "task=markov,triggers=0"), **DESKTOP},
    "adam": {
        "grid": {
            "layers": ("3",),
            "optimizer": ("adamw", "adamw:b2=0.999", "adamw:b2=0.9", "adamw:eps=1e-4"),
        },
        **DESKTOP,
    },
    "grid": {
        "grid": {"layers": ("1", "2", "3"), "attention": KINDS, "optimizer": OPTIMIZERS},
        "sweep": {"learning_rate_factors": RATES}, **DESKTOP,
    },
}  # fmt: skip

SMOKE = {
    "cells": ("layers=2",),
    "sweep": {"seeds": 2, "learning_rate_factors": (1.0,), "weight_decays": (1e-4,)},
    "model": {"width": 16},
    "data": {"law": "synthetic", "length": 16, "batch": 8},
    "train": {"steps": 60, "every": 20, "evaluation_batch": 16},
}


def get_config(arg=None):
    """Arguments: ``preset`` (a key of ``PRESETS``), ``seeds``, ``steps`` and ``law`` instead of the
    preset's, ``smoke``."""
    arg = parse_study_arg(arg, preset="table", seeds=6, steps=0, law="")
    config = studies.default("ablation")
    config.sweep.seeds = arg.seeds
    config.update(choose("preset", arg.preset, PRESETS))
    if arg.steps:
        config.train.steps = arg.steps
    if arg.law:
        config.data.law = arg.law
    if arg.smoke:
        config.update(SMOKE)
    return config
