import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from crate_jax import models
from crate_jax.optim import decay_mask


@pytest.mark.parametrize("scan", [False, True])
def test_alphas_rule_and_ours_on_crate_alpha(scan):
    model = models.create(
        "crate_alpha", width=8, depth=2, heads=2, patch=4, layer_scale=0.1, scan_layers=scan
    )
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]

    def decaying(rule):
        flat = traverse_util.flatten_dict(decay_mask(params, rule))
        return {path[-1] for path, decays in flat.items() if decays}

    everything = decaying("all")
    assert {"cls_token", "pos_embedding", "scale", "bias", "layer_scale_ista"} < everything
    assert decaying("kernels") == {"kernel"}
    assert decaying("matrices") == {"kernel", "D", "D1"}
