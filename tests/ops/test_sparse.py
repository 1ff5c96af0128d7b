import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from crate_jax.ops import sparse


@pytest.mark.parametrize("method", [sparse.ista, sparse.fista])
@pytest.mark.parametrize("prox", ["relu", "soft"])
def test_solvers_reach_the_lasso_solution(x64, method, prox):
    rng = np.random.default_rng(0)
    D, z, lmbda = rng.normal(size=(12, 20)), rng.normal(size=12), 0.4
    eta = 1 / np.linalg.norm(D, 2) ** 2
    steps = 20000 if method is sparse.ista else 4000
    got = method(jnp.asarray(z), jnp.asarray(D), steps=steps, eta=eta, lmbda=lmbda, prox=prox)
    solver = Lasso(
        lmbda / 12, fit_intercept=False, positive=prox == "relu", tol=1e-14, max_iter=10**6
    )
    np.testing.assert_allclose(got, solver.fit(D, z).coef_, atol=1e-5)


def test_one_step_is_the_papers(x64):
    rng = np.random.default_rng(1)
    D, z, a = rng.normal(size=(5, 7)), rng.normal(size=5), rng.normal(size=7)
    v = a + 0.1 * D.T @ (z - D @ a)
    for prox, want in (
        ("relu", np.maximum(v - 0.02, 0)),
        ("soft", np.sign(v) * np.maximum(np.abs(v) - 0.02, 0)),
    ):
        got = sparse.ista_step(jnp.asarray(a), z, D, eta=0.1, lmbda=0.2, prox=prox)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_objective_falls_along_ista(x64):
    rng = np.random.default_rng(2)
    D, z = jnp.asarray(rng.normal(size=(6, 9))), jnp.asarray(rng.normal(size=(4, 6)))
    eta = 1 / float(np.linalg.norm(D, 2)) ** 2
    values = [
        sparse.lasso_objective(
            sparse.ista(z, D, steps=n, eta=eta, lmbda=0.3, prox="soft"), z, D, 0.3
        )
        for n in range(8)
    ]
    assert (np.diff(np.stack(values), axis=0) <= 1e-12).all()
    want = 0.5 * np.sum(np.asarray(z) ** 2, -1)
    np.testing.assert_allclose(values[0], want)
