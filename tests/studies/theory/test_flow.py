"""The integrator against closed forms and scipy's Radau."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from crate_jax.studies.theory import flow
from crate_jax.studies.theory.flow import integrate


def test_a_stiff_linear_flow_over_ten_powers_of_ten(x64):
    """Rates 1 and 1e-6 in ``s = ln t``; one component decays, the sum never moves."""
    A = jnp.array([[1.0, -1e-6], [-1.0, 1e-6]])
    times = jnp.linspace(0, np.log(1e10), 12)
    out = jax.jit(lambda x: integrate(lambda s, x: -jnp.exp(s) * (A @ x), x, times))(
        jnp.array([2.0, 1.0])
    )
    rate = 1 + 1e-6
    rest = 3e-6 / rate
    exact = rest + (2 - rest) * np.exp(-rate * (np.exp(times) - 1))
    np.testing.assert_allclose(out.x[:, 0], exact, atol=1e-9)
    np.testing.assert_allclose(out.x.sum(1), 3, atol=1e-12)
    assert out.steps < 500


def test_van_der_pol_agrees_with_radau_under_vmap(x64):
    def velocity(s, x):
        return jnp.stack([x[1], 50 * (1 - x[0] ** 2) * x[1] - x[0] + jnp.sin(s)])

    times = np.linspace(0, 60, 7)
    starts = np.array([[2.0, 0.0], [0.5, -1.0]])
    ours = jax.jit(jax.vmap(lambda x: integrate(velocity, x, jnp.asarray(times)).x))(starts)
    f = jax.jit(velocity)
    for start, x in zip(starts, ours, strict=True):
        theirs = solve_ivp(f, (0, 60), start, "Radau", times, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(x, theirs.y.T, rtol=2e-5, atol=2e-5)


def test_a_flow_that_ends_early_is_nan_from_there(x64, monkeypatch):
    monkeypatch.setattr(flow, "MAX_STEPS", 200)
    x = integrate(lambda s, x: x**2, jnp.array([1.0]), jnp.array([0.0, 0.5, 2.0, 3.0])).x
    np.testing.assert_allclose(x[:2, 0], [1, 2], rtol=1e-9)  # 1 / (1 - s)
    assert np.isnan(x[2:]).all()
