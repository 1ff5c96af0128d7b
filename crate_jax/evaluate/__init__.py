"""What trained features are good for: evaluators by the name that ``config.evaluate`` gives.

An evaluator takes a :class:`Probe` and returns scalars by name; a run ends in them, and so does
``--mode=eval``.
"""

from collections.abc import Callable

from crate_jax.config import Config, ConfigError, nearest
from crate_jax.evaluate import clustering, knn, linear_svm, nearest_subspace, subspaces
from crate_jax.evaluate.probe import Probe, Samples

__all__ = ["EVALUATORS", "Probe", "Samples", "check", "run"]

EVALUATORS: dict[str, Callable[[Probe], dict[str, float]]] = {
    "nearest_subspace": nearest_subspace.evaluate,
    "subspaces": subspaces.evaluate,
    "knn": knn.evaluate,
    "linear_svm": linear_svm.evaluate,
    "kmeans": clustering.evaluate_kmeans,
    "spectral": clustering.evaluate_spectral,
    "ensc": clustering.evaluate_ensc,
}
"""Name to function."""


CLUSTERINGS = ("kmeans", "spectral", "ensc")
"""Those that look for as many clusters as there are classes."""


def check(config: Config, feature_dim: int | None = None) -> None:
    """Raises a sentence about the first evaluator that is not there, or that would find nothing.

    Args:
      config: the run.
      feature_dim: d, where it is known.
    """
    settings, K = config.evaluate, config.data.num_classes
    for name in settings.evaluators:
        if name not in EVALUATORS:
            raise ConfigError(f"config.evaluate.evaluators: {name!r}{nearest(name, EVALUATORS)}")
        if name in CLUSTERINGS and settings.cluster_samples <= K:
            raise ConfigError(
                f"config.evaluate.cluster_samples={settings.cluster_samples} are too few for "
                f"{K} clusters; raise it, or leave {name!r} out of config.evaluate.evaluators."
            )
        if name == "nearest_subspace" and feature_dim and settings.components >= feature_dim:
            raise ConfigError(
                f"config.evaluate.components={settings.components} span all {feature_dim} "
                f"dimensions of the features, and leave no residual; lower it."
            )


def run(probe: Probe) -> dict[str, float]:
    """The scalars of all evaluators of a probe's config, ``eval/EVALUATOR/SCALAR``."""
    return {
        f"eval/{name}/{key}": float(value)
        for name in probe.config.evaluate.evaluators
        for key, value in EVALUATORS[name](probe).items()
    }
