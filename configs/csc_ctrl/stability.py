"""How steadily sparse-coding and plain encoders train, over batch, rate, width and features.

    python -m crate_jax.main --config configs/csc_ctrl/stability.py --workdir runs/stability
    python -m crate_jax.main --config configs/csc_ctrl/stability.py:data=mnist ...
    python -m crate_jax.main --config configs/csc_ctrl/stability.py:data=cifar10 ...

CSC-CTRL (arXiv 2302.09347) claims a more stable training than CTRL's. A base run and eight others,
each with one setting changed, for both encoders; scikit-learn's digits by default.

Expected: no reference; the count of collapsed runs and the spread of PSNR.
Cost: not run at this size; a run of 300 steps on digits is under a minute on two CPU cores.
"""

from crate_jax import studies
from crate_jax.recipe import choose, parse_study_arg

RELEASED = {"consistency": 0.0, "normalise_by": "own", "rate": 1.5e-4, "rates": (5e-5, 1e-3)}
"""The game and its rate as CTRL has them, for runs long enough for it."""

DATA = {
    "digits": {},
    "mnist": {**RELEASED, "source": "tfds:mnist", "steps": 2000, "width": 64, "widths": (16, 128),
              "features": 128, "feature_counts": (64, 256), "batch": 512, "batches": (64, 2048)},
    "cifar10": {**RELEASED, "source": "tfds:cifar10", "steps": 10_000, "width": 64,
                "widths": (16, 128), "features": 128, "feature_counts": (64, 256), "batch": 512,
                "batches": (64, 1600)},
}  # fmt: skip


def get_config(arg=None):
    """Arguments: ``data`` (digits, mnist, cifar10), ``smoke``."""
    arg = parse_study_arg(arg, data="digits")
    config = studies.default("stability")
    config.update(choose("data", arg.data, DATA))
    if arg.smoke:
        config.update(
            source="digits", steps=2, points=1, width=8, features=8, batch=32, batches=(), rates=(),
            widths=(), feature_counts=(16,), encoders="csc",
        )  # fmt: skip
    return config
