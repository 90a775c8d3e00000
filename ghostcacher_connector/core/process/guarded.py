"""A server process that dies with us: start, look at, pause, stop, kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ghostcacher_connector.core.process.guard import descendants, signal_group

GUARD = Path(__file__).with_name("guard.py")


def guard_command(grace_s: float, files: Sequence[int] = ()) -> list[str]:
    """Return what runs the command that follows it under a guard, which ends it when the guard's stdin is closed.

    grace_s: how long the command may take to end by itself. files: open files that it inherits.
    """
    return [sys.executable, "-I", "-S", str(GUARD), str(grace_s), ",".join(map(str, files))]


class GuardedProcess:
    """One command under a guard (see guard.py), in a session of its own, with its output in a file."""

    def __init__(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, grace_s: float = 15.0
    ) -> None:
        """Start the command. grace_s: how long it may take to end by itself after SIGTERM."""
        self.log = log
        self._grace_s = grace_s
        self._orphans_ended = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._guard = subprocess.Popen(  # noqa: S603
                [*guard_command(grace_s), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line.strip():
            self._guard.wait(5)
            self._close_pipes()
            raise OSError(f"{argv[0]}: could not be started; {self.log_tail(5) or 'no output'}")
        self.pid = int(line)

    def __repr__(self) -> str:
        status = self.poll()
        return f"GuardedProcess(pid={self.pid}, {'running' if status is None else f'ended with {status}'})"

    def poll(self) -> int | None:
        """Return the exit status (128 + n when it died of signal n), or None while anything of it is running.

        Negative when the guard itself was killed: the command dies with it, and its children are ended here, those that
        have not begun a session of their own.
        """
        status = self._guard.poll()
        if status is not None:
            if status < 0 and not self._orphans_ended:
                self._orphans_ended = True  # Once: later the number of the group may be another one's.
                signal_group(self.pid, signal.SIGKILL)
            self._close_pipes()
        return status

    def processes(self) -> list[int]:
        """Return the process ids of the command and all its descendants, the command first."""
        return [self.pid, *descendants(self.pid)] if self.poll() is None else []

    def cpu_s(self) -> float:
        """Return the CPU time that its living processes have used so far, in seconds. Linux only."""
        return sum(map(_cpu_s, self.processes()))

    def request_stop(self) -> None:
        """Begin to end it, and return at once."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def stop(self) -> None:
        """End it and everything that it started, paused or not; returns when all is gone. Idempotent."""
        self.request_stop()
        try:
            self._guard.wait(2 * self._grace_s + 5)
        except subprocess.TimeoutExpired:
            self.kill()
        self.poll()

    def kill(self) -> None:
        """Kill it and everything below it at once, as a power cut would; returns when all is gone. Idempotent."""
        if self.poll() is not None:
            return  # The number of its group may be another one's by now.
        targets = self.processes()
        signal_group(self.pid, signal.SIGKILL)
        for pid in targets:
            _send(pid, signal.SIGKILL)
        try:
            self._guard.wait(self._grace_s + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait(5)
        self._close_pipes()

    def pause(self) -> None:
        """Stop every process of it in its tracks (SIGSTOP)."""
        for pid in self.processes():
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let go on what `pause` stopped."""
        for pid in self.processes():
            _send(pid, signal.SIGCONT)

    def _close_pipes(self) -> None:
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.close()
        self._guard.stdout.close()

    def log_tail(self, lines: int = 30) -> str:
        """Return the end of its output."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - (64 << 10)))
            text = stream.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
