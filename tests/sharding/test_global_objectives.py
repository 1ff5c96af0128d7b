"""What is computed over a batch is computed over all of it, however the mesh splits it."""

import jax
import numpy as np
import pytest

from crate_jax.config import MeshConfig
from crate_jax.objectives.cross_entropy import cross_entropy, targets
from crate_jax.ops import class_blocks
from crate_jax.ops.coding_rate import class_coding_rate, coding_rate, rate_reduction
from crate_jax.sharding import place
from crate_jax.sharding.mesh import create_mesh

LAYOUTS = {
    "dp": MeshConfig("dp"),
    "fsdp": MeshConfig("fsdp"),
    "fsdp_tp": MeshConfig("fsdp_tp"),
    "hybrid": MeshConfig("hybrid", slice=2),
}
CLASSES = 3


def _objectives(batch):
    Z, labels = batch["Z"], batch["labels"]
    one_hot = targets(labels, Z.shape[-1], on=1.0, off=0.0)
    return {
        "R": coding_rate(Z, eps_sq=0.5),
        "R_c": class_coding_rate(Z, labels, CLASSES, eps_sq=0.5),
        "delta": rate_reduction(Z, labels, CLASSES, eps_sq=0.5),
        "cross entropy": cross_entropy(Z, one_hot).mean(),
    }


def _batch():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(16, 5)).astype(np.float32)
    # Classes in blocks, so that no device sees more than two of them.
    return {"Z": Z, "labels": np.repeat(np.arange(CLASSES), [6, 6, 4]).astype(np.int32)}


def _rate_by_hand(Z, eps_sq):
    n, d = Z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * eps_sq) * Z.T @ Z)[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rates_and_losses_are_those_of_the_global_batch(layout):
    batch = _batch()
    mesh = create_mesh(LAYOUTS[layout])
    values_and_grads = jax.jit(
        lambda batch: (
            _objectives(batch),
            jax.grad(lambda Z: _objectives(batch | {"Z": Z})["delta"])(batch["Z"]),
        )
    )
    want, want_grad = jax.device_get(values_and_grads(batch))
    with jax.set_mesh(mesh):
        got, grad = jax.device_get(values_and_grads(place.place_batch(mesh, batch)))
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-6)

    Z, labels = batch["Z"].astype(np.float64), batch["labels"]
    parts = [Z[labels == j] for j in range(CLASSES)]
    of_classes = sum(len(Z_j) / len(Z) * _rate_by_hand(Z_j, 0.5) for Z_j in parts)
    np.testing.assert_allclose(got["R"], _rate_by_hand(Z, 0.5), rtol=1e-5)
    np.testing.assert_allclose(got["delta"], _rate_by_hand(Z, 0.5) - of_classes, rtol=1e-4)
    of_shards = np.mean([_rate_by_hand(part, 0.5) for part in np.split(Z, 8)])
    assert abs(of_shards - want["R"]) > 0.1  # a mean over devices would not pass


def test_many_classes_are_sorted_across_devices():
    rng = np.random.default_rng(1)
    N, d, K = 400, 80, 40
    Z = rng.normal(size=(N, d)).astype(np.float32)
    labels = np.sort(rng.integers(K, size=N)).astype(np.int32)
    assert class_blocks.worth_it(Z, labels, K)

    def rate(batch):
        return class_coding_rate(batch["Z"], batch["labels"], K, eps_sq=0.5)

    mesh = create_mesh(MeshConfig("fsdp"))
    with jax.set_mesh(mesh):
        batch = place.place_batch(mesh, {"Z": Z, "labels": labels})
        value, grads = jax.jit(jax.value_and_grad(rate, allow_int=True))(batch)
    wide, want = Z.astype(np.float64), 0.0
    slope = np.zeros_like(wide)
    for k in np.unique(labels):
        Z_k = wide[labels == k]
        want += len(Z_k) / N * _rate_by_hand(Z_k, 0.5)
        inverse = np.linalg.inv(np.eye(d) + d / (len(Z_k) * 0.5) * Z_k.T @ Z_k)
        slope[labels == k] = d / (N * 0.5) * Z_k @ inverse
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grads["Z"], slope, rtol=1e-3, atol=1e-6)
