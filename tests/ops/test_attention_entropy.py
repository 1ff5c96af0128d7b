import jax
import numpy as np

from crate_jax.ops.attention_entropy import largest_column_entropy, mean_row_entropy


@jax.jit
def both(A):
    return mean_row_entropy(A), largest_column_entropy(A)


def brute(p, count):
    """Entropy of weights that are scaled to sum to 1, over its largest value."""
    p = p / p.sum()
    p = p[p > 0]
    return -(p * np.log(p)).sum() / np.log(count) if count > 1 else 0.0


def test_against_loops(x64):
    T = 6
    A = np.tril(np.random.default_rng(0).random((3, T, T)))
    A /= A.sum(-1, keepdims=True)
    row, column = both(A)
    for b in range(3):
        rows = [brute(A[b, q], q + 1) for q in range(T)]
        columns = [brute(A[b, :, k], T - k) for k in range(T)]
        np.testing.assert_allclose(row[b], np.mean(rows), rtol=1e-12)
        np.testing.assert_allclose(column[b], max(columns), rtol=1e-12)


def test_the_extremes():
    T = 5
    sink = np.eye(T)[[0] * T]  # all look at the first token
    even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    own = np.eye(T)  # each looks at itself
    out = np.zeros((T, T))  # a head that is taken out
    row, column = both(np.stack([sink, even, own, out]))
    np.testing.assert_allclose(row, [0, (T - 1) / T, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.asarray(column)[[0, 2, 3]], [1, 0, 0], atol=1e-6)
