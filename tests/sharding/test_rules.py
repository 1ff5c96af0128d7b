"""No parameter escapes the rules, and the optimizer's moments lie with their parameters."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from crate_jax import models
from crate_jax.config import MeshConfig, resolve
from crate_jax.models.crate_alpha import LADDER
from crate_jax.sharding import rules
from crate_jax.sharding.mesh import create_mesh
from crate_jax.systems.classify import Classify

TINY = {"width": 32, "depth": 2, "heads": 4, "patch": 4, "num_classes": 8}
NETWORKS = [
    *(("crate", {"patching": p}) for p in ("linear", "conv")),
    *(("crate", {"out_map": o}) for o in ("free", "tied")),
    ("crate", {"share_dictionary": True}),
    ("crate", {"positions": "sincos2d", "pool": "mean"}),
    ("crate", {"attention": "mhsa"}),
    ("crate", {"feedforward": "mlp"}),
    ("crate", {"attention": "mhsa", "feedforward": "mlp"}),
    *(("crate_alpha", row) for row in LADDER.values()),
    ("crate_alpha", {"overcomplete": False, "decoupled": True, "residual": True}),
    ("crate_alpha", {"layer_scale": 0.1, "stem_bias": False, "head_bias": False}),
    ("vit", {}),
    ("vit", {"qkv_bias": False}),
]


def _paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name, switches", NETWORKS)
def test_every_parameter_has_a_rule(name, switches, scan):
    module = models.create(name, **TINY, **switches, scan_layers=scan)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    params = _paths(jax.eval_shape(module.init, jax.random.key(0), image)["params"])
    assert [path for path in params if rules.rule(path) is None] == []
    assert all(len(rules.rule(path)) <= leaf.ndim for path, leaf in params.items())


@pytest.mark.parametrize(
    "name, variant",
    [(name, variant) for name in ("mlp", "resnet") for variant in models.NETS[name][1]],
)
def test_every_parameter_and_statistic_of_an_encoder_has_a_rule(name, variant):
    module = models.create(name, variant=variant)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    leaves = _paths(jax.eval_shape(module.init, jax.random.key(0), image))
    assert [path for path in leaves if rules.rule(path) is None] == []
    assert all(len(rules.rule(path)) <= leaf.ndim for path, leaf in leaves.items())


@pytest.mark.parametrize(
    "name, variant, switches",
    [("dcgan", "128", {"encoder": "conv"}), ("dcgan", "128", {"encoder": "csc"}),
     ("sngan", "48", {}), ("sngan", "128", {})],
    ids=("conv", "csc", "48", "128"),
)  # fmt: skip
def test_every_parameter_and_statistic_of_a_game_has_a_rule(name, variant, switches):
    module = models.create(name, variant=variant, channels=3, **switches)
    image = jax.ShapeDtypeStruct((1, int(variant), int(variant), 3), "float32")
    leaves = _paths(jax.eval_shape(module.init, jax.random.key(0), image))
    assert [path for path in leaves if rules.rule(path) is None] == []
    assert all(len(rules.rule(path)) <= leaf.ndim for path, leaf in leaves.items())


def test_a_name_that_no_rule_knows():
    assert rules.rule("blocks/attention/mystery/kernel") is None
    assert rules.rule("mystery") is None


@pytest.mark.parametrize(
    "path, shape, want",
    [
        ("blocks/attention/subspaces/kernel", (2, 32, 4, 8), P(None, "fsdp", "tensor", None)),
        ("blocks_0/attention/subspaces/kernel", (32, 4, 8), P("fsdp", "tensor", None)),
        ("blocks/attention/out/kernel", (2, 4, 8, 32), P(None, "tensor", None, "fsdp")),
        ("blocks_1/ista/D", (32, 128), P("fsdp", "tensor")),
        ("D", (32, 32), P("fsdp", "tensor")),
        ("head/kernel", (32, 7), P("fsdp", None)),  # 7 classes do not divide over 2
        ("blocks/norm_ista/scale", (2, 32), P(None, None)),
        ("patches/embed/kernel", (4, 4, 3, 32), P(None, None, None, "fsdp")),
        ("step", (), P()),
    ],
)
def test_where_a_leaf_goes(path, shape, want):
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tree = jax.ShapeDtypeStruct(shape, "float32")
    for name in reversed(path.split("/")):
        tree = {name: tree}
    (sharding,) = jax.tree.leaves(rules.shardings(mesh, tree))
    assert sharding.spec == want


COPIES = {"adamw": 2, "adafactor": None, "lamb": 2, "muon": None, "schedule_free_adamw": 3}
"""Leaves like every parameter in the state; schedule-free keeps z, and Adam's two moments."""


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", COPIES)
def test_moments_lie_with_their_parameters_and_all_else_is_whole(name, scan):
    optimizer = {"name": name} | ({"min_dim_size_to_factor": 16} if name == "adafactor" else {})
    raw = {
        "model": {"name": "crate_alpha", **TINY, "scan_layers": scan},
        "data": {"channels": 3, "num_classes": 8}, "optimizer": optimizer, "train": {"steps": 2},
    }  # fmt: skip
    system = Classify(resolve(raw), total_steps=2, steps_per_epoch=2)
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = _paths(system.abstract_params)
    param_specs = {
        k: s.spec for k, s in _paths(rules.shardings(mesh, system.abstract_params)).items()
    }
    state = jax.eval_shape(system.tx.init, system.abstract_params)
    specs = {k: s.spec for k, s in _paths(rules.shardings(mesh, state)).items()}
    copies = dict.fromkeys(params, 0)
    for path, leaf in _paths(state).items():
        (owner,) = [p for p in params if f"/{path}".endswith(f"/{p}")] or [None]
        if owner is not None and leaf.shape == params[owner].shape:
            assert specs[path] == param_specs[owner], path
            copies[owner] += 1
        else:
            assert not any(specs[path]), f"{path} {leaf.shape} {specs[path]}"
    if COPIES[name] is not None:
        assert set(copies.values()) == {COPIES[name]}
    factored = [p for p, n in copies.items() if n == 0]
    assert (name == "adafactor") == bool(factored)
    assert any(any(spec) for spec in param_specs.values())
