"""FlatNet on the images of one MNIST digit (arXiv 2305.01777).

    python -m crate_jax.main --config configs/flatnet/mnist.py --workdir runs/mnist
    python -m crate_jax.main --config configs/flatnet/mnist.py:digit=5,points=1000,n_iter=60 ...

Images are seen by 100 principal coordinates of their Fourier transform. ``points=0`` takes all of
the class but 500, which are for testing.

Presets are versions of the released code: ``head``, its last commit, ``v021``, PyPI's, ``arxiv``.

Expected: the released notebook finds d = 12 for N = 5421 images of "5", in 27:14 minutes on a GPU.
With points=334,n_iter=10 ours finds d = 5 (334 images are few) and rebuilds from it with a mean
square error of 190 where PCA has 216; with n_iter=45 a late layer of d = 1 spoils it, 247.
Cost: those took 25 and 17 s on two busy CPU cores; not run at full size. MNIST
is read from TFDS.
"""

from crate_jax import studies
from crate_jax.models.flatnet_settings import PRESETS
from crate_jax.recipe import choose, parse_study_arg


def get_config(arg=None):
    """Arguments: ``digit``, ``points``, ``preset``, ``n_iter``, ``smoke``."""
    arg = parse_study_arg(arg, digit=2, points=0, preset="head", n_iter=220)
    config = studies.default("flatnet")
    config.data.update(name="mnist", digit=arg.digit, points=arg.points, test=500)
    config.build.update(choose("preset", arg.preset, PRESETS))
    config.build.update(n_iter=arg.n_iter, r_dimcheck=0.2, r_min=0.25, thres_recon=1e-4)
    if arg.smoke:
        config.data.update(source="digits", points=60, test=10, components=10)
        config.build.update(n_iter=2, n_iter_inner=40)
    return config
