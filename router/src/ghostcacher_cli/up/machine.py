"""What servers need of this machine, looked at before they are started: ports, memory, cores, GPUs."""

from __future__ import annotations

import errno
import functools
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

GPU_PROBE_TIMEOUT_S = 120.0
"""Importing torch takes seconds, and a minute from a cold disk."""

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORTS = 10_000
PORT_TRIES = 100
_random = random.SystemRandom()
"""Of its own: where a program seeds the shared one, each of its processes would try the same ports."""

_given_ports: set[int] = set()
"""Ports that this process has handed out: a server that was given one may not listen there yet."""


class NotEnoughMemory(RuntimeError):
    """The machine has less memory available than was asked for; the message says what to do."""


def is_port_free(host: str, port: int) -> bool:
    """Say whether a server could listen there now. Raises OSError for a host that is not this machine's."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago, never the same one twice.

    Another process may take it: retry on failure.

    Where the system says which ports it gives to outgoing connections, one below those: an engine listens only when it
    has loaded, and must find its port free a minute later.
    """
    first_ephemeral = _first_ephemeral_port()
    for _ in range(PORT_TRIES if first_ephemeral >= 2 * PORTS else 0):
        port = _random.randrange(first_ephemeral - PORTS, first_ephemeral)
        if port not in _given_ports and is_port_free("127.0.0.1", port):
            _given_ports.add(port)
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_ephemeral_port() -> int:
    """Return the first port that outgoing connections may get; 0 where the system does not say."""
    try:
        return int(EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def available_gib() -> float | None:
    """Return the memory that can be used without swapping, in GiB; None where the system does not say.

    The smaller of the machine's and the container's (cgroup v2).
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        machine = int(fields["MemAvailable"].split()[0]) / (1 << 20)
    except (OSError, KeyError, ValueError):
        return None
    container = _cgroup_left_gib()
    return machine if container is None else min(machine, container)


def require_memory(gib: float, what: str, advice: str) -> None:
    """Raise NotEnoughMemory unless this much is available. advice: how to ask for less."""
    available = available_gib()
    if available is not None and available < gib:
        raise NotEnoughMemory(
            f"memory: about {gib:.1f} GiB are needed for {what}, {available:.1f} GiB are available. Close other "
            f"programs, or ask for less: {advice}"
        )


def core_shares(count: int) -> list[str]:
    """Divide the usable CPU cores among `count` engines: lists such as "0,1", disjoint while there are enough cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = max(1, len(cores) // count)
    starts = [(index * each) % len(cores) for index in range(count)]
    return [",".join(map(str, cores[start : start + each])) for start in starts]


@functools.cache
def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that engines may use, as CUDA_VISIBLE_DEVICES names them. Asks torch, in another process."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(name.strip() for name in listed.split(",") if name.strip())
    try:
        counted = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
            capture_output=True,
            text=True,
            timeout=GPU_PROBE_TIMEOUT_S,
            check=True,
        )
        return tuple(map(str, range(int(counted.stdout.split()[-1]))))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()


def _cgroup_left_gib() -> float | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return (int(limit) - used + int(stat.get("inactive_file", 0))) / (1 << 30) if limit != "max" else None
    except (OSError, ValueError):
        return None
