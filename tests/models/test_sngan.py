import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.models.sngan import _double


def _conv(inputs, outputs, side=3):
    return side * side * inputs * outputs + outputs


def _up(inputs, outputs):
    norms = 2 * (inputs + outputs)
    return norms + _conv(inputs, outputs) + _conv(outputs, outputs) + _conv(inputs, outputs, 1)


def _down(inputs, outputs, hidden):
    return _conv(inputs, hidden) + _conv(hidden, outputs) + _conv(inputs, outputs, 1)


@pytest.mark.parametrize("variant, bottom, side", [("48", 512, 6), ("128", 1024, 4)])
def test_blocks_have_the_published_channels(variant, bottom, side):
    """The widths of torch-mimicry 0.1.16, written out by hand."""
    down = {"48": [64, 128, 256, 512, 1024], "128": [64, 128, 256, 512, 1024, 1024]}[variant]
    up = {"48": [512, 256, 128, 64], "128": [1024, 1024, 512, 256, 128, 64]}[variant]
    f = _down(3, 64, 64) + sum(_down(a, b, a) for a, b in zip(down, down[1:], strict=False))
    if variant == "128":  # the last block keeps side and channels and has no map around it
        f -= _conv(1024, 1024, 1)
    f += 1024 * 128 + 128
    g = 128 * side * side * bottom + side * side * bottom
    g += sum(_up(a, b) for a, b in zip(up, up[1:], strict=False)) + 2 * 64 + _conv(64, 3)
    module = models.create("sngan", variant=variant)
    size = int(variant)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes["f"])) == f
    assert sum(x.size for x in jax.tree.leaves(shapes["g"])) == g


@pytest.mark.slow
def test_a_small_one_goes_there_and_back():
    module = models.create(
        "sngan", image_size=8, down=(4,), flat=6, bottom=4, up=(4,), nz=5, channels=1
    )
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats", "spectral"}
    z, image = module.apply(variables, x)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    assert image.shape == x.shape and np.all(np.abs(image) < 1)


def test_doubling_is_bilinear_with_corners_not_aligned():
    row = jnp.asarray([0.0, 4.0])
    out = _double(jnp.broadcast_to(row[None, None, :, None], (1, 2, 2, 1)))
    np.testing.assert_allclose(out[0, 0, :, 0], [0.0, 1.0, 3.0, 4.0], atol=1e-6)
