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
PATIENCE_SECONDS = 5.0  # with a caller who has connected and says nothing
LONGEST_CARD, LONGEST_TROUBLE = 2**16, 2**12  # bytes


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
    (_call_roll if place.index == 0 else _answer_roll)(place, dict(card), timeout)
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
    callers: list[socket.socket] = []
    heard = {0: {"host": socket.gethostname(), "count": place.count, "card": card}}
    error, missing = None, False
    with server:
        try:
            while len(heard) < place.count and error is None:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    caller, _ = server.accept()
                except TimeoutError:
                    error, missing = _tell_missing(heard, place.count, timeout), True
                    break
                try:
                    caller.settimeout(PATIENCE_SECONDS)
                    said = _receive(caller)
                    index = said.pop("index")
                except (OSError, ValueError, KeyError, TypeError):  # none of ours
                    caller.close()
                    continue
                callers.append(caller)
                if index in heard:
                    error = (
                        f"two processes say they are process {index}, on {heard[index]['host']} "
                        f"and on {said['host']}; give each its own --process."
                    )
                heard[index] = said
            error = error or compare(heard)
        finally:
            for caller in callers:
                with contextlib.suppress(OSError), caller:
                    _send(caller, {"error": error, "missing": missing})
                    caller.recv(1)  # until they hang up, so that the port is free at once
    _raise(error, missing)


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


def together(work: Callable[[], Any]) -> Any:
    """What ``work`` returns; a ConfigError of one process is raised on all.

    Otherwise the others would wait for ever at the next thing that takes all of them.
    """
    result, error = None, None
    try:
        result = work()
    except ConfigError as raised:
        error = raised
    told = agree(str(error or ""))
    if error is not None:
        raise error
    if told:
        raise ConfigError(told)
    return result


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


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
