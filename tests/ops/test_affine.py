import jax.numpy as jnp
import numpy as np

from crate_jax.ops.affine import turn_and_scale


def test_quarter_turns_and_doubling():
    x = jnp.asarray(np.random.default_rng(0).random((4, 5, 5, 2)), jnp.float32)
    angle = jnp.asarray([0.0, np.pi / 2, -np.pi / 2, 0.0])
    out = turn_and_scale(x, angle, jnp.asarray([1.0, 1.0, 1.0, 2.0]), fill=-1.0)
    np.testing.assert_allclose(out[0], x[0], atol=1e-6)
    np.testing.assert_allclose(out[1], np.rot90(x[1], 1), atol=1e-5)
    np.testing.assert_allclose(out[2], np.rot90(x[2], -1), atol=1e-5)
    np.testing.assert_allclose(out[3][::2, ::2], x[3][1:4, 1:4], atol=1e-6)


def test_what_comes_from_outside_is_the_fill():
    out = turn_and_scale(
        jnp.ones((1, 6, 6, 1)), jnp.zeros(1), jnp.full((1,), 0.5), fill=-1.0
    )  # fmt: skip
    assert np.all(out[0, 0] == -1) and np.all(out[0, 2:4, 2:4] == 1)
