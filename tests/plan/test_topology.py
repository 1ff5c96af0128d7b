import jax
import pytest
from jax.experimental import topologies

from crate_jax.config import ConfigError
from crate_jax.plan.topology import parse


@pytest.mark.parametrize(
    "name, chips, slices",
    [("v5e:16x16", 256, 1), ("2xv5e:16x16", 512, 2), ("v4:4x4x4", 64, 1), ("h100:12", 12, 2)],
)
def test_names(name, chips, slices):
    topology = parse(name)
    assert (topology.chips, topology.slices) == (chips, slices)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("v5e", "is no topology. Write CHIP:SHAPE"),
        ("v5ee:4x4", "unknown chip 'v5ee'; did you mean 'v5e'?"),
        ("v5e:4x4x4", "v5e comes in shapes of 2 sizes, as v5e:16x16"),
        ("h100:2x8", "h100 comes in shapes of 1 size, as h100:8"),
        ("2xh100:8", "GPUs are given by their number, as h100:16"),
    ],
)
def test_what_is_none_is_told_in_a_sentence(name, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?").replace("(", r"\(")):
        parse(name)


@pytest.mark.parametrize(
    "error, sentence",
    [
        (RuntimeError("JAX TPU support not installed"), "needs its compiler, libtpu"),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no"), "knows no such slice"),
    ],
    ids=["no libtpu", "no slice"],
)
def test_without_a_compiler_or_a_slice(error, sentence, monkeypatch):
    def refuse(**_):
        raise error

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=sentence):
        parse("v5e:3x5").devices()


def test_a_few_chips_and_several_slices_are_asked_for_by_option(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        topologies,
        "get_topology_desc",
        lambda **kw: asked.update(kw) or type("D", (), {"devices": []}),
    )
    parse("2xv4:1x1x1").devices()
    assert asked == {
        "platform": "tpu", "topology_name": "v4:1x1x1", "chip_config_name": "megacore",
        "chips_per_host_bounds": [1, 1, 1], "num_slices": 2,
    }  # fmt: skip
