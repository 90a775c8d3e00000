"""What the harness starts ends with it, however it ends. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostcacher_connector.core.process.guarded import GuardedProcess, guard_command

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0

FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
"""A command that does not listen to SIGTERM, and a child of it in another session."""
FAMILY_IN_ONE_SESSION = FAMILY.replace(", start_new_session=True", "")

OWNER = """
import sys, time
from pathlib import Path
from ghostcacher_connector.core.process.guarded import GuardedProcess
process = GuardedProcess([sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2]), grace_s=1.0)
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def family_of(log: Path) -> list[int]:
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), "the command's first line")
    return [int(word) for word in log.read_text().split()]


def started(log: Path, code: str = FAMILY) -> tuple[GuardedProcess, list[int]]:
    process = GuardedProcess([sys.executable, "-c", code], log=log, grace_s=1.0)
    return process, family_of(log)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_guard_owner_dies_everything_ends(tmp_path: Path, number: signal.Signals) -> None:
    """A command, and what it left in another session, end when the process that wanted them is killed."""
    log = tmp_path / "log"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, FAMILY, str(log)], cwd=ROOT)
    family = family_of(log)
    assert all(map(alive, family))
    owner.send_signal(number)
    owner.wait(DEADLINE_S)
    wait_for(lambda: not any(map(alive, family)), f"end of {family}")


def test_guard_killed_command_ends(tmp_path: Path) -> None:
    """A guard that is killed itself takes its command along."""
    process, family = started(tmp_path / "log")
    process._guard.kill()
    wait_for(lambda: not alive(family[0]), "end of the command")
    os.kill(family[1], signal.SIGKILL)  # in a session of its own, and nobody's charge any more
    process.stop()


def test_guard_killed_owner_ends_what_the_command_has_started(tmp_path: Path) -> None:
    """As soon as it looks: nobody tells a child that its parent was killed, and an engine's keep its memory."""
    process, family = started(tmp_path / "log", FAMILY_IN_ONE_SESSION)
    process._guard.kill()
    wait_for(lambda: process.poll() == -signal.SIGKILL, "end of the guard")
    wait_for(lambda: not any(map(alive, family)), f"end of {family}")
    process.stop()


def test_guard_killed_what_the_command_has_started_ends_with_stop(tmp_path: Path) -> None:
    """Where the owner has not looked before."""
    process, family = started(tmp_path / "log", FAMILY_IN_ONE_SESSION)
    process._guard.kill()
    process.stop()
    wait_for(lambda: not any(map(alive, family)), f"end of {family}")


def test_inherited_files_are_the_commands_alone(tmp_path: Path) -> None:
    """A lock that the command inherits is free when the command is gone, though its guard may not be yet."""
    file = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    code = "import os, sys, time; os.fstat(int(sys.argv[1])); print('open', flush=True); time.sleep(600)"
    command = [*guard_command(5.0, [file]), sys.executable, "-c", code, str(file)]
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[file]
    )
    with guard:
        assert guard.stdout is not None
        assert guard.stderr is not None
        pid = int(guard.stdout.readline())
        assert guard.stderr.readline() == b"open\n"
        assert str(file) not in os.listdir(f"/proc/{guard.pid}/fd")
        assert str(file) in os.listdir(f"/proc/{pid}/fd")
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(DEADLINE_S) == 128 + signal.SIGTERM
    os.close(file)


def test_stop_command_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A command that does not end by itself within its grace is killed, with all below it, before stop returns."""
    process, family = started(tmp_path / "log")
    process.stop()
    assert not any(map(alive, family))
    assert process.poll() == 128 + signal.SIGKILL


def test_stop_paused_command_ends(tmp_path: Path) -> None:
    """A paused process can be stopped."""
    process, family = started(tmp_path / "log")
    process.pause()
    process.stop()
    assert not any(map(alive, family))


def test_kill_leaves_nothing(tmp_path: Path) -> None:
    """Kill ends the command and its descendants before it returns."""
    process, family = started(tmp_path / "log")
    process.kill()
    assert not any(map(alive, family))


def test_kill_of_what_has_ended_kills_nobody_else(tmp_path: Path) -> None:
    """Its number may be another one's by then."""
    process = GuardedProcess([sys.executable, "-c", ""], log=tmp_path / "log", grace_s=1.0)
    wait_for(lambda: process.poll() is not None, "end of the guard")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        process.pid = other.pid
        process.kill()
        other.terminate()
        assert other.wait(DEADLINE_S) == -signal.SIGTERM


def test_command_ends_by_itself_its_children_end_too(tmp_path: Path) -> None:
    """What a command leaves behind when it is killed from outside is ended by its guard."""
    process, family = started(tmp_path / "log")
    os.kill(family[0], signal.SIGKILL)
    wait_for(lambda: process.poll() is not None, "end of the guard")
    assert not any(map(alive, family))
    process.stop()


def test_command_ended_nothing_stays_open(tmp_path: Path) -> None:
    """Of a command that was seen to have ended no pipe stays open: who starts another in its place need not stop it."""
    before = os.listdir("/proc/self/fd")
    process = GuardedProcess([sys.executable, "-c", ""], log=tmp_path / "log", grace_s=1.0)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    wait_for(lambda: process.poll() is not None, "end of the guard")
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_command_missing_raises_with_its_name(tmp_path: Path) -> None:
    """A command that does not exist is an error at once, not a process that is never ready."""
    with pytest.raises(OSError, match="no-such-command"):
        GuardedProcess(["no-such-command"], log=tmp_path / "log")
