"""FlatNet on the Swiss roll, lifted onto a paraboloid (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/swiss_roll.py --workdir runs/swiss_roll
    python -m crate_jax.main --config configs/flatnet/swiss_roll.py:points=1000,n_iter=60 ...

The roll itself cannot be flattened by compression alone: its sheets lie on one another. With the
fourth coordinate 0.2 (x1^2 + x3^2) it can. The released notebook's settings, whose data have unit
root mean square and whose code had no renormalisation: ``preset`` is ``v021``.
The second step for the radius stays across the threshold (``bracket``), where the code's often ends
at the least radius.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: d = 2. The notebook's features have singular values 41.6, 26.2, 0.011, 0.0003, after
14:43 minutes on a GPU.
With points=600,n_iter=100 ours are 12.5, 9.5, 0.003, 0.002, for a fifth of the points.
Cost: that run took 16 s on one busy CPU core; not run at full size. No download.
"""

from crate_jax import studies
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg


def get_config(arg=None):
    """Arguments: ``points``, ``n_iter``, ``preset``, ``smoke``."""
    arg = parse_study_arg(arg, points=3000, n_iter=150, preset="v021")
    config = studies.default("flatnet")
    config.data.update(name="swiss_roll", points=arg.points, test=500)
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.update(
        n_iter=arg.n_iter, normalise="rms", thres_recon=4e-5, alpha_max=0.3, r_dimcheck=0.09,
        r_min=0.09, n_iter_rsearch=2, bracket=True,
    )  # fmt: skip
    if arg.smoke:
        config.data.update(points=120, test=20)
        config.build.update(n_iter=4, n_iter_inner=40)
    return config
