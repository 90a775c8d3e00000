"""The process that speaks for a worker: which one this is, and whether another one has ended.

An engine that crashed is mostly started again in the same place, at once. Its earlier life still has a lease on the
name, and waiting for that to end would be time without sharing: so it is looked at whether the process is still there.
"""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache
from pathlib import Path

from ghostcacher_connector.core.types import OwnerProcess
from ghostcacher_connector.transfer.nixl.host import host_id

_STARTED_AT_FIELD = 19
"""Of /proc/PID/stat behind the program's name: its start, in clock ticks since the machine's."""


def this_process() -> OwnerProcess:
    """Return what this process is called as the owner of workers; the same for as long as it lives."""
    return _process(os.getpid())


@cache
def _process(pid: int) -> OwnerProcess:
    _, started = _stat(pid) or ("", 0)
    return OwnerProcess(
        token=secrets.token_hex(16),
        host=host_id(),
        machine=socket.gethostname(),
        pid=pid,
        pid_namespace=_pid_namespace(),
        started=started,
    )


def has_ended(owner: OwnerProcess) -> bool:
    """Return whether a process is known to have ended; False for one of another machine or container."""
    own = this_process()
    if not own.pid_namespace or (owner.host, owner.pid_namespace) != (own.host, own.pid_namespace) or owner.pid <= 0:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is there, and another user's
        pass
    seen = _stat(owner.pid)
    if seen is None:
        return False
    state, started = seen
    return state in {"Z", "X"} or (owner.started > 0 and started != owner.started)


def _stat(pid: int) -> tuple[str, int] | None:
    """Return the state and the start of a process; None when the kernel does not say."""
    try:
        # The program's name is in parentheses, and may have any character in it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[_STARTED_AT_FIELD])
    except (OSError, IndexError, ValueError):
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
