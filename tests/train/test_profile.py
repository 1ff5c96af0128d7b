"""A trace of a few steps, which ends with the run at the latest."""

import jax
import pytest

from crate_jax.train import profile


@pytest.mark.parametrize("first", [0, 7])
def test_a_few_steps_behind_the_start_are_traced(first, tmp_path, monkeypatch):
    traced, now = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: now.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", now.clear)
    with profile.Profile(tmp_path, first, wanted=True) as tracer:
        for step in range(first, first + 20):
            tracer.before(step)
            traced += [step] * bool(now)
    assert traced == list(range(first + 5, first + 10))
    with profile.Profile(tmp_path, first, wanted=True) as tracer:  # a run that ends meanwhile
        for step in range(first, first + 7):
            tracer.before(step)
        assert now == [tmp_path / "profile"]
    assert not now
    with profile.Profile(tmp_path, first, wanted=False) as tracer:
        tracer.before(first + 5)
        assert not now
