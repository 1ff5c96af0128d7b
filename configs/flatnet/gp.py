"""FlatNet on Gaussian-process manifolds: dimension, reconstruction, distances (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/gp.py --workdir runs/gp
    python -m crate_jax.main --config configs/flatnet/gp.py:study=reconstruction --workdir runs/gp_r
    python -m crate_jax.main --config configs/flatnet/gp.py:dims=2-5-10,points=1000,n_iter=100 ...

Studies: ``dimension``, d = 5, 10, 15, 20, three trials each, beside maximum likelihood and TwoNN;
``reconstruction``, the same with autoencoders, codes of the width d; ``distances``, d = 4,
N = 3000, codes of the width D; ``big``, d = 10, N = 6000, FactorVAE for 1000 epochs. ``dims``
replaces their dimensions, as ``2-5-10``. Where neighbours are sparser than the radius of the
dimension search, from d = 10 on, the first layers may see too few dimensions: a larger
``--config.build.r_dimcheck=0.3`` helps; ``min_mass=2`` lets it grow with the number of products.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: figures only are published. Ours, for d = 2, 5, 10 with 400, 1500, 800 points and 25, 20,
12 iterations (the last with r_dimcheck=0.3): d = 2, 5, 10 found, mean square errors from d features
9e-6, 1.9e-4, 5.0e-4, where PCA has 1.2e-4, 5.5e-4, 1.6e-3.
Cost: those took 7, 12 and 23 s on two busy CPU cores; not run at full size. No download.
"""

from crate_jax import studies
from crate_jax.config import ConfigError
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg

STUDIES = {
    "dimension": {"trials": 3, "data": {"dims": (5, 10, 15, 20), "points": 2000, "test": 500}},
    "reconstruction": {
        "trials": 3,
        "data": {"dims": (5, 10, 15, 20), "points": 2000, "test": 500},
        "compare": {"autoencoders": ("vae", "beta_vae", "factor_vae", "fair_vae")},
    },
    "distances": {
        "data": {"dims": (4,), "points": 3000, "test": 500},
        "compare": {
            "autoencoders": ("vae", "beta_vae", "factor_vae", "fair_vae"), "code": 100,
            "distances": True,
        },
    },
    "big": {
        "data": {"dims": (10,), "points": 6000, "test": 1000},
        "compare": {"autoencoders": ("factor_vae", "fair_vae"), "epochs": 1000, "batch": 3000},
    },
}  # fmt: skip


def get_config(arg=None):
    """Arguments: ``study``, ``dims``, ``points``, ``trials`` and ``n_iter`` (0 is the
    study's), ``min_mass``, ``preset``, ``smoke``."""
    arg = parse_study_arg(
        arg, study="dimension", dims="", points=0, trials=0, n_iter=0, min_mass=0.0, preset="head"
    )
    config = studies.default("flatnet")
    config.data.update(name="gp", ambient=100)
    _update(config, choose("study", arg.study, STUDIES))
    if arg.dims:
        config.data.dims = _dims(arg.dims)
    if arg.points:
        config.data.points = arg.points
    if arg.trials:
        config.trials = arg.trials
    if arg.n_iter:
        config.build.n_iter = arg.n_iter
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.min_mass = arg.min_mass
    if arg.smoke:
        config.data.update(points=80, test=10, ambient=8, dims=(2,))
        config.build.update(n_iter=3, n_iter_inner=40)
        config.compare.update(epochs=1)
        config.trials = 1
    return config


def _update(config, changes):
    for name, value in changes.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value


def _dims(text):
    try:
        return tuple(int(d) for d in text.split("-"))
    except ValueError:
        raise ConfigError(f"config argument dims={text!r}: write numbers, as 2-5-10.") from None
