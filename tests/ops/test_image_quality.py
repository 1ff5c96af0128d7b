import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import image_quality


def test_psnr_of_a_known_error(x64):
    x = jnp.zeros((2, 4, 4, 1))
    y = x.at[1].add(0.5)
    np.testing.assert_allclose(image_quality.psnr(x, y + 0.1), [20.0, -20 * np.log10(0.6)])


@pytest.mark.parametrize("side", [12, 6])
def test_ssim_is_its_definition_window_by_window(x64, side):
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 2, side, side, 3))
    width = min(11, side - 1 + side % 2)
    offset = np.arange(width) - width // 2
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))[..., None]
    window = window / window.sum()

    def at(i, j):
        a, b = (v[:, i : i + width, j : j + width] for v in (x, y))
        ma, mb = ((window * v).sum((1, 2)) for v in (a, b))
        va = (window * (a - ma[:, None, None]) ** 2).sum((1, 2))
        vb = (window * (b - mb[:, None, None]) ** 2).sum((1, 2))
        cov = (window * (a - ma[:, None, None]) * (b - mb[:, None, None])).sum((1, 2))
        return ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / (
            (ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)
        )

    places = range(side - width + 1)
    wanted = np.mean([at(i, j) for i in places for j in places], axis=0).mean(-1)
    np.testing.assert_allclose(image_quality.ssim(jnp.asarray(x), jnp.asarray(y)), wanted)
    np.testing.assert_allclose(image_quality.ssim(jnp.asarray(x), jnp.asarray(x)), 1.0)
