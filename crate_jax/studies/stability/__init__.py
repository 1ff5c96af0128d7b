"""How steadily closed loops train: sparse-coding encoders beside plain ones, over a grid.

    python -m crate_jax.main --config configs/csc_ctrl/stability.py --workdir runs/stability

CSC-CTRL's claim (arXiv 2302.09347) is a more stable training, with small batches too. Each run of
the grid changes one setting of a base run: batch size, learning rate, width, or features. Into
``runs/NAME`` goes each run, and beside them ``results.json``, figures and ``index.html``. A run has
collapsed that ends no better than the mean training image would, or whose numbers have ceased to be
finite. A signal saves the run under way; the same command goes on.
"""

from crate_jax.studies.stability.settings import Settings, check
from crate_jax.studies.stability.study import run_study as run

__all__ = ["Settings", "check", "run"]
