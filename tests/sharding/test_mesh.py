import jax
import numpy as np
import pytest

from crate_jax.config import ConfigError, MeshConfig
from crate_jax.sharding import place
from crate_jax.sharding.mesh import batch_shards, check_batch, create_mesh


@pytest.mark.parametrize(
    "sizes, want",
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
        ((4, 2, 1), (4, 2, 1)),
    ],
)
def test_minus_one_takes_what_is_left(sizes, want):
    mesh = create_mesh(MeshConfig(*sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == want
    assert set(mesh.devices.flat) == set(jax.devices())
    assert batch_shards(mesh) == want[0] * want[1]


@pytest.mark.parametrize(
    "sizes", [(4, 1, 1), (16, 1, 1), (-1, 3, 1), (-1, 16, 1), (-1, -1, 1), (-1, 0, 1), (-2, -4, 1)]
)
def test_axes_that_do_not_lay_out_the_devices(sizes):
    """The sentence repeats what was written, the -1 too."""
    data, fsdp, tensor = sizes
    given = f"'data': {data}, 'fsdp': {fsdp}, 'tensor': {tensor}"
    with pytest.raises(ConfigError, match=f"config.mesh={{{given}}} does not lay out 8 devices"):
        create_mesh(MeshConfig(*sizes))


def test_a_mesh_over_some_devices():
    mesh = create_mesh(MeshConfig(), jax.devices()[:2])
    assert list(mesh.devices.flat) == jax.devices()[:2]


def test_a_batch_that_does_not_divide_gets_the_two_that_would():
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(mesh, 100, "config.train.batch_size")
    sentence = (
        r"config.train.batch_size gives batches of 102, which do not divide over "
        r"data x fsdp = 4 devices; 100 or 104 would\."
    )
    with pytest.raises(ConfigError, match=sentence):
        check_batch(mesh, 102, "config.train.batch_size")
    with pytest.raises(ConfigError, match="= 4 devices; 4 would"):
        check_batch(mesh, 3, "config.train.batch_size")


def test_a_placed_batch_is_split_by_rows_in_order():
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = {"image": np.arange(24.0).reshape(8, 3), "label": np.arange(8)}
    placed = place.place_batch(mesh, rows)
    for name, x in placed.items():
        np.testing.assert_array_equal(x, rows[name])
        assert {s.data.shape[0] for s in x.addressable_shards} == {2}
