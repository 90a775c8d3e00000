"""The test's side of `kv_owner`: starts the process, sends commands, reads replies with a deadline."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from ghostcacher_connector.core.types import RankEndpoint
from tests.support.open_files import wait_readable

ROOT = Path(__file__).resolve().parents[2]
REPLY_S = 120.0
"""Starting two interpreters with NIXL takes seconds, and many times that on a crowded machine."""


class OwnerProcess:
    """A running owner. Use as a context manager: it is killed at the end, stopped or not."""

    def __init__(self, options: dict[str, Any] | None = None, *, prefix: tuple[str, ...] = ()) -> None:
        """options: as `kv_owner` takes them. prefix: a command to run it under, such as ``ip netns exec``."""
        command = [*prefix, sys.executable, "-m", "tests.support.kv_owner", json.dumps(options or {})]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._pending = b""
        try:
            first = self.reply()
        except BaseException:
            self.__exit__()
            raise
        self.relay_pid: int | None = first["relay_pid"]
        self.endpoint = _endpoint_in(first)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, command: str, slots: Any = (), generations: Any = ()) -> None:
        """Send a command without waiting for its reply."""
        message = {
            "command": command,
            "slots": [int(slot) for slot in slots],
            "generations": [int(generation) for generation in generations],
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def call(self, command: str, slots: Any = (), generations: Any = ()) -> dict[str, Any]:
        self.send(command, slots, generations)
        return self.reply()

    def renew(self) -> None:
        """Become a new incarnation."""
        self.endpoint = _endpoint_in(self.call("renew"))

    def reply(self) -> dict[str, Any]:
        """Return the next reply; skips what libraries print."""
        assert self._process.stdout is not None
        until = time.monotonic() + REPLY_S
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                if line.startswith(b"@"):
                    answer: dict[str, Any] = json.loads(line[1:])
                    return answer
            ready = wait_readable(self._process.stdout, until - time.monotonic())
            assert ready, f"owner {self.pid} did not answer within {REPLY_S} s"
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"owner {self.pid} ended with status {self._process.wait()}"
            self._pending += data

    def stop(self) -> None:
        """Stop the process, and wait until it stands still."""
        stop_process(self.pid)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait(60)

    def __enter__(self) -> OwnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def stop_process(pid: int) -> None:
    """Send SIGSTOP and wait until every thread of the process has stopped: they do so one by one."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 60
    while any(_state(task) != "T" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < until, f"process {pid} did not stop"
        time.sleep(0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


def _endpoint_in(reply: dict[str, Any]) -> RankEndpoint:
    return msgspec.msgpack.decode(base64.b64decode(reply["endpoint"]), type=RankEndpoint)
