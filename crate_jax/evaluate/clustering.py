"""Clustering of features without their labels, and how well it finds the classes.

k-means, spectral clustering of the nearest neighbours' graph, and elastic-net subspace clustering
(EnSC, You et al. 2016): each sample is written by the others,

    min_c  tau ||c||_1 + (1 - tau)/2 ||c||^2 + alpha/2 ||z_j - Z^T c||^2,   c_j = 0

with alpha = gamma alpha_0, where alpha_0 is the largest weight whose solution is zero, and the
graph ``(|C| + |C|^T) / 2`` of the unit rows is cut by the eigenvectors of its normalised Laplacian.
MCR^2's released code clusters its training features so, with gamma = 300 and tau = 1.
"""

import warnings

import numpy as np

from crate_jax.evaluate.probe import Probe, Samples

MAX_NONZERO = 50
"""Coefficients of a sample that are kept, the largest ones, as released."""

FIRST_SUPPORT = 100
"""Most coherent samples from which the search for a sample's coefficients begins."""

MAX_ROUNDS = 40
"""Of that search, as released; rounding may keep it from ending by itself."""


def accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """The largest fraction of samples that a matching of clusters with classes gets right."""
    from scipy.optimize import linear_sum_assignment

    size = int(max(labels.max(), clusters.max())) + 1
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(labels))


def scores(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Normalised mutual information, accuracy under the best matching, adjusted Rand index."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "accuracy": accuracy(labels, clusters),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def kmeans(Z: np.ndarray, num_clusters: int, *, seed: int) -> np.ndarray:
    """Clusters ``(N,)`` by k-means++, the best of ten starts."""
    from sklearn.cluster import KMeans

    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(Z)


def spectral(Z: np.ndarray, num_clusters: int, *, neighbors: int, seed: int) -> np.ndarray:
    """Clusters ``(N,)`` of the graph of nearest neighbours by cosine."""
    from sklearn.neighbors import kneighbors_graph

    units = Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
    graph = kneighbors_graph(units, min(neighbors, len(Z) - 1), mode="connectivity")
    return cut(0.5 * (graph + graph.T), num_clusters, seed=seed)


def cut(graph, num_clusters: int, *, seed: int) -> np.ndarray:
    """Clusters of a graph: k-means of unit rows of its Laplacian's lowest eigenvectors.

    Args:
      graph: sparse symmetric ``(N, N)`` of non-negative weights.
      num_clusters: K.
      seed: of k-means and of the eigensolver's start.
    """
    from scipy.sparse import csgraph, identity
    from scipy.sparse.linalg import eigsh
    from sklearn.cluster import KMeans

    N = graph.shape[0]
    smoothing = identity(N) - csgraph.laplacian(graph.tocsr(), normed=True)
    start = np.random.default_rng(seed).normal(size=N)
    _, vectors = eigsh(smoothing, k=num_clusters, which="LA", v0=start)
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return KMeans(num_clusters, n_init=20, random_state=seed).fit_predict(rows)


def self_representation(Z: np.ndarray, *, gamma: float, tau: float):
    """Coefficients of each sample in the others, sparse ``(N, N)`` with an empty diagonal.

    Args:
      Z: ``(N, d)``, no row zero.
      gamma: weight of the fit over the least that gives a solution but zero.
      tau: share of the l1 norm, above 0 and at most 1.
    """
    from scipy.sparse import csr_matrix

    N = len(Z)
    rows, columns, values = [], [], []
    for j in range(N):
        coherence = np.abs(Z @ Z[j])
        coherence[j] = 0
        support, c = _code(Z, j, alpha=gamma * tau / coherence.max(), tau=tau)
        kept = np.argsort(-np.abs(c))[:MAX_NONZERO]
        kept = kept[c[kept] != 0]
        rows.append(np.full(len(kept), j))
        columns.append(support[kept])
        values.append(c[kept])
    places = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix((np.concatenate(values), places), shape=(N, N))


def _code(Z: np.ndarray, j: int, *, alpha: float, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample j by an active set of the others, which grows until no other would be taken.

    Returns:
      the set's places, and their coefficients.
    """
    coherence = np.abs(Z @ Z[j])
    coherence[j] = -1
    support = np.argsort(-coherence)[: min(FIRST_SUPPORT, len(Z) - 1)]
    c = _elastic_net(Z[support].T, Z[j], alpha=alpha, tau=tau)
    for _ in range(MAX_ROUNDS):
        pull = alpha * np.abs(Z @ (Z[j] - c @ Z[support]))
        pull[support] = pull[j] = 0
        violating = np.flatnonzero(pull > tau * (1 + 1e-6))
        if not len(violating):
            break
        strongest = violating[np.argsort(-pull[violating])][:FIRST_SUPPORT]
        support = np.concatenate([support[c != 0], strongest])
        c = _elastic_net(Z[support].T, Z[j], alpha=alpha, tau=tau)
    return support, c


def _elastic_net(A: np.ndarray, x: np.ndarray, *, alpha: float, tau: float) -> np.ndarray:
    """``argmin_c tau ||c||_1 + (1 - tau)/2 ||c||^2 + alpha/2 ||x - A c||^2`` by least angles.

    The square of c joins the fit as further rows, which makes a lasso of it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path

    if tau < 1:
        m = A.shape[1]
        A = np.concatenate([A, np.sqrt((1 - tau) / alpha) * np.eye(m)])
        x = np.concatenate([x, np.zeros(m)])
    least = tau / (alpha * len(x))  # scikit-learn has the mean square
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return lars_path(A, x, method="lasso", alpha_min=least, return_path=False)[2]


def ensc(
    Z: np.ndarray, num_clusters: int, *, gamma: float, tau: float, seed: int
) -> np.ndarray:  # fmt: skip
    """Clusters ``(N,)`` by elastic-net subspace clustering."""
    from sklearn.preprocessing import normalize

    C = abs(normalize(self_representation(Z, gamma=gamma, tau=tau)))
    return cut(0.5 * (C + C.T), num_clusters, seed=seed)


def _samples(probe: Probe) -> Samples:
    return probe.train.first(probe.config.evaluate.cluster_samples)


def evaluate_kmeans(probe: Probe) -> dict[str, float]:
    """Scores of k-means."""
    samples, config = _samples(probe), probe.config
    return scores(samples.labels, kmeans(samples.Z, config.data.num_classes, seed=config.seed))


def evaluate_spectral(probe: Probe) -> dict[str, float]:
    """Scores of spectral clustering."""
    samples, config = _samples(probe), probe.config
    clusters = spectral(
        samples.Z, config.data.num_classes,
        neighbors=config.evaluate.neighbors, seed=config.seed,
    )  # fmt: skip
    return scores(samples.labels, clusters)


def evaluate_ensc(probe: Probe) -> dict[str, float]:
    """Scores of elastic-net subspace clustering."""
    samples, config = _samples(probe), probe.config
    clusters = ensc(
        samples.Z, config.data.num_classes,
        gamma=config.evaluate.ensc_gamma, tau=config.evaluate.ensc_tau, seed=config.seed,
    )  # fmt: skip
    return scores(samples.labels, clusters)
