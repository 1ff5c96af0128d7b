"""How near the classes are to orthogonal subspaces, where rate reduction drives them."""

import itertools

import numpy as np

from crate_jax.evaluate.probe import Probe, Samples
from crate_jax.interpret.subspaces import class_ranks, cosines, principal_cosine


def measure(samples: Samples, num_classes: int, *, components: int) -> dict[str, float]:
    """Cosines between classes, and ranks within.

    Args:
      samples: features and labels.
      num_classes: K.
      components: dimensions of a class's principal subspace.

    Returns:
      ``between_cosine``, the mean ``|cos|`` of two samples of different classes; ``within_cosine``
      of the same class; ``principal_cosine``, the largest of two principal subspaces; ``rank``,
      the mean number of a class's singular values above a hundredth of its largest.
    """
    Z, labels = samples.Z, samples.labels
    C = np.abs(cosines(Z))
    same = labels[:, None] == labels[None, :]
    others = ~np.eye(len(Z), dtype=bool)
    parts = [Z[labels == k] for k in range(num_classes) if np.any(labels == k)]
    pairs = itertools.combinations(parts, 2)
    return {
        "between_cosine": C[~same].mean() if np.any(~same) else 0.0,
        "within_cosine": C[same & others].mean() if np.any(same & others) else 0.0,
        "principal_cosine": max(
            (principal_cosine(a, b, components, components) for a, b in pairs), default=0.0
        ),
        "rank": np.mean([rank for rank in class_ranks(Z, labels, num_classes) if rank]),
    }


def evaluate(probe: Probe) -> dict[str, float]:
    """Of the first ``config.evaluate.cluster_samples`` test features."""
    config = probe.config
    return measure(
        probe.test.first(config.evaluate.cluster_samples), config.data.num_classes,
        components=config.evaluate.components,
    )  # fmt: skip
