"""The start of a run over several processes: who is there, and whether all run the same thing.

JAX itself finds out where it runs (TPU pods, SLURM, GKE, MPI), or is told. Before it is started,
process 0 calls the roll on the coordinator's port: every process says who it is and what it is
about to run, and all hear the same answer. So a process that does not come is named, and hosts with
another config or other packages are found before the first compilation.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.clusters import (
    ClusterEnv,
)  # what jax.distributed.initialize asks; nothing public does
from jax.experimental import multihost_utils

from crate_jax.config import ConfigError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
"""Environment variables that say where a process belongs, where no flag does."""

PACKAGES = (
    "crate-jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
)  # fmt: skip
"""Packages whose versions must agree: they decide numbers, or the layout of what is saved."""

RETRY_SECONDS = 0.2
PATIENCE_SECONDS = 2.0  # with a caller who has connected and says nothing
LONGEST_CARD, LONGEST_TROUBLE = 2**16, 2**12  # bytes

_started: "Place | None" = None


class StartError(RuntimeError):
    """Who did not come, or what could not be reached; trying again may mend it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process belongs.

    Attributes:
      coordinator: ``host:port`` of process 0.
      count, index: processes in all, and this one.
      local_devices: the devices that are this process's own among its host's; None is all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def find_place(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float = 300,
    detect: bool = True,
) -> Place | None:
    """Where this process belongs, or None where it is alone.

    Args:
      coordinator, count, index: what the user says; what is None is read from the environment
        (``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES``, ``JAX_PROCESS_ID``), and where nothing
        is said at all, from the cluster.
      timeout: seconds that finding the coordinator may take.
      detect: whether to look for a cluster.

    Raises:
      ConfigError: when something is said, but not all, or it does not fit together.
      StartError: when a cluster's coordinator is not found.
    """
    environment = os.environ.get
    coordinator = coordinator or environment(ADDRESS)
    count = _number(count, COUNT)
    index = _number(index, INDEX)
    said = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [name for name, value in said.items() if value is None]
    if len(missing) == len(said):
        return _detect(timeout) if detect else None
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} must be given with the others of {', '.join(said)} (or "
            f"{ADDRESS}, {COUNT} and {INDEX} in the environment); give all, or none."
        )
    if not 0 <= index < count:
        raise ConfigError(
            f"--process={index} is not one of {count} processes; they are numbered from 0 to "
            f"{count - 1}."
        )
    _parse_address(coordinator)
    return Place(coordinator, count, index, _local_devices()) if count > 1 else None


def _local_devices() -> tuple[int, ...] | None:
    """The devices of its host that are this process's, where the environment says so."""
    text = os.environ.get(LOCAL_DEVICES)
    if not text:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{LOCAL_DEVICES}={text!r} must be numbers like 0,1,2,3.") from None


def _number(given: int | None, name: str) -> int | None:
    text = os.environ.get(name)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} in the environment is not a number.")
    return int(text)


def _parse_address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator!r} must be HOST:PORT, like 10.0.0.2:8476.")
    return host, int(port)


def _detect(timeout: float) -> Place | None:
    """The place that TPU metadata, SLURM, GKE or MPI gives."""
    given = _local_devices()
    try:
        coordinator, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, given, None, int(timeout)
        )
    except Exception as error:  # the metadata server's, or a name that does not resolve
        raise StartError(
            f"this looks like a cluster, but its coordinator was not found: {error}. Give "
            f"--coordinator, --processes and --process, or --distributed=off to run alone."
        ) from error
    if coordinator is None or count is None or count < 2:
        return None
    return Place(coordinator, count, index, None if local is None else tuple(local))


def make_card(**facts: str) -> dict[str, str]:
    """What must be the same on every process: ``facts``, and the versions of the packages."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return facts | versions


def start(place: Place, card: Mapping[str, str], *, timeout: float = 300) -> None:
    """Calls the roll and starts ``jax.distributed``; before anything else of JAX's.

    Args:
      place: of this process.
      card: see :func:`make_card`.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: on all processes that came, naming what differs.
      StartError: on all that came, naming those that did not.
    """
    global _started
    (_call_roll if place.index == 0 else _answer_roll)(place, dict(card), timeout)
    _started = place
    # Ours notes SIGTERM on any process and all agree on it (train.preemption); JAX's would take
    # the signal away from it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(10, int(timeout)),
    )


def started() -> Place | None:
    """The place of this process once the roll was called; None where it is alone.

    Unlike ``jax.process_index`` it waits for no other process.
    """
    return _started


def _call_roll(place: Place, card: dict[str, str], timeout: float) -> None:
    """Process 0: hears all cards, and answers each with what is wrong, or nothing."""
    _, port = _parse_address(place.coordinator)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise StartError(
            f"process 0 cannot listen on port {port} ({error.strerror}): another run on this host "
            f"may hold it. Choose another port in --coordinator."
        ) from error
    deadline = time.monotonic() + timeout
    first = {"host": socket.gethostname(), "count": place.count, "card": card}
    callers: list[_Caller] = []
    verdict = None

    def heard():
        return {0: first} | {caller.index: caller.said for caller in callers}

    with server:
        try:
            while verdict is None:
                left = deadline - time.monotonic()
                if left <= 0 or len(heard()) >= place.count:  # unless some have given up meanwhile
                    callers = [caller for caller in callers if not caller.has_hung_up()]
                if len(heard()) >= place.count:
                    verdict = {"error": compare(heard()), "missing": False}
                elif left <= 0:
                    error = _tell_missing(heard(), place.count, timeout)
                    verdict = {"error": error, "missing": True}
                else:
                    server.settimeout(left)
                    with contextlib.suppress(TimeoutError):
                        line, _ = server.accept()
                        caller = _Caller.listen(line, min(PATIENCE_SECONDS, left))
                        if caller is not None:
                            # One that gave up, or was killed, may have been started again.
                            callers = [c for c in callers if not c.is_gone_before(caller)]
                            twin = heard().get(caller.index)
                            callers.append(caller)
                            if twin is not None:
                                error = _tell_twins(caller, twin)
                                verdict = {"error": error, "missing": True}
        finally:
            for caller in callers:
                if verdict is None:  # this process is told to stop: theirs may call again
                    caller.line.close()
                else:
                    caller.tell(verdict)
    _raise(**verdict)


def _tell_twins(caller: "_Caller", other: Mapping) -> str:
    return (
        f"two processes say they are process {caller.index}, on {other['host']} and on "
        f"{caller.said['host']}; give each its own --process, or wait until the one that was "
        f"started before has ended."
    )


@dataclasses.dataclass(frozen=True)
class _Caller:
    """A process that has said its card and waits on its line for the verdict."""

    index: int
    line: socket.socket
    said: Mapping[str, Any]

    @classmethod
    def listen(cls, line: socket.socket, patience: float) -> "_Caller | None":
        """Who is on a line; None, and the line closed, where it is none of ours."""
        try:
            line.settimeout(patience)
            said = _receive(line)
            caller = cls(said.pop("index"), line, said)
            if isinstance(caller.index, int) and {"host", "count", "card"} <= said.keys():
                return caller
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        line.close()
        return None

    def is_gone_before(self, later: "_Caller") -> bool:
        """Whether ``later`` is the same process, started again after this one has ended."""
        return self.index == later.index and self.has_hung_up()

    def has_hung_up(self) -> bool:
        """Whether the process is gone: it has nothing more to say before it hears the verdict."""
        self.line.settimeout(0)
        try:
            return not self.line.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def tell(self, verdict: Mapping[str, Any]) -> None:
        """Says the verdict, and waits until the process hangs up: so the port is free at once."""
        with contextlib.suppress(OSError), self.line:
            self.line.settimeout(PATIENCE_SECONDS)
            _send(self.line, verdict)
            self.line.recv(1)


def _raise(error: str | None, missing: bool) -> None:
    if error:
        raise (StartError if missing else ConfigError)(error)


def _answer_roll(place: Place, card: dict[str, str], timeout: float) -> None:
    """Any other process: says its card and hears the verdict."""
    deadline = time.monotonic() + timeout
    said = {"index": place.index, "host": socket.gethostname(), "count": place.count, "card": card}
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise StartError(
                f"process {place.index} of {place.count} had no answer from process 0 at "
                f"{place.coordinator} within {timeout:g} s. Start process 0, or look whether the "
                f"address is right and the port open between the hosts."
            )
        try:
            with socket.create_connection(_parse_address(place.coordinator), left) as caller:
                _send(caller, said)
                # Process 0 answers when the last has come, or its own time is up.
                caller.settimeout(left + RETRY_SECONDS)
                answer = _receive(caller)
            break
        except (OSError, ValueError):  # not there yet
            time.sleep(RETRY_SECONDS)
    _raise(answer["error"], answer["missing"])


def _send(caller: socket.socket, message: Mapping[str, Any]) -> None:
    caller.sendall(json.dumps(message).encode() + b"\n")


def _receive(caller: socket.socket) -> dict:
    with caller.makefile("rb") as lines:
        return json.loads(lines.readline(LONGEST_CARD))


def _tell_missing(heard: Mapping[int, Mapping], count: int, timeout: float) -> str:
    absent = [str(i) for i in range(count) if i not in heard]
    present = [f"{i} ({heard[i]['host']})" for i in sorted(heard)]
    few = 20
    more = f" and {len(absent) - few} more" if len(absent) > few else ""
    return (
        f"{len(absent)} of {count} processes did not come within {timeout:g} s: "
        f"{', '.join(absent[:few])}{more}. There are {', '.join(present[:few])}"
        f"{' ...' if len(present) > few else ''}. Look at the log of those that are missing; "
        f"--start_timeout gives them longer."
    )


def compare(heard: Mapping[int, Mapping[str, Any]]) -> str | None:
    """What differs between the processes, a line each, or None.

    Args:
      heard: ``{process: {"host", "count", "card"}}``.
    """
    first, lines = heard[0], []
    for index, said in sorted(heard.items()):
        if said["count"] != first["count"]:
            lines.append(
                f"process {index} ({said['host']}) counts {said['count']} processes, process 0 "
                f"{first['count']}"
            )
        a, b = first["card"], said["card"]
        lines += [
            f"process {index} ({said['host']}) has {name} {b.get(name, 'none')}, process 0 "
            f"({first['host']}) {a.get(name, 'none')}"
            for name in sorted({*a, *b})
            if a.get(name) != b.get(name)
        ]
    if not lines:
        return None
    shown = "\n  ".join(lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"the processes are not alike:\n  {shown}{more}\nGive all the same code and config."


def together(work: Callable[[], Any], kinds: Sequence[type[Exception]] = (ConfigError,)) -> Any:
    """What ``work`` returns; an error of ``kinds`` that one process meets is raised on all.

    Otherwise the others would wait for ever at the next thing that takes all of them.
    """
    result, error = None, None
    try:
        result = work()
    except tuple(kinds) as raised:
        error = raised
    raise_alike(error, kinds)
    return result


def raise_alike(error: Exception | None, kinds: Sequence[type[Exception]]) -> None:
    """Raises on all processes what one has met; of several, the kind that comes first.

    Args:
      error: of one of ``kinds``, or None where this process has met none.
      kinds: their constructors take a sentence.
    """
    for kind in kinds:
        mine = isinstance(error, kind)
        told = agree((str(error) or repr(error)) if mine else "")
        if told:
            raise error if mine else kind(told)


def agree(trouble: str) -> str:
    """The trouble of the first process that has any, with its name; empty where none has."""
    if jax.process_count() == 1:
        return trouble
    if trouble:
        trouble = f"process {jax.process_index()} ({socket.gethostname()}): {trouble}"
    text = np.zeros(LONGEST_TROUBLE, np.uint8)
    encoded = np.frombuffer(trouble.encode()[:LONGEST_TROUBLE], np.uint8)
    text[: len(encoded)] = encoded
    for row in multihost_utils.process_allgather(text):
        if row.any():
            return row.tobytes().rstrip(b"\0").decode(errors="replace")
    return ""


def of_first(numbers: Sequence[int]) -> list[int]:
    """The numbers, 64 at most, that process 0 has: what it sees on disk holds for all."""
    if jax.process_count() == 1:
        return list(numbers)
    row = np.full(65, -1)
    last = list(numbers)[-64:]
    row[0], row[1 : 1 + len(last)] = len(last), last
    row = multihost_utils.broadcast_one_to_all(row)
    return [int(number) for number in row[1 : 1 + row[0]]]


def has_lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the run cannot be reached any more.

    Known by what gloo writes, which carries collectives between CPUs. On accelerators JAX's
    coordination service ends this process itself, before Python hears of it.
    """
    several = jax.process_count() > 1
    return (
        several and isinstance(error, jax.errors.JaxRuntimeError) and "gloo" in str(error).lower()
    )


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
