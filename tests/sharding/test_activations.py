"""Activations stay where their images are: what crosses the mesh is of the size of parameters."""

import jax
import numpy as np
import pytest

from crate_jax import models
from crate_jax.config import MeshConfig
from crate_jax.plan.hlo import Module
from crate_jax.sharding import place, rules
from crate_jax.sharding.mesh import create_mesh

LAYOUTS = {
    "fsdp": MeshConfig("fsdp"),
    "fsdp within data": MeshConfig("fsdp", fsdp=4),
    "hybrid": MeshConfig("hybrid", slice=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", models.MODELS)
def test_no_activation_crosses_the_mesh(name, layout):
    model = models.create(
        name, width=16, depth=2, heads=2, patch=4, num_classes=8, scan_layers=True
    )
    mesh = create_mesh(LAYOUTS[layout])
    image = jax.ShapeDtypeStruct((256, 16, 16, 3), "float32", sharding=place.batch_sharding(mesh))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes, rules.shardings(mesh, shapes),
    )  # fmt: skip

    def loss(params, image):
        return model.apply({"params": params}, image).sum()

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(params, image).compile()
    crossing = sum(c.bytes * c.count for c in Module(compiled.as_text()).collectives)
    parameters = sum(4 * np.prod(x.shape) for x in jax.tree.leaves(shapes))
    one_activation = 4 * 256 * 17 * 16 / 8  # of a device, before and after one of four half layers
    assert parameters < one_activation
    assert crossing < 6 * parameters
