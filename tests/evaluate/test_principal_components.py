import numpy as np

from crate_jax.evaluate import principal_components


def _features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 3)) * [3.0, 1.0, 0.1] + [5.0, 0.0, 0.0]


def test_components_are_those_of_the_covariance():
    Z = _features()
    found = principal_components.fit(Z, 2)
    values, vectors = np.linalg.eigh(np.cov(Z.T))
    np.testing.assert_allclose(found.deviations**2, values[::-1][:2])
    np.testing.assert_allclose(np.abs(found.basis @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(found.mean, Z.mean(0))


def test_a_walk_goes_through_the_mean_and_stays_on_the_sphere():
    found = principal_components.fit(_features(), 2)
    walk = principal_components.walk(found, 0, 2.0, 5)
    np.testing.assert_allclose(np.linalg.norm(walk, axis=1), 1.0)
    np.testing.assert_allclose(walk[2], found.mean / np.linalg.norm(found.mean))


def test_samples_follow_the_gaussian():
    found = principal_components.fit(_features(), 3)
    samples = principal_components.sample(found, 5000, np.random.default_rng(1))
    direct = _features()
    direct = direct / np.linalg.norm(direct, axis=1, keepdims=True)
    np.testing.assert_allclose(samples.mean(0), direct.mean(0), atol=0.06)
