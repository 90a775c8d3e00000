"""Free ports and memory: what a server needs before it is worth starting."""

from __future__ import annotations

import os
import socket
from pathlib import Path


class NotEnoughMemory(RuntimeError):
    """The machine has less memory available than was asked for; the message says what to do."""


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago. Another process may take it: retry on failure."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def require_memory(gib: float, what: str) -> None:
    """Raise NotEnoughMemory unless this much is available."""
    available = available_gib()
    if available is not None and available < gib:
        raise NotEnoughMemory(
            f"memory: {what} needs about {gib:.1f} GiB, {available:.1f} GiB are available. Close other programs, or "
            "ask for less: a smaller model (--size tiny), fewer tokens (--tokens), or a smaller KV cache (--kv-gib)"
        )


def core_shares(count: int) -> list[str]:
    """Divide the usable CPU cores among `count` engines: lists such as "0,1", disjoint while there are enough cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = max(1, len(cores) // count)
    starts = [(index * each) % len(cores) for index in range(count)]
    return [",".join(map(str, cores[start : start + each])) for start in starts]


def _cgroup_left_gib() -> float | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return (int(limit) - used + int(stat.get("inactive_file", 0))) / (1 << 30) if limit != "max" else None
    except (OSError, ValueError):
        return None
