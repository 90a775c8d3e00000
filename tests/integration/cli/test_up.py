"""`ghostcacher up` as a process among processes: how it starts, watches and ends others, and how it ends itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostcacher_cli.up.machine import free_port
from tests.support.index_parts import wait_until

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Up:
    """One `ghostcacher up` with tiny servers, with what it prints and what they do."""

    def __init__(self, folder: Path, *words: str, **environ: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.output = folder / "output"
        command = [sys.executable, "-m", "tests.support.up_program", str(folder), "o/m", "--port", str(self.port)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *words],
                cwd=ROOT,
                env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1", **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def journal(self) -> list[tuple[str, str, int]]:
        path = self.folder / "journal"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(word, name, int(pid)) for word, name, pid in lines]

    def pids(self, name: str = "") -> list[int]:
        return [pid for word, each, pid in self.journal if word == "start" and each.startswith(name)]

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text or self.process.poll() is not None, DEADLINE_S)
        assert text in self.text, self.text

    def end(self, *numbers: signal.Signals) -> int:
        for number in numbers:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def nothing_left(self) -> None:
        wait_until(lambda: not any(map(alive, self.pids())), DEADLINE_S)
        wait_until(lambda: not self.redis_runs(), DEADLINE_S)

    def redis_runs(self) -> bool:
        """Say whether a Redis of this folder is running."""
        socket_path = str(self.folder / "ghostcacher" / "redis.sock")
        mine = subprocess.run(["pgrep", "-f", socket_path], capture_output=True, check=False)
        return mine.returncode == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name so short that a socket fits into it."""
    with tempfile.TemporaryDirectory(prefix="gc-up-") as name:
        os.chmod(name, 0o700)
        yield Path(name)


@pytest.fixture
def ups(folder: Path) -> Iterator[list[Up]]:
    """Those that a test starts; killed after it."""
    started: list[Up] = []
    yield started
    for up in started:
        up.process.kill()
        up.process.wait(DEADLINE_S)
        up.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_until_signal_then_ends_router_first(folder: Path, ups: list[Up], number: signal.Signals) -> None:
    """All are started; a signal ends the router, then the engines, then Redis, and that is a success."""
    ups.append(up := Up(folder, "--workers", "2"))
    up.wait_for("Ready at")
    with urllib.request.urlopen(f"http://127.0.0.1:{up.port}/health", timeout=60) as reply:
        assert reply.status == 200
    assert up.redis_runs()
    assert up.end(number) == 0
    assert not any(map(alive, up.pids()))
    ends = [name for word, name, _ in up.journal if word == "term"]
    assert ends[0] == "router"
    assert sorted(ends[1:]) == ["w1", "w2"]
    up.nothing_left()


def test_up_engine_cannot_start_tells_cause_and_ends(folder: Path, ups: list[Up]) -> None:
    """An engine that fails at its first start stops all; the cause is printed, and the logs are kept."""
    ups.append(up := Up(folder, "--workers", "2", "--log-dir", str(folder / "logs"), TINY_W2="fail"))
    assert up.process.wait(DEADLINE_S) == 1
    assert "w2 ended with status 1.\nValueError: there is no such model" in up.text
    assert "All is stopped, since w2 could not be started." in up.text
    assert "no such model" in (folder / "logs" / "w2.log").read_text()
    up.nothing_left()


def test_up_crashed_engine_restarted(folder: Path, ups: list[Up]) -> None:
    """An engine that is killed is started again, and that is said; the others go on."""
    ups.append(up := Up(folder, "--workers", "2"))
    up.wait_for("Ready at")
    os.kill(up.pids("w1")[0], signal.SIGKILL)
    up.wait_for("w1: restart 1 of 5 in 1 s")
    up.wait_for("again after 1 of 5 restarts")
    assert (len(up.pids("w1")), len(up.pids("w2")), len(up.pids("router"))) == (2, 1, 1)
    assert up.end(signal.SIGTERM) == 0


def test_up_killed_leaves_nothing(folder: Path, ups: list[Up]) -> None:
    """Killed outright, it leaves no engine, no router and no Redis behind."""
    ups.append(up := Up(folder, "--workers", "2"))
    up.wait_for("Ready at")
    up.end(signal.SIGKILL)
    up.nothing_left()


def test_up_second_signal_kills_at_once(folder: Path, ups: list[Up]) -> None:
    """Whoever presses Ctrl-C twice does not wait for an engine that does not listen, however long its grace."""
    ups.append(up := Up(folder, TINY_W1="stubborn", TINY_GRACE_S="3600"))
    up.wait_for("Ready at")
    up.process.send_signal(signal.SIGINT)
    wait_until(lambda: ("term", "w1", up.pids("w1")[0]) in up.journal, DEADLINE_S)
    assert up.end(signal.SIGINT) == 0
    up.nothing_left()


def test_up_logs_printed_with_names(folder: Path, ups: list[Up]) -> None:
    """With --logs each server's lines are printed under its name."""
    ups.append(up := Up(folder, "--logs"))
    up.wait_for("Ready at")
    up.wait_for("[w1] asked for /health")
    up.wait_for("[router] asked for /health")
    assert up.end(signal.SIGTERM) == 0


def test_up_port_in_use_starts_nothing(folder: Path, ups: list[Up]) -> None:
    """A second router on one port is refused before anything is started."""
    ups.append(up := Up(folder))
    up.wait_for("Ready at")
    words = [sys.executable, "-m", "ghostcacher_cli.main", "up", "o/m", "--port", str(up.port)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert f"--port: {up.port} of 127.0.0.1 is in use" in done.stderr
