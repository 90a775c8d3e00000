"""A child process, as its supervisor sees it.

They talk over a socket. The first message tells the child its seat and its settings (SIZE, then JSON). Then lines:

    child -> supervisor   ready          it accepts connections
    supervisor -> child   leave          another one has its slot: it accepts no more, and ends with its last client
                          adopt I        slot I has no child: accept for it, too
                          return I       it has one again

When the supervisor is gone, the socket is closed, and the child ends in order, as at SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from struct import Struct
from typing import Final

import msgspec

from ghostcacher_router.processes.seat import Start

SIZE: Final = Struct("<I")
READY: Final = b"ready"
COMMAND: Final = (sys.executable, "-P", "-m", "ghostcacher_router.child_main")


class Child:
    """One child process. On the event loop only."""

    def __init__(
        self,
        start: Start,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        control: asyncio.StreamWriter,
    ) -> None:
        self.slot, self.name = start.seat.slot, start.seat.name
        self._process, self._control = process, control
        self._ready = asyncio.Event()
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait())
        """Returns the exit status, negative when a signal ended it."""
        self._reading = asyncio.create_task(self._read(reader))
        data = msgspec.json.encode(start)
        control.write(SIZE.pack(len(data)) + data)

    def __repr__(self) -> str:
        return f"Child({self.name}, pid={self.pid}, ready={self._ready.is_set()}, ended={self.ended.done()})"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def started(cls, start: Start) -> Child:
        """Start one, and return at once. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            files = [number for slot in start.seat.sockets for number in slot]
            try:
                # A session of its own: what a terminal sends to all of a group is the supervisor's to pass on.
                process = await asyncio.create_subprocess_exec(
                    *COMMAND,
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *files),
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return cls(start, process, *await asyncio.open_connection(sock=ours))

    async def wait_until_ready(self, within_s: float) -> bool:
        """Say whether it accepts connections; False when it has ended, or is not ready in time."""
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self.ended}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return self._ready.is_set() and not self.ended.done()

    def tell(self, line: str) -> None:
        """Send a line; nothing happens when it is gone."""
        if not self._control.is_closing():
            self._control.write(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it is gone."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end_within(self, within_s: float | None) -> int:
        """Return its exit status once it has ended; kill it when it has not in time. None: it has all the time."""
        await asyncio.wait({self.ended}, timeout=within_s)
        self.signal(signal.SIGKILL)
        status = await self.ended
        self._control.close()
        return status

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                if line.strip() == READY:
                    self._ready.set()
