"""Streams of server-sent events that break off: where their last byte lies, and the error event that ends them.

An event that a client's library takes for an error says more than a connection that closes. It is written where the
stream broke off: behind an event, or behind the line that is cut, which is ended first, so that no parser takes the
rest of one event and the error for one line. In a chunked body it goes into chunks of its own, and the body still gets
no end: the client sees the cut, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from ghostcacher_router.http.protocol.headers import HEAD_END
from ghostcacher_router.http.protocol.refusal import ANTHROPIC_PATH, Refusal, error_body

RESPONSES_PATH = "/v1/responses"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_TAIL_BYTES = max(map(len, _EVENT_ENDS))
_NUMBER = re.compile(rb'"sequence_number": ?([0-9]{1,15})')
_SIZE_LINE_BYTES_MAX = 32
"""Of the line of a chunk's size, what is kept: its digits, and not what extensions follow them."""
_LINE_END_BYTES = 2


class EventStream:
    """Passes a stream of events on to a client, and follows it, so that it can be ended where it breaks off.

    write takes the response's head first, alone or with what follows it, and then the body.
    sink: what takes it all. chunked: whether the body is passed on in its chunks.
    """

    __slots__ = ("_chunks", "_in_head", "_last", "_sink")

    def __init__(self, sink: Callable[[bytes], None], *, chunked: bool) -> None:
        self._sink = sink
        self._chunks = ChunkPosition() if chunked else None
        self._in_head = True
        self._last = b""

    def write(self, data: bytes) -> None:
        """Pass on what the worker sent, which is well-formed as far as it goes."""
        self._sink(data)
        if self._in_head:
            self._in_head = False
            data = data[data.index(HEAD_END) + len(HEAD_END) :]
        if data:
            self._last = data
            if self._chunks is not None:
                self._chunks.feed(data)

    def ending(self, path: str, refusal: Refusal) -> bytes:
        """Return what is to be written behind the last byte to tell of an error; empty where nothing can follow it.

        path: of the request; it says in whose form errors are told.
        """
        missing = 0
        passed = self._last
        if self._chunks is not None:
            if not self._chunks.extensible:
                return b""
            missing = self._chunks.missing_bytes
            # Not the framing: the line of a size and an empty line in the chunk would look like the end of an event.
            passed = self._chunks.tail
        event = error_event(path, refusal, self._last)
        if passed and not passed.endswith(_EVENT_ENDS):
            event = b"\n\n" + event
        return event if self._chunks is None else _into_chunks(event, missing)


class ChunkPosition:
    """Says where in a chunked body its last byte lies.

    missing_bytes: of the chunk that has begun, with the line end behind it; 0 between two chunks. tail: the last bytes
    of the content, as many as can end an event. extensible: whether another chunk can follow, once that one is whole:
    not within the line of a size, nor behind the last chunk.
    """

    __slots__ = ("_ended", "_line", "missing_bytes", "tail")

    def __init__(self) -> None:
        self.missing_bytes = 0
        self.tail = b""
        self._line = b""
        self._ended = False

    @property
    def extensible(self) -> bool:
        return not self._line and not self._ended

    def feed(self, data: bytes) -> None:
        """Take in bytes of the body, which are known to be well-formed."""
        if not self.missing_bytes and not self._line:
            digits = data[: data.find(b"\r\n", 0, _SIZE_LINE_BYTES_MAX)]
            content_bytes = int(digits, 16) if digits.isalnum() else 0
            if content_bytes and len(data) == len(digits) + content_bytes + 2 * _LINE_END_BYTES:
                # One whole chunk, as nearly always.
                content = data[len(digits) + _LINE_END_BYTES : -_LINE_END_BYTES]
                self.tail = (self.tail + content[-_TAIL_BYTES:])[-_TAIL_BYTES:]
                return
        place, size = 0, len(data)
        while not self._ended:
            content_end = min(size, place + self.missing_bytes - _LINE_END_BYTES)
            if content_end > place:
                self.tail = (self.tail + data[max(place, content_end - _TAIL_BYTES) : content_end])[-_TAIL_BYTES:]
            if size - place < self.missing_bytes:
                self.missing_bytes -= size - place
                return
            place += self.missing_bytes
            self.missing_bytes = 0
            if place == size:
                return
            end = data.find(b"\n", place)
            stop = size if end < 0 else end
            self._line += data[place : min(stop, place + _SIZE_LINE_BYTES_MAX)]
            if end < 0:
                self._line = self._line[:_SIZE_LINE_BYTES_MAX]
                return
            content_bytes = int(self._line.partition(b";")[0], 16)
            self._line = b""
            place = end + 1
            self._ended = content_bytes == 0
            self.missing_bytes = content_bytes + _LINE_END_BYTES


def error_event(path: str, refusal: Refusal, before: bytes) -> bytes:
    """Return the event that tells of an error, in the form of the API that `path` belongs to.

    before: the last bytes of the stream. The events of /v1/responses have numbers, and this one gets the next.
    """
    if path.startswith(ANTHROPIC_PATH):
        return b"event: error\ndata: %b\n\n" % error_body(path, refusal)
    if path.startswith(RESPONSES_PATH):
        numbers = _NUMBER.findall(before)
        error = {
            "type": "error",
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
        }
        return b"event: error\ndata: %b\n\n" % json.dumps(error).encode()
    return b"data: %b\n\n" % error_body(path, refusal)


def _into_chunks(event: bytes, missing_bytes: int) -> bytes:
    """Return an event as it goes on in a chunked body. missing_bytes: as in `ChunkPosition`."""
    if not missing_bytes:
        return _chunk(event)
    room = max(0, missing_bytes - _LINE_END_BYTES)
    if room > len(event):
        return event  # Within the chunk that stays open.
    line_end = b"\r\n"[-missing_bytes:]
    return event[:room] + line_end + (_chunk(event[room:]) if room < len(event) else b"")


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
