import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import print_saved_residuals

from crate_jax.layers.stack import (
    REMATS,
    DropPath,
    select,
    shared_fields,
    stack,
    stack_layers,
    unstack_layers,
)
from crate_jax.models.crate import CRATE, CRATEBlock

EXAMPLES = 2000


class Marks(nn.Module):
    """Adds a dropped one to every example and captures what was added."""

    train: bool = True

    @nn.compact
    def __call__(self, z_BND, drop_rate):
        update_BND = DropPath(self.train)(jnp.ones_like(z_BND), drop_rate)
        return z_BND + update_BND, {"update": update_BND}


class MarksStack(nn.Module):
    scan: bool
    drop_path: float = 0.6
    train: bool = True

    @nn.compact
    def __call__(self, z_BND):
        settings = {"train": self.train}
        return stack(Marks, settings, 4, z_BND, drop_path=self.drop_path, scan=self.scan)


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def scan(request):
    return request.param


@pytest.fixture(scope="module")
def marks(scan):
    """From a seed to what each of four layers added, ``(L, B, N, D)``."""

    @jax.jit
    def run(key):
        z_BND = jnp.zeros((EXAMPLES, 2, 1))
        z_BND, seen = MarksStack(scan).apply({}, z_BND, rngs={"dropout": key})
        return z_BND, seen["update"]

    def marks(seed):
        z_BND, update_LBND = jax.device_get(run(jax.random.key(seed)))
        np.testing.assert_allclose(z_BND, update_LBND.sum(0), rtol=1e-6)
        return update_LBND

    return marks


def test_drop_path_keeps_the_expectation_and_rises_from_zero(marks):
    update_LBND = marks(0)
    for update_BND, rate in zip(update_LBND, (0, 0.2, 0.4, 0.6), strict=True):
        kept = update_BND[:, 0, 0] != 0
        np.testing.assert_array_equal(update_BND[:, 0], update_BND[:, 1])  # whole examples
        np.testing.assert_allclose(update_BND[kept], 1 / (1 - rate), rtol=1e-6)
        deviation = (rate * (1 - rate) / EXAMPLES) ** 0.5
        assert abs(kept.mean() - (1 - rate)) <= 5 * deviation


def test_layers_draw_differently_and_the_same_from_the_same_key(marks):
    update_LBND = marks(0)
    kept = update_LBND[:, :, 0, 0] != 0
    # One draw for all layers would drop at a low rate only what it drops at a high one too.
    assert (kept[3] & ~kept[1]).mean() > 0.05
    np.testing.assert_array_equal(marks(0), update_LBND)
    assert (marks(1) != update_LBND).any()


@pytest.mark.parametrize("settings", [{"train": False}, {"drop_path": 0.0}], ids=str)
def test_drop_path_is_idle_at_evaluation_and_at_rate_zero(scan, settings):
    z_BND, seen = MarksStack(scan, **settings).apply({}, jnp.zeros((5, 2, 1)))  # and needs no key
    assert (seen["update"] == 1).all() and (z_BND == 4).all()


N = 7


def kept_for_backward(remat, capsys):
    """Shapes that the backward pass of one CRATE layer is given."""
    model = CRATE(
        8, 1, 2, num_classes=0, patch=2, remat=remat, positions="sincos2d", feedforward="mlp"
    )
    image = jnp.ones((3, 2, 2 * (N - 1), 1))
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    print_saved_residuals(lambda p: model.apply(p, image).sum(), params)
    lines = capsys.readouterr().out.splitlines()
    return [line.split("]")[0] + "]" for line in lines]


@pytest.mark.parametrize("remat", REMATS)
def test_what_is_kept_for_the_backward_pass(remat, capsys):
    kept = kept_for_backward(remat, capsys)
    weights = f"f32[3,2,{N},{N}]" in kept
    matrix_products = "f32[3,7,32]" in kept  # the MLP's hidden units
    assert (weights, matrix_products) == {
        "none": (True, True),
        "full": (False, False),
        "dots": (True, True),
        "dots_no_batch": (False, True),
        "attention": (False, True),
    }[remat]


def test_stacking_and_unstacking_are_inverse_and_leave_the_rest():
    leaves = {"head": np.ones(2), "blocks_0": {"a": np.ones(3)}, "blocks_1": {"a": np.zeros(3)}}
    stacked = stack_layers(leaves)
    assert set(stacked) == {"head", "blocks"} and stacked["blocks"]["a"].shape == (2, 3)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), leaves)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(stacked), stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(leaves), leaves)


def test_ten_layers_stack_by_number_and_not_by_name():
    leaves = {f"blocks_{l}": {"a": np.full(1, l)} for l in range(12)}
    np.testing.assert_array_equal(stack_layers(leaves)["blocks"]["a"][:, 0], np.arange(12))


def test_a_block_takes_its_models_fields():
    model = CRATE(8, 2, 2, eta=0.7, remat="attention")
    got = shared_fields(CRATEBlock, model)
    assert got["eta"] == 0.7 and got["remat"] == "attention" and got["heads"] == 2
    assert not {"width", "depth", "num_classes", "train", "capture", "name", "parent"} & set(got)


def test_select_says_what_there_is():
    seen = {"tokens": jnp.ones(2), "attention": None}
    assert list(select(seen, ("tokens",))) == ["tokens"] and select(seen, ()) == {}
    with pytest.raises(ValueError, match="capture='token' is none of attention, tokens"):
        select(seen, ("token",))
    with pytest.raises(ValueError, match="needs attention_implementation='einsum'"):
        select(seen, ("attention",))
