"""CTRL-MSP and CTRL-SSP: sequential games that find subspaces (arXiv 2206.09120).

An encoder and a decoder play on samples of several subspaces, or of one. The study plays by the
published rules, holds the end against what the theorems say of an equilibrium, sets baselines
beside it (PCA of each class, variational autoencoders, GANs) and ends in a verdict table,
``results.json``, figures and a page.
"""

from crate_jax.studies.games.settings import Settings, check
from crate_jax.studies.games.study import run

__all__ = ["Settings", "check", "run"]
