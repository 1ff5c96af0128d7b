"""A linear support vector machine on the features, one against the rest (scikit-learn's)."""

import warnings

from crate_jax.evaluate.probe import Probe


def evaluate(probe: Probe) -> dict[str, float]:
    """Test accuracy of the machine with squared hinge loss, ``config.evaluate.svm_c``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(C=probe.config.evaluate.svm_c, random_state=probe.config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(probe.train.Z, probe.train.labels)
    return {"accuracy": float(machine.score(probe.test.Z, probe.test.labels))}
