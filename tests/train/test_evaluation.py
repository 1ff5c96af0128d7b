import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.config import MeshConfig
from crate_jax.sharding.mesh import create_mesh
from crate_jax.train.data import Data
from crate_jax.train.evaluation import Evaluator, mean_over


def _ragged(seed=0):
    """Batches of different sizes with masks, and the values that they leave."""
    rng = np.random.default_rng(seed)
    batches = []
    for size in (8, 8, 3, 5):
        mask = (rng.random(size) < 0.7).astype(np.float32)
        batches.append({"x": rng.normal(size=size).astype(np.float32), "mask": mask})
    kept = np.concatenate([b["x"][b["mask"] == 1] for b in batches]).astype(np.float64)
    return batches, kept


def _sums(batch):
    x, mask = batch["x"], batch["mask"]
    return {"x": jnp.sum(x * mask), "square": jnp.sum(x**2 * mask), "count": jnp.sum(mask)}


def test_the_mean_is_over_examples_and_not_over_batches():
    batches, kept = _ragged()
    means = mean_over(jax.jit(_sums), batches)
    assert means.keys() == {"x", "square"}
    np.testing.assert_allclose(means["x"], kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(means["square"], (kept**2).mean(), rtol=1e-6)
    assert all(type(value) is float for value in means.values())
    of_batches = np.mean([b["x"][b["mask"] == 1].mean() for b in batches])
    assert abs(of_batches - kept.mean()) > 1e-3


def test_sums_add_up_beyond_the_precision_of_float32():
    batches = [{"x": np.float32([2**24]), "mask": np.float32([1])}] + [
        {"x": np.float32([1]), "mask": np.float32([1])} for _ in range(99)
    ]
    assert mean_over(_sums, batches)["x"] == (2**24 + 99) / 100


@pytest.mark.parametrize("after", [0, 2])
def test_stopping_gives_the_evaluation_up(after):
    batches, _ = _ragged()
    asked, seen = iter(range(10)), []

    def sums(batch):
        seen.append(batch)
        return _sums(batch)

    assert mean_over(sums, batches, stop=lambda: next(asked) == after) is None
    assert len(seen) == after


class _System:
    """Evaluates ``params * x``; its layers are its parameters."""

    def evaluate(self, params, batch):
        return _sums(batch | {"x": params * batch["x"]})

    def measure(self, params, batch):
        return {"rate": params * jnp.array([1.0, 2.0]), "size": jnp.full(2, batch["x"].sum())}


def _evaluator(measured):
    x = np.arange(16, dtype=np.float32)
    rows = {"x": x, "mask": np.ones(16, np.float32), "index": np.arange(16), "skipped": 0}
    data = Data(train=None, evaluation=lambda: iter([rows, rows]), measured=measured)
    return Evaluator(_System(), create_mesh(MeshConfig()), data)


def test_an_evaluator_names_metrics_and_layers_from_one():
    evaluator = _evaluator({"x": np.ones(8, np.float32)})
    scalars = evaluator.run(jnp.float32(3.0))
    assert scalars == {
        "eval/x": 22.5, "eval/square": 9 * np.mean(np.arange(16.0) ** 2),
        "layers/rate/1": 3.0, "layers/rate/2": 6.0, "layers/size/1": 8.0, "layers/size/2": 8.0,
    }  # fmt: skip
    np.testing.assert_array_equal(evaluator.layers["rate"], [3.0, 6.0])


def test_given_up_it_keeps_what_it_found_before():
    evaluator = _evaluator(None)
    first = evaluator.run(jnp.float32(1.0))
    assert not any(name.startswith("layers/") for name in first) and evaluator.layers == {}
    assert evaluator.run(jnp.float32(2.0), stop=lambda: True) is None
    assert evaluator.metrics == first == {"eval/x": 7.5, "eval/square": first["eval/square"]}
