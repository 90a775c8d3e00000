"""A child process, as its supervisor sees it.

They talk over a socket. The first message tells the child its seat and its settings (SIZE, then JSON). Then lines:

    child -> supervisor   ready          it accepts connections
                          alive          every second: its event loop runs
                          counted C      every few seconds, and before it ends in order: what it has counted so far
                          points P       as often: how it has fared since it said so last
                          said           its last client is gone: that was all; it waits for an `ended` with its name
    supervisor -> child   leave          another one has its slot: it accepts no more, and ends with its last client
                          history P      how those had fared that have ended before
                          ended E        what these had counted, all together; with the history before it
                          adopt I        slot I has no child: accept for it, too
                          return I       it has one again

When the supervisor is gone, the socket is closed, and the child ends in order, as at SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from struct import Struct
from typing import Final

import msgspec

from ghostcacher_router.processes.control_lines import LINE_BYTES_MAX, ControlLines
from ghostcacher_router.processes.seat import FeedStart, Start

logger = logging.getLogger(__name__)

SIZE: Final = Struct("<I")
READY: Final = b"ready"
ALIVE: Final = b"alive"
ALIVE_S: Final = 1.0
"""From one such line to the next."""
COUNTED: Final = b"counted "
POINTS: Final = b"points "
SAID: Final = b"said"
POINTS_LINES_MAX: Final = 720
"""Of one process: an hour of them."""
LAST_WORDS_S: Final = 5.0
"""What a child has said before it ended is there, and has yet to be read."""
PROGRAMS: Final = {Start: "ghostcacher_router.child_main", FeedStart: "ghostcacher_router.feed_main"}


class Child:
    """One child process. On the event loop only."""

    def __init__(
        self,
        start: Start | FeedStart,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        control: asyncio.StreamWriter,
    ) -> None:
        self.name = start.name
        self._process, self._control = process, control
        self._ready = asyncio.Event()
        self._heard_at = asyncio.get_running_loop().time()
        self.counted = b""
        """What it has counted, as it said last (`ended_counts`); empty before it has."""
        self.points = deque[bytes](maxlen=POINTS_LINES_MAX)
        """How it has fared, in the lines in which it said so (`ended_history`)."""
        self._said_all = asyncio.Event()
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait())
        """Returns the exit status, negative when a signal ended it."""
        self._reading = asyncio.create_task(self._read(ControlLines(reader, f"process {start.name}")))
        data = msgspec.json.encode(start)
        control.write(SIZE.pack(len(data)) + data)

    def __repr__(self) -> str:
        return f"Child({self.name}, pid={self.pid}, ready={self._ready.is_set()}, ended={self.ended.done()})"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def started(cls, start: Start | FeedStart) -> Child:
        """Start one, and return at once. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # A session of its own: what a terminal sends to all of a group is the supervisor's to pass on.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", PROGRAMS[type(start)]),
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *start.files),
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return cls(start, process, *await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX))

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

    async def has_said_all(self, within_s: float) -> bool:
        """Say whether it has said so within so long, or has closed its side of the socket, and before it has ended.

        What it has started may keep that open for longer than it is there itself.
        """
        said_all = asyncio.create_task(self._said_all.wait())
        await asyncio.wait({said_all, self.ended}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        said_all.cancel()
        return self._said_all.is_set()

    async def end_within(self, within_s: float) -> int:
        """Return its exit status once it has ended; kill it when it has not in time."""
        await asyncio.wait({self.ended}, timeout=within_s)
        self.signal(signal.SIGKILL)
        status = await self.ended
        await asyncio.wait({self._reading}, timeout=LAST_WORDS_S)
        self._control.close()
        return status

    async def end_or_silence(self, silence_s: float) -> int:
        """Return its exit status once it has ended; kill it when it has said nothing for so long."""
        while not self.ended.done() and self._silent_s < silence_s:
            await asyncio.wait({self.ended}, timeout=silence_s - self._silent_s)
            if self._silent_s >= silence_s:
                # It may be us who were held up: what it has said meanwhile is heard now.
                await asyncio.wait({self.ended}, timeout=ALIVE_S)
        if not self.ended.done():
            logger.error("process %s (%d) hangs: it has said nothing for %.0f s", self.name, self.pid, self._silent_s)
        return await self.end_within(0.0)

    @property
    def _silent_s(self) -> float:
        return asyncio.get_running_loop().time() - self._heard_at

    async def _read(self, lines: ControlLines) -> None:
        with contextlib.suppress(OSError):
            while line := await lines.next():
                self._heard_at = asyncio.get_running_loop().time()
                if not line.endswith(b"\n"):
                    break  # One that is killed may break off.
                if line.startswith(COUNTED):
                    self.counted = line.removeprefix(COUNTED)
                elif line.startswith(POINTS):
                    self.points.append(line.removeprefix(POINTS))
                elif line.strip() == READY:
                    self._ready.set()
                elif line.strip() == SAID:
                    self._said_all.set()
        self._said_all.set()
