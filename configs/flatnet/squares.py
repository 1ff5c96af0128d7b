"""FlatNet on every shift of a square in a black image (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/squares.py --workdir runs/squares
    python -m crate_jax.main --config configs/flatnet/squares.py:square=20_10 --workdir runs/squares
    python -m crate_jax.main --config configs/flatnet/squares.py:n_iter=500,r_dimcheck=0.2 ...

``square`` is ``10_5`` (a square of 5 in an image of 10: 25 images), ``20_10`` or ``25_15`` (100
each). Images are seen by their Fourier transform. The released notebooks have 1000 iterations, or
500 with ``r_dimcheck=0.2``.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: those notebooks end with d = 2 after 5:06 minutes, or 3 after 6:05.
Cost: not run at full size. No download.
"""

from crate_jax import studies
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg


def get_config(arg=None):
    """Arguments: ``square``, ``preset``, ``n_iter``, ``r_dimcheck``, ``smoke``."""
    arg = parse_study_arg(arg, square="10_5", preset="head", n_iter=1000, r_dimcheck=0.15)
    config = studies.default("flatnet")
    config.data.name = f"squares_{arg.square}"
    config.compare.dimension = False  # neighbours on a grid tell nothing
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.update(n_iter=arg.n_iter, r_dimcheck=arg.r_dimcheck)
    if arg.smoke:
        config.build.update(n_iter=4, n_iter_inner=40)
    return config
