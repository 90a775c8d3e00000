"""CPU time and wake-ups of processes, thread by thread, out of ``/proc``. Linux only.

The kernel counts in nanoseconds what a thread has run (``schedstat``), and so what other processes do at the same time
changes it far less than it changes elapsed time: only through what they share, caches and hyperthreads.

A wake-up is a voluntary context switch: the thread had waited and runs again. Each one of a Python thread also
asks whichever thread holds the interpreter to hand it over, so that a thread that wakes often costs more than it runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ENDED = "ended threads"
"""What a process has used in threads that ended meanwhile: known of the process, no longer of the thread."""


class Group(NamedTuple):
    """Threads that are counted together."""

    process: str
    """The role of their process, as the caller named it."""
    thread: str
    """Their name; "main" for the main thread, "unnamed" for those that bear its name."""


class Use(NamedTuple):
    """What a group of threads has used."""

    cpu_s: float
    """CPU time, in seconds."""
    wakeups: int
    """How often one of its threads had waited and ran again."""

    def __add__(self, other: object) -> Use:
        assert isinstance(other, Use)
        return Use(self.cpu_s + other.cpu_s, self.wakeups + other.wakeups)


NOTHING = Use(0.0, 0)


class Snapshot(NamedTuple):
    """What the threads of some processes have used since their start."""

    threads: dict[tuple[int, int], tuple[Group, Use]]
    """By process id and thread id."""
    processes: dict[int, tuple[str, float]]
    """Role and CPU time in seconds of each process, threads that have ended included."""

    def split(self, whole: Group, part: Group, use: Use) -> Snapshot:
        """Return the same with a part of one group's use counted as another group's."""
        key, (_, of_whole) = max(
            ((key, found) for key, found in self.threads.items() if found[0] == whole), key=lambda item: item[1][1]
        )
        pid, thread = key
        rest = Use(of_whole.cpu_s - use.cpu_s, of_whole.wakeups)
        return self._replace(threads={**self.threads, key: (whole, rest), (pid, -thread): (part, use)})


def snapshot(roles: Mapping[str, Sequence[int]]) -> Snapshot:
    """Look at all threads of some processes. roles: the ids of processes by the role that they have in the report."""
    threads: dict[tuple[int, int], tuple[Group, Use]] = {}
    processes: dict[int, tuple[str, float]] = {}
    for role, pids in roles.items():
        for pid in pids:
            found = _threads(role, pid)
            try:
                processes[pid] = role, time.clock_gettime(_cpu_clock(pid))
            except OSError:  # it has just ended
                continue
            threads.update(found)
    return Snapshot(threads, processes)


def used(before: Snapshot, after: Snapshot) -> dict[Group, Use]:
    """Return what each group has used between two snapshots of the same processes."""
    groups: dict[Group, Use] = {}
    rest: dict[str, float] = {}
    for pid, (role, cpu_s) in after.processes.items():
        rest[role] = rest.get(role, 0.0) + cpu_s - before.processes.get(pid, (role, 0.0))[1]
    for key, (group, use) in after.threads.items():
        _, earlier = before.threads.get(key, (group, NOTHING))
        gained = Use(use.cpu_s - earlier.cpu_s, use.wakeups - earlier.wakeups)
        groups[group] = groups.get(group, NOTHING) + gained
        rest[group.process] -= gained.cpu_s
    for role, cpu_s in rest.items():
        groups[Group(role, ENDED)] = Use(max(0.0, cpu_s), 0)
    return groups


def _threads(role: str, pid: int) -> dict[tuple[int, int], tuple[Group, Use]]:
    found = {}
    try:
        main_name = _name(Path(f"/proc/{pid}"))
        for folder in Path(f"/proc/{pid}/task").iterdir():
            try:
                thread, name = int(folder.name), _name(folder)
                label = "main" if thread == pid else "unnamed" if name == main_name else name
                cpu_ns = int((folder / "schedstat").read_text().split()[0])
                found[pid, thread] = Group(role, label), Use(cpu_ns / 1e9, _wakeups(folder))
            except OSError:  # the thread has just ended
                continue
    except OSError:  # the process has
        pass
    return found


def _name(folder: Path) -> str:
    return (folder / "comm").read_text(errors="replace").strip()


def _wakeups(folder: Path) -> int:
    for line in (folder / "status").read_text(errors="replace").splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


def _cpu_clock(pid: int) -> int:
    """Return the number of the clock of a process's CPU time: see clock_getcpuclockid(3)."""
    return (~pid << 3) | 2
