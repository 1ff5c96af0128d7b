"""Does Adam or softmax cause sinks, drains and peaks? Every combination, many seeds at once.

The ablation of "Active-Dormant Attention Heads" (arXiv 2410.13835): small transformers on the
Bigram-Backcopy task, over attention x optimizer x depth x norm x task. ``settings`` says what is
varied, ``training`` trains a cell, ``measure`` judges it, ``study`` goes through all, ``report``
tells.
"""

from crate_jax.studies.ablation.settings import Settings, check
from crate_jax.studies.ablation.study import run

__all__ = ["Settings", "check", "run"]
