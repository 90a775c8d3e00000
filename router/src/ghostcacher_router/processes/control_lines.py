"""The lines that a supervisor and its children tell each other, as they are read."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

logger = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 16 << 20
"""Of the longest line, which says what has been counted: some thousand series at most, of workers."""


class ControlLines:
    """The lines of one sender. One that is too long is left out, and those after it are heard all the same."""

    def __init__(self, reader: asyncio.StreamReader, sender: str) -> None:
        """reader: with `LINE_BYTES_MAX` as its limit. sender: its name for people."""
        self._reader, self._sender = reader, sender
        self._left_out = 0

    def __repr__(self) -> str:
        return f"ControlLines({self._sender}, left_out={self._left_out})"

    async def next(self) -> bytes:
        """Return the next line, or what has come of it when the sender is gone; nothing when there is none.

        Raises OSError.
        """
        passed_over = 0
        while True:
            try:
                line = await self._reader.readuntil()
            except asyncio.IncompleteReadError as exc:
                line = exc.partial
            except asyncio.LimitOverrunError as exc:
                passed_over += len(await self._reader.readexactly(exc.consumed))
                continue
            if not passed_over:
                return line
            self._leave_out(passed_over + len(line))
            passed_over = 0

    def _leave_out(self, size: int) -> None:
        # What is said every few seconds is logged once.
        logger.log(
            logging.DEBUG if self._left_out else logging.WARNING,
            "a line of %s is left out, as each such line will be: expected at most %d bytes, got %d",
            self._sender,
            LINE_BYTES_MAX,
            size,
        )
        self._left_out += 1
