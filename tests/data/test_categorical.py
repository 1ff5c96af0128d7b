import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.data.categorical import BITS, draw, random_bits, threshold, thresholds

LAWS = np.array(
    [
        [0.5, 0.25, 0.25, 0.0],
        [0.0, 0.0, 1.0, 0.0],
        [0.0, 0.7, 0.1, 0.2],
        [0.1] * 3 + [0.7],  # cumulated, 0.1 three times is a little above 0.3
    ]
)


def test_every_entry_owns_its_share_of_the_bits():
    t = thresholds(LAWS).astype(np.int64)
    shares = np.diff(np.concatenate([np.full((len(LAWS), 1), -1), t], axis=1))
    np.testing.assert_allclose(shares / 2**BITS, LAWS, atol=2.0 ** (1 - BITS))
    assert np.all((shares == 0) == (LAWS == 0)) and np.all(shares.sum(axis=1) == 2**BITS)


def test_rows_that_fall_short_of_one_leave_nothing_to_what_cannot_happen():
    p = np.array([1 / 3, 1 / 3, 1 / 3 - 1e-7, 0, 0])
    bits = jnp.array([0, 2**31 - 1], jnp.int32)
    assert draw(bits, jnp.asarray(np.tile(thresholds(p), (2, 1)))).tolist() == [0, 2]
    p = np.array([0, 0, 1.0])
    assert draw(bits, jnp.asarray(np.tile(thresholds(p), (2, 1)))).tolist() == [2, 2]


def test_frequencies():
    bits = random_bits(jax.random.key(0), (200_000,))
    assert int(bits.min()) >= 0 and abs(float(bits.astype(jnp.float32).mean()) / 2**30 - 1) < 0.01
    for p in LAWS:
        rows = jnp.broadcast_to(jnp.asarray(thresholds(p)), (bits.size, p.size))
        frequencies = np.bincount(draw(bits, rows), minlength=p.size) / bits.size
        np.testing.assert_allclose(frequencies, p, atol=0.005)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_events(p):
    bits = np.asarray(random_bits(jax.random.key(1), (100_000,)))
    frequency = (bits <= threshold(p)).mean()
    assert frequency == p if p in (0, 1) else abs(frequency - p) < 0.01
