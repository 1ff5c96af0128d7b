"""Evaluators on features whose answers are known, and against direct formulas."""

import itertools
import types

import numpy as np
import pytest

from crate_jax import evaluate
from crate_jax.config import ConfigError, resolve
from crate_jax.evaluate import clustering, knn, nearest_subspace


def _subspaces(rng, per_class=20, d=12, rank=2, classes=3, noise=0.0):
    """Unit samples of orthogonal subspaces."""
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    Z, labels = [], []
    for k in range(classes):
        part = rng.normal(size=(per_class, rank)) @ basis[:, rank * k : rank * (k + 1)].T
        Z.append(part + noise * rng.normal(size=part.shape))
        labels += [k] * per_class
    Z = np.concatenate(Z)
    order = rng.permutation(len(Z))
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    return evaluate.Samples(Z[order], np.array(labels)[order])


def _probe(train, test, **settings):
    names = tuple(evaluate.EVALUATORS)
    config = resolve({
        "model": {"name": "resnet"}, "train": {"steps": 1}, "data": {"num_classes": 3},
        "evaluate": {"evaluators": names, "components": 2} | settings,
    })  # fmt: skip
    splits = {"train": train, "test": test}
    system = types.SimpleNamespace(features=None)
    return evaluate.Probe(config, system, lambda _, split: (splits[split].Z, splits[split].labels))


def test_orthogonal_subspaces_are_told_apart_by_all():
    train = _subspaces(np.random.default_rng(1))
    scores = evaluate.run(_probe(train, train))
    perfect = ("nearest_subspace/svd_accuracy", "knn/accuracy", "ensc/accuracy", "ensc/nmi",
               "spectral/accuracy", "ensc/ari")  # fmt: skip
    assert {name: scores[f"eval/{name}"] for name in perfect} == dict.fromkeys(perfect, 1.0)
    assert 0.4 < scores["eval/linear_svm/accuracy"] <= 1.0
    assert scores["eval/subspaces/principal_cosine"] == pytest.approx(0, abs=1e-10)
    assert scores["eval/subspaces/between_cosine"] == pytest.approx(0, abs=1e-10)
    assert scores["eval/subspaces/rank"] == 2 and scores["eval/subspaces/within_cosine"] > 0.3
    assert {"eval/kmeans/nmi", "eval/kmeans/accuracy", "eval/kmeans/ari"} <= set(scores)


@pytest.mark.parametrize("centered", [False, True], ids=["svd", "pca"])
def test_residuals_are_distances_to_the_span_of_the_first_directions(centered):
    rng = np.random.default_rng(2)
    train = _subspaces(rng, noise=0.3)
    Z = rng.normal(size=(5, 12))
    fitted = nearest_subspace.fit(train.Z, train.labels, 4, components=3, centered=centered)
    got = nearest_subspace.residuals(Z, fitted)
    for k in range(3):
        Z_k = train.Z[train.labels == k]
        mean = Z_k.mean(0) if centered else 0.0
        values, vectors = np.linalg.eigh((Z_k - mean).T @ (Z_k - mean))
        A = vectors[:, np.argsort(values)[-3:]]
        for z, distance in zip(Z, got[:, k], strict=True):
            best = np.linalg.lstsq(A, z - mean, rcond=None)[0]
            np.testing.assert_allclose(np.linalg.norm(z - mean - A @ best), distance, rtol=1e-9)
    assert np.all(np.isinf(got[:, 3]))  # a class without samples


def test_neighbours_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(knn, "AT_ONCE", 4)
    rng = np.random.default_rng(3)
    Z, labels, test = rng.normal(size=(30, 4)), rng.integers(3, size=30), rng.normal(size=(11, 4))
    got = knn.predict(Z, labels, test, k=5, num_classes=3)
    for z, predicted in zip(test, got, strict=True):
        cosines = [w @ z / np.linalg.norm(w) / np.linalg.norm(z) for w in Z]
        votes = np.bincount(labels[np.argsort(cosines)[-5:]], minlength=3)
        assert votes[predicted] == votes.max()
    assert np.all(knn.predict(Z[:2], labels[:2], test, k=5, num_classes=3) < 3)


def test_the_accuracy_of_clusters_is_that_of_the_best_names():
    rng = np.random.default_rng(4)
    labels, clusters = rng.integers(4, size=50), rng.integers(4, size=50)
    best = max(
        np.mean(np.array(names)[clusters] == labels) for names in itertools.permutations(range(4))
    )
    assert clustering.accuracy(labels, clusters) == pytest.approx(best)
    scores = clustering.scores(labels, (labels + 1) % 4)
    assert scores == {"nmi": pytest.approx(1), "accuracy": 1.0, "ari": pytest.approx(1)}


@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_a_samples_code_solves_its_problem(tau, monkeypatch):
    monkeypatch.setattr(clustering, "FIRST_SUPPORT", 6)  # the active set has to grow
    Z, gamma, j = _subspaces(np.random.default_rng(5), noise=0.2).Z, 20.0, 7
    C = clustering.self_representation(Z, gamma=gamma, tau=tau).toarray()
    c, others = C[j], np.arange(len(Z)) != j
    assert c[j] == 0
    alpha = gamma * tau / np.abs(Z[others] @ Z[j]).max()
    slope = alpha * Z @ (Z[j] - Z.T @ c) - (1 - tau) * c
    active = np.abs(c) > 0
    assert 0 < active.sum() < len(Z) - 1
    np.testing.assert_allclose(slope[active], tau * np.sign(c[active]), rtol=1e-6)
    assert np.all(np.abs(slope[others & ~active]) <= tau * (1 + 1e-5))


def _config(num_classes, **settings):
    data, train = {"num_classes": num_classes}, {"steps": 1}
    return resolve({"data": data, "train": train, "evaluate": settings})


def test_an_unknown_evaluator_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="evaluators: 'nearest_subspaces'; did you mean"):
        evaluate.check(_config(3, evaluators=("knn", "nearest_subspaces")))


@pytest.mark.parametrize(
    "name, setting, bad, good, sentence",
    [
        ("kmeans", "cluster_samples", 10, 11, "cluster_samples=10 are too few for 10 clusters"),
        ("nearest_subspace", "components", 6, 5, "components=6 span all 6 dimensions"),
    ],
)
def test_an_evaluator_that_would_find_nothing_is_said(name, setting, bad, good, sentence):
    def check(value):
        evaluate.check(_config(10, evaluators=(name,), **{setting: value}), feature_dim=6)

    with pytest.raises(ConfigError, match=sentence):
        check(bad)
    check(good)
