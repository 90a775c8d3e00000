"""Runs one command and sees to it that nothing of it outlives the process that asked for it.

    parent --(pipe to stdin)--> guard --> command (leader of a session of its own) --> its children, whoever they are

The guard ends the command when the pipe is closed or when its parent is gone, whatever killed that parent. Closing the
pipe is all that a parent has to do, and the kernel does it for a parent that was killed. (PR_SET_PDEATHSIG would
not do: it fires when the *thread* that started the child ends, and it does not reach grandchildren. It is set for the
command, though: the guard has one thread, and the command shall not outlive a guard that was killed. Its children
are then ended by the parent, if that is there: `GuardedProcess.poll`.)

The guard is a child subreaper (Linux): processes that the command leaves behind become its own, and are killed too.

Started as a script, so that it costs one small interpreter: ``python -I -S guard.py GRACE_S FILES COMMAND...``. FILES
are numbers of open files, separated by commas, that the command inherits and the guard does not keep. Writes the
command's process id to stdout, its output goes to stderr. Exits with the command's status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

POLL_S = 0.1
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below `root`, parents before children. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(root, []))
    for pid in found:
        found += children.get(pid, [])
    return found


def signal_group(leader: int, number: int) -> None:
    """Send a signal to a process group; nothing happens when it is gone, or is another user's by now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _reap() -> None:
    """Collect what became ours; the command itself is collected by Popen."""
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return


def _wait_for_end(command: subprocess.Popen[bytes], parent: int) -> None:
    """Return when the command has ended or its parent wants it to."""
    while command.poll() is None and os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable and not os.read(0, 4096):
            return


def _end(command: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the command and everything below it: politely first, then at once."""
    if command.poll() is None:
        signal_group(command.pid, signal.SIGTERM)
        signal_group(command.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(grace_s)
    deadline = time.monotonic() + grace_s
    while (command.poll() is None or descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        command.poll()
        _reap()
        time.sleep(POLL_S / 5)


def main() -> int:
    parent = os.getppid()
    grace_s, numbers, *argv = sys.argv[1:]
    files = [int(number) for number in numbers.split(",") if number]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe decides, so that a parent can end things in its own order
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = subprocess.Popen(  # noqa: S603
        argv,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        pass_fds=files,
        preexec_fn=_default_signals,  # noqa: PLW1509
    )
    for file in files:
        os.close(file)
    print(command.pid, flush=True)
    _wait_for_end(command, parent)
    _end(command, float(grace_s))
    status = command.poll()
    return 1 if status is None else status if status >= 0 else 128 - status


def _default_signals() -> None:
    """In the command, before it starts (one thread, so this is safe): a session of its own, signals as usual."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
