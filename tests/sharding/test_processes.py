"""The roll call, in threads that stand for processes; who is missing or differs is named on all."""

import contextlib
import json
import socket
import threading
import time

import jax
import pytest

from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.sharding.processes import Place, StartError

CARD = {"config": "abc", "jax": "0.10.2"}
SAID = ("--coordinator", "--processes", "--process")


@pytest.fixture
def port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """What JAX would be started with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    for name in (processes.ADDRESS, processes.COUNT, processes.INDEX, processes.LOCAL_DEVICES):
        monkeypatch.delenv(name, raising=False)
    return calls


def _call(port, cards, count, timeout=10.0):
    """What each process hears: None, or the error."""
    heard = {}

    def one(key, index, card):
        try:
            processes.start(Place(f"localhost:{port}", count, index), card, timeout=timeout)
            heard[key] = None
        except (ConfigError, StartError) as error:
            heard[key] = error

    threads = [
        threading.Thread(target=one, args=(key, index, card))
        for key, (index, card) in enumerate(cards)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return [heard[key] for key in range(len(cards))]


def test_when_all_have_come_and_are_alike_jax_is_started(port, started):
    assert _call(port, [(2, CARD), (0, CARD), (1, CARD)], 3) == [None] * 3
    assert sorted(args for args, _ in started) == [(f"localhost:{port}", 3, i) for i in range(3)]
    assert all(k["cluster_detection_method"] == "deactivate" for _, k in started)
    assert _call(port, [(0, CARD), (1, CARD)], 2) == [None] * 2  # the port is free again at once


def test_those_that_do_not_come_are_named_on_all_that_did(port, started):
    errors = _call(port, [(0, CARD), (3, CARD)], 5, timeout=1.0)
    for error in errors:
        assert isinstance(error, StartError)
        assert "3 of 5 processes did not come within 1 s: 1, 2, 4." in str(error)
        assert "There are 0 (" in str(error) and "3 (" in str(error)
    assert not started


@pytest.mark.parametrize("name, other", [("config", "xyz"), ("jax", "0.11.0")])
def test_another_config_or_package_is_named_on_all(port, name, other, started):
    errors = _call(port, [(0, CARD), (1, CARD | {name: other})], 2)
    for error in errors:
        assert isinstance(error, ConfigError) and not isinstance(error, StartError)
        assert f"has {name} {other}, process 0" in str(error) and CARD[name] in str(error)
    assert not started


def test_two_that_say_they_are_the_same(port):
    errors = _call(port, [(0, CARD), (1, CARD), (1, CARD)], 3)
    assert all("two processes say they are process 1" in str(error) for error in errors)


def _says(port, index, card=CARD):
    """A process that has said its card, as its open line."""
    for _ in range(200):
        try:
            line = socket.create_connection(("localhost", port), 1)
            break
        except OSError:
            threading.Event().wait(0.02)
    said = {"index": index, "host": "h", "count": 3, "card": card}
    line.sendall(json.dumps(said).encode() + b"\n")
    return line


@pytest.mark.parametrize("again", [1, 2], ids=["the last to come", "before the last"])
def test_one_that_was_killed_and_comes_again_is_no_twin(port, again):
    """Process ``again`` calls and dies; then both others, and it once more, are there."""
    heard = []
    first = threading.Thread(target=lambda: heard.extend(_call(port, [(0, CARD)], 3)))
    first.start()
    _says(port, again, CARD | {"jax": "0.9"}).close()
    threading.Event().wait(0.2)
    assert _call(port, [(1, CARD), (2, CARD)], 3) == [None, None]
    first.join(timeout=20)
    assert heard == [None]


def test_one_that_died_while_it_waited_is_missing_at_the_end(port):
    heard = []
    first = threading.Thread(target=lambda: heard.extend(_call(port, [(0, CARD)], 3, timeout=1.5)))
    first.start()
    _says(port, 1).close()
    threading.Event().wait(0.2)
    line = _says(port, 2)
    first.join(timeout=20)
    (error,) = heard
    assert isinstance(error, StartError) and "1 of 3 processes did not come" in str(error)
    assert "within 1.5 s: 1. There are" in str(error)
    assert b"did not come" in line.recv(4096)


def test_one_that_died_is_missing_where_another_never_came(port):
    heard = []
    first = threading.Thread(target=lambda: heard.extend(_call(port, [(0, CARD)], 3, timeout=1.0)))
    first.start()
    _says(port, 1).close()
    first.join(timeout=20)
    assert "2 of 3 processes did not come within 1 s: 1, 2." in str(heard[0])


def test_process_0_that_is_stopped_gives_no_verdict(port, monkeypatch):
    """Its callers hear nothing, and call again."""

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    def first():
        with pytest.raises(Stopped):
            processes.start(Place(f"localhost:{port}", 3, 0), CARD, timeout=10)

    monkeypatch.setattr(processes, "compare", stop)
    thread = threading.Thread(target=first)
    thread.start()
    lines = [_says(port, 1), _says(port, 2)]
    thread.join(timeout=20)
    assert [line.recv(4096) for line in lines] == [b"", b""]


def test_strangers_do_not_hold_the_roll_beyond_its_time(port, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.4)
    over = threading.Event()

    def bother():
        while not over.is_set():
            with contextlib.suppress(OSError):
                with socket.create_connection(("localhost", port), 1):
                    over.wait(0.3)

    stranger = threading.Thread(target=bother)
    stranger.start()
    began = time.monotonic()
    (error,) = _call(port, [(0, CARD)], 2, timeout=1.5)
    over.set()
    stranger.join(timeout=20)
    assert isinstance(error, StartError) and time.monotonic() - began < 5


def test_another_count_is_named(port):
    heard = {
        0: {"host": "a", "count": 2, "card": CARD},
        1: {"host": "b", "count": 3, "card": CARD},
    }
    assert "process 1 (b) counts 3 processes, process 0 2" in processes.compare(heard)
    assert processes.compare({0: heard[0]}) is None


def test_nobody_at_the_coordinator(port):
    (error,) = _call(port, [(1, CARD)], 2, timeout=0.5)
    assert isinstance(error, StartError) and f"process 0 at localhost:{port}" in str(error)


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)):
        (error,) = _call(port, [(0, CARD)], 2, timeout=0.5)
    assert isinstance(error, StartError) and f"cannot listen on port {port}" in str(error)


def test_strangers_on_the_port_do_no_harm(port, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.2)

    def bother():
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n"):
            for _ in range(100):
                try:
                    with socket.create_connection(("localhost", port), 1) as s:
                        s.sendall(words)
                        threading.Event().wait(0.3)
                    break
                except OSError:
                    threading.Event().wait(0.02)

    stranger = threading.Thread(target=bother)
    stranger.start()

    def late():
        stranger.join(timeout=20)
        return _call(port, [(1, CARD)], 2)

    heard = []
    second = threading.Thread(target=lambda: heard.extend(late()))
    second.start()
    assert _call(port, [(0, CARD)], 2, timeout=20) == [None]
    second.join(timeout=20)
    assert heard == [None]


@pytest.mark.parametrize("missing", range(3))
def test_all_coordinates_are_given_or_none(missing, monkeypatch):
    values = ["10.0.0.2:8476", 2, 1]
    values[missing] = None
    with pytest.raises(ConfigError, match=f"{SAID[missing]} must be given with the others"):
        processes.find_place(*values)


@pytest.mark.parametrize(
    "values, sentence",
    [
        (("10.0.0.2", 2, 1), "must be HOST:PORT"),
        (("10.0.0.2:8476", 2, 2), "--process=2 is not one of 2 processes"),
    ],
)
def test_coordinates_that_cannot_be(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        processes.find_place(*values)


def test_the_environment_says_what_flags_do_not(monkeypatch):
    monkeypatch.setenv(processes.ADDRESS, "10.0.0.2:8476")
    monkeypatch.setenv(processes.COUNT, "4")
    monkeypatch.setenv(processes.INDEX, "3")
    monkeypatch.setenv(processes.LOCAL_DEVICES, "0,1")
    assert processes.find_place() == Place("10.0.0.2:8476", 4, 3, (0, 1))
    assert processes.find_place(index=2).index == 2
    monkeypatch.setenv(processes.INDEX, "three")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID='three' in the environment is not a n"):
        processes.find_place()


def test_slurm_is_found_and_a_machine_alone_is_alone(monkeypatch):
    assert processes.find_place() is None
    environment = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = processes.find_place()
    assert (place.count, place.index, place.local_devices) == (16, 9, (1,))
    assert place.coordinator.startswith("node03:")
    assert processes.find_place(detect=False) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes.find_place() is None


def test_alone_there_is_nothing_to_agree_on():
    assert processes.agree("no space") == "no space"
    assert processes.of_first([1, 2]) == [1, 2]
    assert processes.together(lambda: 7) == 7
    with pytest.raises(ConfigError, match="mine"):
        processes.together(lambda: (_ for _ in ()).throw(ConfigError("mine")))


def test_an_error_of_one_is_raised_with_its_kind(monkeypatch):
    """The others hear it by ``agree``, the kinds one after the other."""
    monkeypatch.setattr(processes, "agree", lambda trouble: trouble or "process 1 (h): theirs")
    with pytest.raises(StartError, match="theirs"):
        processes.raise_alike(None, (StartError, ConfigError))
    monkeypatch.setattr(processes, "agree", lambda trouble: trouble)
    with pytest.raises(ConfigError, match="mine"):
        processes.raise_alike(ConfigError("mine"), (StartError, ConfigError))
    processes.raise_alike(None, (StartError, ConfigError))


def test_a_card_has_the_versions_that_decide_numbers():
    card = processes.make_card(config="abc")
    assert card["config"] == "abc" and card["jax"] == jax.__version__
    assert {"python", "flax", "optax", "orbax-checkpoint", "grain", "numpy"} <= card.keys()
