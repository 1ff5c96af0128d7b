import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.positions import sincos2d
from crate_jax.layers.tokens import ClassTokenAndPositions, head_dtype, pool
from tests.layers import random_params
from tests.layers.test_positions import np_resample


def np_tokens(x, p, grid, resampling="torch_bicubic"):
    """Class token first; learned positions where ``p`` has them, fixed ones otherwise."""
    table = p.get("pos_embedding")
    if table is None:
        table = np.concatenate(
            [np.zeros((1, 1, x.shape[-1])), sincos2d(grid, x.shape[-1])[None]], 1
        )
    elif table.shape[1] != x.shape[1] + 1:
        table = np_resample(table, grid, resampling)
    return np.concatenate([np.repeat(p["cls_token"], len(x), 0), x], axis=1) + table


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 9, 8))


@pytest.mark.parametrize("kind", ["learned", "sincos2d"])
def test_the_class_token_comes_first_and_positions_cover_it(x64, x, kind):
    layer = ClassTokenAndPositions(kind)
    p = random_params(layer, x, (3, 3))
    assert set(p) == {"cls_token"} | ({"pos_embedding"} if kind == "learned" else set())
    got = layer.apply({"params": p}, x, (3, 3))
    assert got.dtype == jnp.float64 and got.shape == (2, 10, 8)
    np.testing.assert_allclose(got, np_tokens(x, p, (3, 3)), rtol=1e-12)
    if kind == "sincos2d":
        np.testing.assert_array_equal(got[:, 0], np.repeat(p["cls_token"][0], 2, 0))


@pytest.mark.parametrize("resampling", ["torch_bicubic", "linear"])
@pytest.mark.parametrize("grid", [(4, 5), (1, 9)], ids=str)
def test_another_grid_resamples_the_table(x64, x, resampling, grid):
    """(1, 9) has as many patches as the table, and is another grid all the same."""
    layer = ClassTokenAndPositions(resampling=resampling)
    p = random_params(layer, x, (3, 3))
    other = np.random.default_rng(1).normal(size=(2, grid[0] * grid[1], 8))
    table = np_resample(p["pos_embedding"], grid, resampling)
    want = np.concatenate([np.repeat(p["cls_token"], 2, 0), other], axis=1) + table
    got = layer.apply({"params": p}, other, grid)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_gradients_reach_a_resampled_table(x):
    layer = ClassTokenAndPositions()
    p = random_params(layer, x, (3, 3))

    def loss(p):
        return (layer.apply({"params": p}, jnp.ones((1, 16, 8)), (4, 4)) ** 2).sum()

    assert (jax.jit(jax.grad(loss))(p)["pos_embedding"] != 0).all()


def test_a_learned_table_starts_on_a_square_grid(x):
    with pytest.raises(ValueError, match="square grid; got 1x9"):
        random_params(ClassTokenAndPositions(), x, (1, 9))


def test_pooling(x):
    np.testing.assert_array_equal(pool(x, "cls"), x[:, 0])
    np.testing.assert_allclose(pool(x, "mean"), x.sum(1) / 9, rtol=1e-12)


@pytest.mark.parametrize(
    "dtype, head",
    [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64"), (None, None)],
)
def test_the_head_computes_in_float32_or_better(dtype, head):
    assert head_dtype(dtype) == head
