"""Listens to the feed, in one process of a router. On the event loop only."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from ghostcacher_connector.core.coordination.base import Cursor
from ghostcacher_router.feed.messages import MESSAGE_BYTES_MAX, SIZE, Folded, Wish, decode_folded, framed
from ghostcacher_router.ports import Clock

logger = logging.getLogger(__name__)

JOIN_S = 1.0
"""Between two tries to join, and how long one takes at most."""
SILENCE_S = 5.0
"""A feed that has told nothing for so long is lost: it tells several times a second, also when nothing has come."""
BUFFER_BYTES = 1 << 20


class Subscription:
    """One process's connection to the feed, made anew whenever it is lost."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """path: of the feed's unix socket."""
        self._path, self._clock = path, clock
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tried_at = float("-inf")
        self._wished: bytes | None = None

    def __repr__(self) -> str:
        return f"Subscription({self._path.name}, joined={self._writer is not None})"

    async def join(self) -> Cursor | None:
        """Return the cursor from which the feed will tell; None when it cannot be joined now. Leaves it first."""
        self.leave()
        now = self._clock()
        if now - self._tried_at < JOIN_S:
            return None
        self._tried_at = now
        try:
            async with asyncio.timeout(JOIN_S):
                self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=BUFFER_BYTES)
        except (OSError, TimeoutError) as exc:
            logger.debug("no feed: %r", exc)
            return None
        first = await self._next("tells nothing yet", logging.DEBUG)
        if first is None:
            return None
        logger.info("%s tells what routers and workers publish", self._path.name)
        return first.cursor

    async def next(self) -> Folded | None:
        """Wait for the next message, and return it; None when the feed is lost."""
        return await self._next("tells no more", logging.INFO)

    async def _next(self, lost: str, level: int) -> Folded | None:
        """lost, level: what is logged, and how, when there is none."""
        if self._reader is None:
            return None
        try:
            async with asyncio.timeout(SILENCE_S):
                (size,) = SIZE.unpack(await self._reader.readexactly(SIZE.size))
                if size > MESSAGE_BYTES_MAX:
                    raise EOFError(f"expected at most {MESSAGE_BYTES_MAX} bytes, got {size}")
                return decode_folded(await self._reader.readexactly(size))
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as exc:
            why = "it has closed the connection" if isinstance(exc, asyncio.IncompleteReadError) else repr(exc)
            logger.log(level, "%s %s: %s", self._path.name, lost, why)
        self.leave()
        return None

    def wish(self, hashes_below: bytes) -> None:
        """Have the feed tell those hashes of chains that are less, from about now on."""
        if self._writer is not None and hashes_below != self._wished:
            self._wished = hashes_below
            self._writer.write(framed(Wish(hashes_below)))

    def leave(self) -> None:
        """Listen no more, until it is joined again. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = self._wished = None
