"""Lets clients that send long bodies be read from in turns, so that everybody else waits for a few of them only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

LONG_PIECE_BYTES: Final = 64 << 10
"""Pieces of long bodies from which on they are waited for. A body that is one such piece as a whole waits for nobody.
"""
READS_PER_TURN: Final = 4
"""Pieces of long bodies that are read in one turn of the event loop. Each is up to 256 KiB, and takes up to 1 ms where
the kernel has to find new memory for it."""


class ReadingTurns:
    """The connections that wait until they are read from again. Loop only."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Transport] = deque()

    def __repr__(self) -> str:
        return f"ReadingTurns(waiting={len(self._waiting)})"

    def took(self, transport: asyncio.Transport) -> None:
        """Read no more from a connection, of whose body a piece has come, until all that wait have had their turn."""
        transport.pause_reading()
        self._waiting.append(transport)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        for _ in range(min(READS_PER_TURN, len(self._waiting))):
            transport = self._waiting.popleft()
            if not transport.is_closing():
                transport.resume_reading()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
