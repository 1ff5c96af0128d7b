"""A trace of a few steps, which ends with the run at the latest."""

import jax
import pytest

from crate_jax.train import profile


@pytest.mark.parametrize("first", [0, 7])
def test_a_few_steps_behind_the_start_are_traced(first, tmp_path, monkeypatch):
    traced, now = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: now.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", now.clear)
    with profile.Profile(tmp_path, first, first + 20, wanted=True) as tracer:
        for step in range(first, first + 20):
            tracer.before(step)
            traced += [step] * bool(now)
    assert traced == list(range(first + 5, first + 10))
    with profile.Profile(tmp_path, first, 90, wanted=True) as tracer:  # a run that is stopped
        for step in range(first, first + 7):
            tracer.before(step)
        assert now == [tmp_path / "profile"]
    assert not now
    with profile.Profile(tmp_path, first, 90, wanted=False) as tracer:
        tracer.before(first + 5)
        assert not now


@pytest.mark.parametrize("left, traced", [(7, range(2, 7)), (5, range(5)), (3, range(3)), (0, [])])
def test_a_run_that_ends_soon_is_traced_too(left, traced, tmp_path, monkeypatch):
    now, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", now.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", now.clear)
    with profile.Profile(tmp_path, 10, 10 + left, wanted=True) as tracer:
        for step in range(left):
            tracer.before(10 + step)
            seen += [step] * bool(now)
    assert seen == list(traced) and not now
