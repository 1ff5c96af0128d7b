"""The projection by its dual is the one that a general solver finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from crate_jax.ops import feasible_sets

project = jax.jit(feasible_sets.project_class_norms)


def _problem(dtype=np.float64, N=12, d_x=4, d_z=3, K=3):
    rng = np.random.default_rng(0)
    F, X = rng.normal(size=(d_z, d_x)), rng.normal(size=(N, d_x))
    labels = np.arange(N) % K
    return F.astype(dtype), X.astype(dtype), labels, np.eye(K, dtype=dtype)[labels]


@pytest.mark.parametrize("slack", [1.0, 100.0], ids=["all_bind", "one_is_slack"])
def test_it_is_what_slsqp_finds(slack, x64):
    F, X, labels, members = _problem()
    limits = np.array([4.0, 3.0, 5.0 * slack])
    ours = np.asarray(project(F, X, members, jnp.asarray(limits)))

    def room(f, j):
        return limits[j] - ((X[labels == j] @ f.reshape(F.shape).T) ** 2).sum()

    found = optimize.minimize(
        lambda f: 0.5 * ((f - F.ravel()) ** 2).sum(),
        0.1 * F.ravel(),
        jac=lambda f: f - F.ravel(),
        constraints=[{"type": "ineq", "fun": room, "args": (j,)} for j in range(3)],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.success
    np.testing.assert_allclose(ours.ravel(), found.x, atol=1e-6)
    assert all(room(ours.ravel(), j) > -1e-10 for j in range(3))


def test_a_point_of_the_set_stays_and_an_absent_class_asks_for_nothing(x64):
    F, X, labels, members = _problem()
    limits = jnp.asarray(np.array([1.0, 1.0, 1.0]))
    inside = np.asarray(project(F, X, members, limits))
    np.testing.assert_allclose(project(inside, X, members, limits), inside, atol=1e-12)
    two = X * (labels < 2)[:, None]
    once = np.asarray(project(F, two, members, limits))
    members = members.copy()
    members[labels == 2] = [1.0, 0.0, 0.0]  # rows of zeros, in whichever class
    np.testing.assert_allclose(project(F, two, members, limits), once, atol=1e-12)
    np.testing.assert_allclose(feasible_sets.class_energies(once, two, members)[2], 0)


def test_in_float32_what_is_left_of_the_excess_is_rounding():
    F, X, _, members = _problem(np.float32, N=60, d_x=50, d_z=40)
    limits = jnp.full(3, 20.0)
    ours = project(F, X, members, limits)
    energies = np.asarray(feasible_sets.class_energies(ours, X, members))
    assert ours.dtype == jnp.float32
    assert (energies / 20 - 1).max() < 1e-4
    np.testing.assert_allclose(energies, 20, rtol=1e-4)
