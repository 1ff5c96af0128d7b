"""FlatNet on an arc of three quarters of a circle (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/semicircle.py --workdir runs/semicircle

50 points in the plane.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: d = 1, features on a line, mean square error from one feature 0.035, where PCA has 0.15.
Cost: about 5 s on one busy CPU core, compilation included; no download.
"""

from crate_jax import studies
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg


def get_config(arg=None):
    """Arguments: ``preset``, ``n_iter``, ``thres_recon`` (0 is the preset's), ``smoke``."""
    arg = parse_study_arg(arg, preset="head", n_iter=500, thres_recon=0.0)
    config = studies.default("flatnet")
    config.data.update(name="semicircle", test=200)
    config.compare.dimension = False  # neighbours on a grid tell nothing
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.n_iter = arg.n_iter
    if arg.thres_recon:
        config.build.thres_recon = arg.thres_recon
    if arg.smoke:
        config.build.update(n_iter=12, n_iter_inner=60)
    return config
