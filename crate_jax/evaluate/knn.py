"""k nearest neighbours by cosine similarity, majority vote."""

import numpy as np

from crate_jax.evaluate.probe import Probe

AT_ONCE = 1000
"""Test samples whose similarities to all training samples are in memory together."""


def predict(
    Z_train: np.ndarray, labels: np.ndarray, Z_test: np.ndarray, *, k: int, num_classes: int
) -> np.ndarray:
    """The class that most of the k nearest training samples have; ties go to the smallest class.

    Args:
      Z_train, Z_test: ``(N, d)`` and ``(M, d)`` features; only directions count.
      labels: integers ``(N,)``.
      k: neighbours, at most N are taken.
      num_classes: K.

    Returns:
      integers ``(M,)``.
    """
    k = min(k, len(Z_train))
    train, test = _directions(Z_train), _directions(Z_test)
    votes = np.zeros((len(test), num_classes), np.int64)
    for start in range(0, len(test), AT_ONCE):
        part = test[start : start + AT_ONCE] @ train.T
        nearest = np.argpartition(-part, k - 1, axis=1)[:, :k]
        rows = start + np.arange(len(part))[:, None]
        np.add.at(votes, (rows, labels[nearest]), 1)
    return votes.argmax(axis=1)


def _directions(Z):
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)


def evaluate(probe: Probe) -> dict[str, float]:
    """Test accuracy."""
    predicted = predict(
        probe.train.Z, probe.train.labels, probe.test.Z,
        k=probe.config.evaluate.neighbors, num_classes=probe.config.data.num_classes,
    )  # fmt: skip
    return {"accuracy": float(np.mean(predicted == probe.test.labels))}
