"""Whether the process that speaks for a worker has ended, asked of real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from ghostcacher_connector.worker.owner import has_ended, this_process


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    """A process that lives as long as its input is open."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def end(child: subprocess.Popen[bytes]) -> None:
    child.communicate(timeout=60)


def test_this_process_has_one_name_and_lives() -> None:
    """The token is the same at each question, and a child has its own."""
    assert this_process() == this_process()
    assert not has_ended(this_process())
    program = "from ghostcacher_connector.worker.owner import this_process; print(this_process().token)"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() != this_process().token


def test_process_has_ended_when_it_is_gone(child: subprocess.Popen[bytes]) -> None:
    """While it runs it has not; afterwards it has."""
    owner = msgspec.structs.replace(this_process(), pid=child.pid, started=0)
    assert not has_ended(owner)
    end(child)
    assert has_ended(owner)


def test_process_that_nobody_has_waited_for_has_ended(child: subprocess.Popen[bytes]) -> None:
    """A zombie renews no lease."""
    owner = msgspec.structs.replace(this_process(), pid=child.pid, started=0)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(owner)
    child.wait(60)


def test_number_that_another_process_has_now_is_told_apart() -> None:
    """By when it started."""
    owner = msgspec.structs.replace(this_process(), started=this_process().started + 1)
    assert has_ended(owner)


@pytest.mark.parametrize(
    "changes", [{"host": "another"}, {"pid_namespace": "pid:[1]"}, {"pid": 0}, {"pid": -1}], ids=str
)
def test_in_doubt_it_has_not_ended(changes: dict[str, object]) -> None:
    """A number of another machine or container says nothing here, and one that cannot be says nothing at all."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    assert has_ended(msgspec.structs.replace(this_process(), pid=gone.pid, started=0))
    assert not has_ended(msgspec.structs.replace(this_process(), **{"pid": gone.pid, "started": 0} | changes))
