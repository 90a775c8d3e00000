"""Finds the id at the beginning of an answer while it is passed on. No I/O.

Engines put the id first: ``{"id": "resp_...`` in JSON, and the same within the first event of a stream; the id of a
session is all that an answer has. It is found before the client has it, so that the client's next request meets a
router that knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ghostcacher_router.http.protocol.headers import HEAD_END

LOOK_BYTES_MAX = 8192
"""How much of an answer is looked at, its head included."""

_ID = re.compile(
    rb'\{\s*"id"\s*:\s*"([!#-\[\]-~]{1,256})"|"id"\s*:\s*"((?:resp|file|batch)[-_][!#-\[\]-~]{1,250})"'
    rb'|\r\n\r\n"([!#-\[\]-~]{1,256})"'
)


class AnswerIdFinder:
    """Takes the bytes of one answer and hands them to `sink` at once; calls `found` with the id, at most once.

    The first bytes are those of the head, whole.
    """

    __slots__ = ("_found", "_looking", "_seen", "_sink")

    def __init__(self, sink: Callable[[bytes], None], found: Callable[[str], None]) -> None:
        self._sink = sink
        self._found = found
        self._seen = b""
        self._looking = True

    def __call__(self, data: bytes) -> None:
        if self._looking:
            self._look(data)
        self._sink(data)

    def _look(self, data: bytes) -> None:
        seen = self._seen + data[: LOOK_BYTES_MAX - len(self._seen)]
        body_at = seen.find(HEAD_END)
        match = None if body_at < 0 else _ID.search(seen, body_at)
        if match is not None or len(seen) >= LOOK_BYTES_MAX:
            self._looking, self._seen = False, b""
        else:
            self._seen = seen
        if match is not None:
            self._found((match[1] or match[2] or match[3]).decode("ascii"))
