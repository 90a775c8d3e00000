"""Reads what routers and workers publish, and tells the processes of one router. On the event loop only.

While the store is away, or what was published before is still being read, nobody is listened to: the processes read it
themselves, and see for themselves what is wrong. A process that does not keep up is cut off, and does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import msgspec

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.coordination.base import CoordinationStore, Cursor
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.feed.folding import Folding
from ghostcacher_router.feed.messages import SIZE, Folded, decode_wish, framed
from ghostcacher_router.ports import Clock, Offload

logger = logging.getLogger(__name__)

READ_ITEMS = 256
READ_BLOCK_S = 0.5
"""A read waits for so long for something new: an idle feed tells as often that it is there."""
PAUSE_S = 0.02
"""Between two reads: what comes meanwhile is read, and told, at once. Each costs every process as much as dozens of
items."""
BACKLOG_BYTES_MAX = 16 << 20
"""Of what one process has not taken yet: seconds of it at full load."""
WISH_BYTES_MAX = 1024
ALL_HASHES = b"\xff" * 9
"""More than any hash that is sampled: see `EvictionRegret`."""


class _Listener:
    """One process."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.hashes_below = ALL_HASHES
        self._writer = writer

    def tell(self, data: bytes) -> None:
        if self._writer.transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            logger.warning("a process does not keep up with what routers and workers publish: it reads Redis itself")
            self._writer.transport.abort()
        else:
            self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


class FeedServer:
    """The feed of one router."""

    def __init__(self, store: CoordinationStore, read_offload: Offload, path: Path, clock: Clock) -> None:
        """path: of the unix socket at which it is listened to."""
        self._store, self._offload, self._path, self._clock = store, read_offload, path, clock
        self._folding = Folding(clock)
        self._listeners: set[_Listener] = set()
        self._cursor: Cursor | None = None
        self._warm = False
        """Whether everything has been read that was published before, and the store answers."""

    def __repr__(self) -> str:
        return f"FeedServer(listeners={len(self._listeners)}, warm={self._warm})"

    async def run(self) -> None:
        """Read and tell until cancelled. Raises OSError when there can be no socket."""
        server = await asyncio.start_unix_server(self._listen, self._path)
        backoff = Backoff(0.05, 2.0)
        try:
            while True:
                try:
                    await self._step()
                    backoff.succeeded()
                except IndexUnavailable as exc:
                    logger.debug("nothing can be read: %s", exc)
                    self._let_go()
                    await asyncio.sleep(backoff.failed(self._clock()))
        finally:
            server.close()
            self._let_go()

    async def _step(self) -> None:
        if self._cursor is None:
            self._cursor = await self._offload(self._store.start_cursor)
        after = self._cursor
        batch = await self._offload(
            lambda: self._store.read(after, count=READ_ITEMS, block_s=READ_BLOCK_S if self._warm else 0.0)
        )
        below = max((listener.hashes_below for listener in self._listeners), default=b"")
        messages = self._folding.fold(batch, after, below)
        self._cursor = batch.cursor
        for message in messages if self._listeners else ():
            data = framed(message)
            for listener in self._listeners:
                listener.tell(data)
        self._warm |= batch.cursor.updates == after.updates
        if self._warm:
            await asyncio.sleep(PAUSE_S)

    def _let_go(self) -> None:
        self._warm = False
        for listener in self._listeners:
            listener.close()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell a process where it begins, then all that comes, until it leaves."""
        listener = _Listener(writer)
        if self._warm and self._cursor is not None:
            # No wait between: the next batch is read from this cursor.
            listener.tell(framed(Folded(*self._cursor)))
            self._listeners.add(listener)
            with contextlib.suppress(OSError, EOFError, msgspec.MsgspecError):
                while True:
                    (size,) = SIZE.unpack(await reader.readexactly(SIZE.size))
                    if size > WISH_BYTES_MAX:
                        break
                    listener.hashes_below = decode_wish(await reader.readexactly(size)).hashes_below
            self._listeners.discard(listener)
        listener.close()
