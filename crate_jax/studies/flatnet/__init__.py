"""Flattens a manifold by FlatNet, and asks how well (arXiv 2305.01777).

Builds a network on one of the data sets of ``data.manifolds``, or on several of rising dimension,
and ends in a table and figures: the dimension found beside nearest-neighbour estimates, the error
of the reconstruction from as many features as that, beside PCA and autoencoders, the spectrum of
the features, interpolations. A construction is saved as it goes and taken up again bit for bit.
"""

from crate_jax.studies.flatnet.settings import Settings, check
from crate_jax.studies.flatnet.study import run

__all__ = ["Settings", "check", "run"]
