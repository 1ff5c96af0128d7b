"""FlatNet on one MNIST digit, shifted and turned (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/mnist_moves.py --workdir runs/moves

A "5" in 32 x 32 pixels at 20 heights and 30 angles, seen by 100 principal coordinates of its
Fourier transform, over their root mean square. The notebook's code had no renormalisation:
``preset`` is ``v021``.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: the released notebook finds d = 1 at 65 iterations of 16.6 s.
Cost: not run at full size. MNIST is read from TFDS.
"""

from crate_jax import studies
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg


def get_config(arg=None):
    """Arguments: ``points``, ``preset``, ``n_iter``, ``smoke``."""
    arg = parse_study_arg(arg, points=600, preset="v021", n_iter=100)
    config = studies.default("flatnet")
    config.data.update(name="mnist_moves", digit=5, points=arg.points)
    config.data.test = 200 if arg.points < 600 else 0  # there are 600 places in all
    config.compare.dimension = False  # neighbours on a grid tell nothing
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.update(
        n_iter=arg.n_iter, n_iter_inner=3000, normalise="rms", thres_recon=1e-4, alpha_max=0.4,
        n_iter_rsearch=2,
    )  # fmt: skip
    if arg.smoke:
        config.data.update(source="digits", points=38, test=10, components=10)
        config.build.update(n_iter=2, n_iter_inner=40)
    return config
