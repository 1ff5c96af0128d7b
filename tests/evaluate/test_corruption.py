import numpy as np
import pytest

from crate_jax.evaluate import corruption


def test_the_levels_are_the_protocols():
    ends = {kind: (len(v), v[0], v[-1]) for kind, v in corruption.LEVELS.items()}
    assert ends == {
        "gaussian": (10, 0.02, 0.2), "shot": (10, 60, 6),
        "speckle": (6, 0.1, 0.6), "impulse": (9, 0.03, 0.27),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind, level, deviation",
    [("gaussian", 0.1, 0.1), ("shot", 60, np.sqrt(0.5 / 60)), ("speckle", 0.2, 0.1)],
)
def test_noise_has_the_mean_and_the_spread_of_its_kind(kind, level, deviation):
    x = np.full((1, 200, 200, 1), 0.5, np.float32)
    noise = corruption.corrupt(x, kind, level, np.random.default_rng(0)) - x
    assert abs(noise.mean()) < 0.004 and noise.dtype == np.float32
    np.testing.assert_allclose(noise.std(), deviation, rtol=0.03)


def test_impulses_are_black_and_white_in_equal_parts():
    x = np.full((1, 200, 200, 1), 128 / 255)
    out = corruption.corrupt(x, "impulse", 0.2, np.random.default_rng(0))
    assert abs((out == 0).mean() - 0.1) < 0.01 and abs((out == 1).mean() - 0.1) < 0.01
