"""Server-sent events from the bytes of a stream. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from ghostcacher.client.errors import AnswerMalformed

EVENT_BYTES_MAX = 64 << 20
"""Of one event. The longest that engines send has the log-probabilities of a whole prompt."""
# A CR at the very end may be half a CRLF, whose other half comes with the next bytes.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event."""

    name: str
    """Its ``event`` field; empty when it has none."""
    data: str
    """Its ``data`` lines, joined."""


class EventDecoder:
    """Takes the bytes of a stream in pieces of any size, and gives whole events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._begun = False

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that end in these bytes. Raises AnswerMalformed for one that is too long."""
        searched = b"\n" in data or b"\r" in data or self._rest.endswith(b"\r")
        self._rest += data
        events = []
        if searched:
            *lines, rest = _LINE_END.split(bytes(self._rest))
            self._rest = bytearray(rest)
            events = [event for line in lines if (event := self._line(line)) is not None]
        if self._size + len(self._rest) > EVENT_BYTES_MAX:
            raise AnswerMalformed(f"expected events of at most {EVENT_BYTES_MAX} bytes, got a longer one")
        return events

    def _line(self, line: bytes) -> Event | None:
        """Take one line; return the event that it ends."""
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        self._size += len(line)
        if not line:
            event = Event(self._name, "\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = "", [], 0
            return event
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None
