"""What a trained closed loop does with images: how well it returns them, and what lies in between.

    python -m crate_jax.main --config configs/csc_ctrl/transcription.py --workdir runs/look \\
        --config.run=runs/csc_mnist

Reads the run in the directory ``run`` and leaves it as it is. Into the workdir go ``results.json``
(every number), the figures, and ``index.html``: reconstructions, features against the features of
their transcriptions, spectra by class, walks along principal components, images of a Gaussian a
class, other data sets that the run has never seen, and noisy images under a sweep of lambda.
A run that a signal ends is done again from the start; it takes minutes.
"""

from crate_jax.studies.transcription.settings import Settings, check
from crate_jax.studies.transcription.study import run

__all__ = ["Settings", "check", "run"]
