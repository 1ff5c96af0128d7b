"""The networks of MCR^2 against PyTorch's layers, their counts, and statistics of any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.objectives.rate_reduction import rate_reduction_loss
from tests.models.golden import make_resnet as golden


def _variables(depths, channels, head):
    """The golden weights as ours: kernels transposed, statistics apart."""
    out = {"params": {}, "batch_stats": {}}
    names = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    for path, value in golden.weights(depths, channels, head).items():
        *parents, leaf = path.split(".")
        collection = "batch_stats" if leaf.startswith("running") else "params"
        if leaf == "weight":
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
            value, leaf = value.transpose(axes), "scale" if value.ndim == 1 else "kernel"
        node = out[collection]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[names.get(leaf, leaf)] = jnp.asarray(value)
    return out


def test_a_network_with_a_head_is_the_one_that_torch_makes(x64):
    """The trained network of running statistics; the slow test has the gradients too."""
    settings = golden.NETWORKS["18"]
    module = models.create("resnet", variant="18", width=golden.WIDTH, feature_dim=golden.FEATURES)
    x = golden.images(settings["channels"]).transpose(0, 2, 3, 1)
    judged = jax.jit(module.apply)(_variables(**settings), x)
    np.testing.assert_allclose(judged, np.load(golden.FILE)["18/eval"], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("variant", golden.NETWORKS)
def test_a_network_is_the_one_that_torch_makes(x64, variant):
    settings = golden.NETWORKS[variant]
    want = np.load(golden.FILE)
    module = models.create(
        "resnet", variant=variant, width=golden.WIDTH, feature_dim=golden.FEATURES
    )
    variables = _variables(**settings)
    x = jnp.asarray(golden.images(settings["channels"]).transpose(0, 2, 3, 1))

    def loss(params, variables):
        Z, moved = module.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        value, _ = rate_reduction_loss(Z, golden.LABELS, 3, eps_sq=golden.EPS_SQ)
        return value, (Z, moved)

    @jax.jit
    def everything(variables):
        judged = module.apply(variables, x)
        return judged, jax.value_and_grad(loss, has_aux=True)(variables["params"], variables)

    judged, ((value, (Z, moved)), grads) = everything(variables)
    assert Z.dtype == "float64"
    np.testing.assert_allclose(judged, want[f"{variant}/eval"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(Z, want[f"{variant}/train"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(value, want[f"{variant}/loss"], rtol=1e-10)
    gradient = np.transpose(grads["stem"]["kernel"], (3, 2, 0, 1))
    np.testing.assert_allclose(gradient, want[f"{variant}/stem_gradient"], rtol=1e-8, atol=1e-11)
    stats = moved["batch_stats"]["stage4_0"]["norm1"]
    np.testing.assert_allclose(stats["mean"], want[f"{variant}/mean"], rtol=1e-10)
    np.testing.assert_allclose(stats["var"], want[f"{variant}/var"], rtol=1e-10)


@pytest.mark.parametrize(
    "name, variant, side, channels, count",
    [
        # stem + blocks + head by hand: 9 i o a convolution, 2 o a normalisation.
        ("resnet", "18", 32, 3, 11_168_832 + 512 * 512 + 2 * 512 + 512 * 128 + 128),
        ("resnet", "18ctrl", 32, 3, None),
        ("resnet", "10mnist", 32, 1, None),
        ("mlp", "mnist", 28, 1, 784 * 2048 + 2 * 2048 + 2048 * 128 + 128),
        ("mlp", "cifar", 32, 3, 3072 * 4096 + 2 * 4096 + 4096 * 128 + 128),
    ],
)
def test_parameters_are_as_many_as_in_the_released_networks(name, variant, side, channels, count):
    module = models.create(name, variant=variant)
    image = jax.ShapeDtypeStruct((1, side, side, channels), "float32")
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    got = sum(leaf.size for leaf in jax.tree.leaves(params))
    if count is None:
        count = _count(module.depths, channels, (64, 128, 256, 128))
    assert got == count


def _count(depths, channels, widths):
    total, before = 9 * channels * widths[0] + 2 * widths[0], widths[0]
    for s, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for b in range(depth):
            total += 9 * before * width + 9 * width * width + 4 * width
            if (s > 0 and b == 0) or before != width:
                total += before * width + 2 * width
            before = width
    return total


def test_the_head_of_the_plain_count():
    assert _count((2, 2, 2, 2), 3, (64, 128, 256, 512)) == 11_168_832
