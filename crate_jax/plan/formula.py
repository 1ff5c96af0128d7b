"""A config on a topology without a compile: its mesh, and memory and time by formula."""

from jax.sharding import AbstractMesh, Mesh

from crate_jax.config import Config
from crate_jax.plan import estimate
from crate_jax.plan.roofline import Place, Roofline, Work, roofline
from crate_jax.plan.topology import Topology
from crate_jax.run import check_batches
from crate_jax.sharding import mesh as meshes


def lay_out(config: Config, topology: Topology) -> tuple[Mesh | AbstractMesh, list[Place]]:
    """The config's mesh on a topology and the place of each of its devices.

    A TPU's mesh has devices to compile for, a GPU's is abstract.
    """
    if topology.chip.kind == "tpu":
        mesh = meshes.create_mesh(config.mesh, topology.devices())
        places = [
            (getattr(d, "slice_index", 0) or 0, tuple(d.coords)) for d in mesh.devices.flatten()
        ]
        return mesh, places
    nodes = topology.slices if config.mesh.preset == "hybrid" else 1
    sizes = meshes.axis_sizes(config.mesh, topology.chips, nodes)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    return mesh, [(i // topology.chip.node, ()) for i in range(topology.chips)]


def by_formula(config: Config, topology: Topology) -> tuple[estimate.Memory, Work, Roofline]:
    """Memory, work and bounds without a compile."""
    return on_mesh(config, topology, *lay_out(config, topology))


def on_mesh(
    config: Config, topology: Topology, mesh: Mesh | AbstractMesh, places: list[Place]
) -> tuple[estimate.Memory, Work, Roofline]:
    """:func:`by_formula`, with what :func:`lay_out` gave."""
    check_batches(config, mesh, ("batch_size",))
    facts = estimate.traced(config)
    needs = estimate.memory(config, mesh, facts)
    work = Work(
        facts.hardware_flops / topology.chips,
        estimate.hbm_bytes(config, mesh, needs, facts),
        estimate.collectives(config, mesh, needs, facts),
    )
    return needs, work, roofline(work, topology.chip, topology.shape, places)
