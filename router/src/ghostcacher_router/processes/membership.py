"""A child's place: what it has from its supervisor, and what passes between both while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from ghostcacher_connector.core.dashboard_api import HistoryPoint
from ghostcacher_router.feed.subscription import Subscription
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.http.proxy_ports import LocalEndpoints
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.processes.child import ALIVE, ALIVE_S, COUNTED, LAST_WORDS_S, POINTS, READY, SAID, SIZE
from ghostcacher_router.processes.control_lines import LINE_BYTES_MAX, ControlLines
from ghostcacher_router.processes.ended_counts import decoded_ended, encoded
from ghostcacher_router.processes.ended_history import decoded_points, encoded_points
from ghostcacher_router.processes.seat import CONTROL_BYTES_MAX, FeedStart, Seat, Start
from ghostcacher_router.processes.siblings import Siblings
from ghostcacher_router.processes.whole_router import Fared, WholeRouter

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", Start, FeedStart)

COUNTED_S = 5.0
"""From one time that a child says what it has counted to the next. One that is killed takes with it what came since.
With hundreds of workers it is a millisecond's work."""


class Told(NamedTuple):
    """What a child does at its supervisor's word."""

    leave: Callable[[], Awaitable[None]]
    """Lets all clients go, in bounded time."""
    end: Callable[[], None]
    """Has the process end in order."""


class Membership:
    """One child among the others. On the event loop, but for `receive`."""

    def __init__(self, seat: Seat, control: socket.socket) -> None:
        self.seat = seat
        self.siblings = Siblings(Path(seat.folder), seat.name)
        self._control = control
        self._sockets = [[socket.socket(fileno=number) for number in slot] for slot in seat.sockets]
        self._servers: dict[int, list[asyncio.Server]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._left = self._said_all = self._alone = False
        self._points_until: float | None = None
        """The end of the last interval of which the supervisor was told, in seconds since 1970."""
        self._ended_points: Sequence[HistoryPoint] = ()
        """How those had fared that have ended, as the supervisor said last: it says next who they are."""
        self._whole: WholeRouter | None = None

    def __repr__(self) -> str:
        return f"Membership({self.seat.name}, slots={sorted(self._servers)})"

    def whole(
        self,
        local: LocalEndpoints,
        metrics: RouterMetrics,
        fared: Fared,
        workers: Callable[[], Iterable[str]],
        *,
        shared: bool,
    ) -> WholeRouter:
        """Return what answers for all processes.

        local: answers for this one. metrics, fared: of this one. workers: returns their names. shared: whether the
        processes have a Redis.
        """
        self._whole = WholeRouter(local, metrics, fared, self.seat, self.siblings, workers=workers, shared=shared)
        return self._whole

    def shared(self) -> tuple[Subscription | None, SiblingLocks | None]:
        """Return what hears what is read from Redis for all processes, and their ghost locks; None without Redis."""
        seat, clock, locks = self.seat, time.monotonic, None
        if not seat.feed:
            return None, None
        try:
            locks = None if seat.locks is None else SiblingLocks(seat.locks, seat.generation, clock)
        except (OSError, ValueError) as exc:
            logger.warning("process %s agrees on ghost locks with others through Redis: %s", seat.name, exc)
        return Subscription(Path(seat.feed), clock), locks

    async def accept(self, proxy: HttpProxy, slot: int | None = None) -> int:
        """Have the proxy listen for a slot, the own one for None; return the port. Raises OSError."""
        slot = self.seat.slot if slot is None else slot
        if slot not in self._servers and not self._left:
            self._servers[slot] = [await proxy.start_on(bound) for bound in self._sockets[slot]]
        return int(self._sockets[slot][0].getsockname()[1])

    async def follow(self, proxy: HttpProxy, told: Told) -> None:
        """Say that this child is ready, and do what the supervisor says from now on. Raises ConfigError."""
        if self._whole is not None:
            await self.siblings.start(self._whole.answer)
        reader, writer = await asyncio.open_connection(sock=self._control, limit=LINE_BYTES_MAX)
        self._writer = writer
        writer.write(READY + b"\n" + self._counted())
        self._tasks = [
            asyncio.create_task(self._follow(ControlLines(reader, "the supervisor"), writer, proxy, told)),
            asyncio.create_task(say_alive(writer)),
            asyncio.create_task(self._say_counted(writer)),
        ]

    async def stop(self) -> None:
        """End that, in bounded time. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.siblings.stop()
        if self._writer is not None:
            await self._say_last(self._writer)
        if self._alone:
            with contextlib.suppress(OSError):  # There are others still, of whom the last one does it.
                Path(self.seat.folder).rmdir()

    async def _follow(self, lines: ControlLines, writer: asyncio.StreamWriter, proxy: HttpProxy, told: Told) -> None:
        with contextlib.suppress(OSError):
            while not self._left and (line := await lines.next()):
                await self._hear(line, proxy, told)
        if self._left:
            await self._be_counted(lines, writer, proxy, told)
        else:
            logger.warning("the supervisor is gone: process %s ends", self.seat.name)
            self._alone = True
        self._close_sockets()
        writer.close()
        told.end()

    async def _be_counted(
        self, lines: ControlLines, writer: asyncio.StreamWriter, proxy: HttpProxy, told: Told
    ) -> None:
        """Say all, and answer the others until they have been told of it: a sum that lacked it would fall."""
        writer.write(self._counted(last=True) + SAID + b"\n")
        self._said_all = True
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                while not self._is_counted and (line := await lines.next()):
                    await self._hear(line, proxy, told)
        self.siblings.stop()

    @property
    def _is_counted(self) -> bool:
        return self._whole is None or self.seat.name in self._whole.ended.names

    async def _hear(self, line: bytes, proxy: HttpProxy, told: Told) -> None:
        try:
            await self._do(line.decode().strip(), proxy, told)
        except (LookupError, ValueError) as exc:
            # It may run other code. What it says next matters more.
            logger.error("the supervisor is not understood (%.40r): %s", line, exc)

    async def _do(self, line: str, proxy: HttpProxy, told: Told) -> None:
        word, _, what = line.partition(" ")
        if word == "adopt":
            await self._adopt(proxy, int(what))
        elif word == "return":
            for server in self._servers.pop(int(what), ()):
                proxy.stop_on(server)
        elif word == "ended" and self._whole is not None:
            # At once: one of whom only the one is known would be counted twice in the other, or not at all.
            self._whole.ended, self._whole.ended_points = decoded_ended(what), self._ended_points
        elif word == "history" and self._whole is not None:
            self._ended_points = decoded_points(what)
        elif word == "leave":
            self._left = True
            self._close_sockets()
            await told.leave()

    async def _say_counted(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            await asyncio.sleep(COUNTED_S)
            # A supervisor that hangs has enough to read.
            if not self._said_all and not writer.transport.get_write_buffer_size():
                writer.write(self._counted())

    async def _say_last(self, writer: asyncio.StreamWriter) -> None:
        """Say what this process has counted if it has not left, but was sent a signal, and see that all was said."""
        if not writer.is_closing():
            if not self._said_all:
                writer.write(self._counted(last=True))
            writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await writer.wait_closed()

    def _counted(self, *, last: bool = False) -> bytes:
        """Return the lines that say what this process has counted, and how it has fared since they did so last."""
        if self._whole is None:
            return b""
        lines = COUNTED + encoded(self._whole.own_counts()) + b"\n"
        points = self._whole.own_points(self._points_until, last=last)
        if points:
            self._points_until = points[-1].at
            lines += POINTS + encoded_points(points) + b"\n"
        return lines

    async def _adopt(self, proxy: HttpProxy, slot: int) -> None:
        try:
            await self.accept(proxy, slot)
        except OSError as exc:
            logger.error("connections of slot %d wait for its next process: %s", slot, exc)

    def _close_sockets(self) -> None:
        # Nobody is to wait in a queue from which this process will not accept.
        for slot in self._sockets:
            for bound in slot:
                bound.close()


async def say_alive(writer: asyncio.StreamWriter) -> None:
    """Say to a supervisor that the event loop runs, as long as it is there."""
    while not writer.is_closing():
        writer.write(ALIVE + b"\n")
        await asyncio.sleep(ALIVE_S)


def receive(control: socket.socket, kind: type[Kind]) -> Kind:
    """Wait for the first message of a supervisor. Raises OSError, EOFError, ConfigError."""
    with control.makefile("rb", buffering=0) as stream:
        (size,) = SIZE.unpack(_exactly(stream, SIZE.size))
        if size > CONTROL_BYTES_MAX:
            raise EOFError(f"expected at most {CONTROL_BYTES_MAX} bytes of settings, got {size}")
        return msgspec.json.decode(_exactly(stream, size), type=kind)


def _exactly(stream: socket.SocketIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError("the supervisor is gone")
        data += part
    return data
