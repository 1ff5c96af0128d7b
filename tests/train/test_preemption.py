"""Signals, and what several processes make of one that only one of them has got."""

import os
import signal

import jax
import pytest

from crate_jax.config import MeshConfig
from crate_jax.sharding.mesh import create_mesh
from crate_jax.train.preemption import Preemption


@pytest.fixture
def mesh():
    return create_mesh(MeshConfig())


def test_alone_a_signal_counts_at_the_next_poll(mesh):
    with Preemption(mesh) as preemption:
        assert not preemption.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not preemption.requested
        assert preemption.poll() and preemption.requested
        assert preemption.exit_code == 75


def test_a_second_sigterm_changes_nothing_and_ctrl_c_exits_otherwise(mesh):
    with Preemption(mesh) as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.poll() and preemption.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_of_before_come_back(mesh):
    before = signal.getsignal(signal.SIGTERM)
    with Preemption(mesh):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_several_hear_at_each_poll_what_was_noted_anywhere_at_the_poll_before(mesh, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with Preemption(mesh) as preemption:
        other = iter([0, 0, signal.SIGTERM, 0, 0])
        monkeypatch.setattr(preemption, "_send", lambda: next(other))
        assert [preemption.poll() for _ in range(5)] == [False, False, False, True, True]
        assert preemption.received is None and preemption.agreed == signal.SIGTERM
        assert preemption.exit_code == 75


def test_what_a_process_notes_reaches_all_devices(mesh):
    with Preemption(mesh) as preemption:
        assert int(preemption._send()) == 0
        preemption.received = signal.SIGTERM
        assert int(preemption._send()) == signal.SIGTERM
