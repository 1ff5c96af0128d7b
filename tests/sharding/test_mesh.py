import types

import jax
import numpy as np
import pytest

from crate_jax.config import ConfigError, MeshConfig
from crate_jax.sharding import place
from crate_jax.sharding.mesh import AXES, axis_sizes, batch_shards, check_batch, create_mesh


@pytest.mark.parametrize(
    "preset, sizes, want",
    [
        ("dp", {}, (1, 8, 1, 1)),
        ("fsdp", {}, (1, 1, 8, 1)),
        ("fsdp_tp", {}, (1, 1, 4, 2)),
        ("hybrid", {}, (1, 1, 8, 1)),
        ("hybrid", {"slice": 2}, (2, 1, 4, 1)),
        ("hybrid", {"slice": 2, "tensor": 2}, (2, 1, 2, 2)),
        ("dp", {"tensor": 2}, (1, 4, 1, 2)),
        ("dp", {"data": 1, "fsdp": -1, "tensor": 2}, (1, 1, 4, 2)),
        ("dp", {"data": 2, "fsdp": 2, "tensor": -1}, (1, 2, 2, 2)),
        ("dp", {"data": 8, "tensor": -1}, (1, 8, 1, 1)),
        ("fsdp", {"fsdp": 4}, (1, 2, 4, 1)),
        ("fsdp_tp", {"fsdp": 2}, (1, 2, 2, 2)),
        ("hybrid", {"slice": 2, "fsdp": 2}, (2, 2, 2, 1)),
        ("dp", {"data": 4, "fsdp": 2}, (1, 4, 2, 1)),
    ],
)
def test_a_preset_and_what_is_given_besides(preset, sizes, want):
    mesh = create_mesh(MeshConfig(preset, **sizes))
    assert mesh.axis_names == AXES == ("slice", "data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == want
    assert set(mesh.devices.flat) == set(jax.devices())
    assert batch_shards(mesh) == want[0] * want[1] * want[2]


@pytest.mark.parametrize(
    "sizes, told",
    [
        ({"data": 4}, "data=4"),
        ({"data": 16}, "data=16"),
        ({"fsdp": 3}, "fsdp=3"),
        ({"fsdp": 16}, "fsdp=16"),
        ({"fsdp": -1, "data": -1}, "fsdp=-1"),
        ({"fsdp": 0}, "fsdp=0"),
        ({"data": -2, "fsdp": -4}, "data=-2, fsdp=-4"),
        ({"slice": 3}, "slice=3"),
    ],
)
def test_axes_that_do_not_lay_out_the_devices(sizes, told):
    """The sentence repeats what was written, the -1 too."""
    with pytest.raises(ConfigError, match="'dp' with .* does not lay out 8 devices") as error:
        create_mesh(MeshConfig(**sizes))
    assert told in str(error.value)


def test_a_misspelt_preset():
    with pytest.raises(ConfigError, match="config.mesh.preset='fsdptp'; did you mean 'fsdp_tp'"):
        create_mesh(MeshConfig("fsdptp"))


@pytest.mark.parametrize("preset", ["dp", "hybrid"])
def test_slices_that_are_there_are_an_axis_of_their_own(preset):
    """So that no parameter is ever gathered over the network between them."""
    sizes = axis_sizes(MeshConfig(preset), devices=512, slices=2)
    assert sizes == {"slice": 2} | (
        {"data": 256, "fsdp": 1, "tensor": 1}
        if preset == "dp"
        else {"data": 1, "fsdp": 256, "tensor": 1}
    )


def test_a_mesh_over_some_devices():
    mesh = create_mesh(MeshConfig(), jax.devices()[:2])
    assert list(mesh.devices.flat) == jax.devices()[:2]


def test_a_batch_that_does_not_divide_gets_the_two_that_would():
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(mesh, 100, "config.train.batch_size")
    sentence = (
        r"config.train.batch_size gives batches of 102, which do not divide over "
        r"slice x data x fsdp = 4 devices; 100 or 104 would\."
    )
    with pytest.raises(ConfigError, match=sentence):
        check_batch(mesh, 102, "config.train.batch_size")
    with pytest.raises(ConfigError, match="= 4 devices; 4 would"):
        check_batch(mesh, 3, "config.train.batch_size")


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"slice": 2, "tensor": 4}])
def test_a_placed_batch_is_split_by_rows_in_order(sizes):
    mesh = create_mesh(MeshConfig(**sizes))
    rows = {"image": np.arange(24.0).reshape(8, 3), "label": np.arange(8)}
    placed = place.place_batch(mesh, rows)
    for name, x in placed.items():
        np.testing.assert_array_equal(x, rows[name])
        assert {s.data.shape[0] for s in x.addressable_shards} == {8 // batch_shards(mesh)}


class _Device:
    def __init__(self, i, process_index):
        self.i, self.process_index = i, process_index


def test_every_host_reads_the_rows_of_its_devices(monkeypatch):
    """Hosts of 2x2 chips in a 4x4 torus: row-major order alternates between neighbours."""
    processes = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    places = {_Device(i, p): (slice(2 * i, 2 * i + 2),) for i, p in enumerate(processes)}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: places)
    monkeypatch.setattr(place, "batch_sharding", lambda mesh: sharding)
    rows = [place.process_rows(object(), 32, p).tolist() for p in range(4)]
    assert rows[0] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert sorted(sum(rows, [])) == list(range(32))
