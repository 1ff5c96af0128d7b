import math

import jax
import numpy as np
import pytest

from crate_jax.config import ConfigError, ScheduleConfig
from crate_jax.optim import schedules


def _values(config, total=100, per_epoch=10):
    schedule = jax.jit(schedules.create(config, total, per_epoch))
    return np.array([schedule(s) for s in range(total + 1)])


def test_crate_alphas_cosine():
    config = ScheduleConfig(name="cosine", warmup_epochs=1.0, final=0.1)
    want = [
        min(1, s / 10) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(0, s - 10) / 90)))
        for s in range(101)
    ]
    np.testing.assert_allclose(_values(config), want, rtol=1e-5, atol=1e-7)


def test_linear_constant_and_rsqrt():
    linear = _values(ScheduleConfig(name="linear", warmup_steps=20, final=0.2))
    np.testing.assert_allclose(linear[[0, 10, 20, 60, 100]], [0, 0.5, 1, 0.6, 0.2], rtol=1e-5)
    np.testing.assert_array_equal(_values(ScheduleConfig(name="constant")), 1)
    rsqrt = _values(ScheduleConfig(name="rsqrt", warmup_steps=4, rsqrt_timescale=12))
    np.testing.assert_allclose(rsqrt[[4, 16, 40]], [1, 0.5**0.5, 0.5], rtol=1e-5)


def test_the_released_crate_schedule_is_constant_over_an_epoch():
    values = _values(ScheduleConfig(name="epoch_cosine", warmup_epochs=4.0))
    want = [min((e + 1) / 4, 0.5 * (1 + math.cos(math.pi * e / 10))) for e in range(10)]
    np.testing.assert_allclose(values[:100].reshape(10, 10), np.tile(want, (10, 1)).T, rtol=1e-5)


def test_bad_schedules_get_a_sentence():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        schedules.create(ScheduleConfig(name="cosin"), 10, 1)
    with pytest.raises(ConfigError, match="does not end before the run"):
        schedules.create(ScheduleConfig(warmup_steps=10), 10, 1)
    with pytest.raises(ConfigError, match="warmup_epochs, not steps"):
        schedules.create(ScheduleConfig(name="epoch_cosine", warmup_steps=3), 10, 1)


def test_multistep_falls_at_its_epochs():
    config = ScheduleConfig(name="multistep", milestones=(2.0, 3.5), step_factor=0.1)
    schedule = schedules.create(config, total_steps=50, steps_per_epoch=10)
    steps = [0, 19, 20, 34, 35, 49]
    np.testing.assert_allclose(
        [schedule(s) for s in steps], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6
    )
