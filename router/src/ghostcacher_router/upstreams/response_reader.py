"""Reads the responses on one connection to a worker, and passes each on as it comes. No I/O of its own.

    IDLE --begin--> HEAD --head--> FIRST --> LENGTH | CHUNKED | UNTIL_CLOSE | PLAIN --end--> IDLE or CLOSED

FIRST waits for the first byte of the body, of which the receiver is told. PLAIN takes the framing off for clients of
HTTP/1.0. A response without a body ends with its head. Whatever comes that does not belong to the response is not
passed on, and the connection is not used again. What follows a switch to WebSocket is read as a body that ends with the
connection.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Protocol

from ghostcacher_router.http.protocol.framing import BadFraming, ChunkedBody, ChunkedEnd
from ghostcacher_router.http.protocol.headers import HEAD_END
from ghostcacher_router.http.protocol.response_head import (
    INTERIM,
    SWITCHING,
    BadResponse,
    ResponseHead,
    ResponseHeads,
)
from ghostcacher_router.upstreams.response_receiver import ResponseReceiver, Sink


class Mode(IntEnum):
    """Where a connection is within a response."""

    IDLE = 0
    HEAD = 1
    FIRST = 2
    LENGTH = 3
    CHUNKED = 4
    UNTIL_CLOSE = 5
    PLAIN = 6
    CLOSED = 7


_LAST_CHUNK = b"0\r\n\r\n"
INTERIM_COUNT_MAX = 256
"""Interim responses before one response. Some servers send one every few seconds of a long computation."""
_IDLE, _HEAD, _FIRST, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _PLAIN, _CLOSED = Mode


class ReaderOwner(Protocol):
    """What a reader asks of the connection whose bytes it reads."""

    def response_read(self, *, reusable: bool) -> None:
        """The response is over. reusable: both sides are ready for another request.

        The owner calls the reader's `detach`, before the receiver hears of the end.
        """

    def abort(self) -> None:
        """Close the connection, and call the reader's `detach`."""


class ResponseReader:
    """Finds head, body and end of one response after the other.

    passed_bytes: of the body of the response; whoever watches over it sees whether anything moves.
    """

    __slots__ = (
        "_body",
        "_chunks",
        "_head_bytes",
        "_head_bytes_max",
        "_heads",
        "_interim_count",
        "_keep",
        "_mode",
        "_next",
        "_owner",
        "_pending",
        "_receiver",
        "_remaining",
        "_sink",
        "_withheld",
        "passed_bytes",
    )
    _receiver: ResponseReceiver | None
    _sink: Sink

    def __init__(self, heads: ResponseHeads, head_bytes_max: int, owner: ReaderOwner) -> None:
        self._heads = heads
        self._head_bytes_max = head_bytes_max
        self._owner: ReaderOwner | None = owner
        """None once the stream has ended."""
        self._mode = _IDLE
        self._next = _IDLE
        self._receiver = None
        self._sink = _to_nobody
        self._pending = bytearray()
        self._head_bytes = 0
        self._interim_count = 0
        self._withheld: bytes | None = None
        self._remaining = 0
        self._keep = False
        self._chunks: ChunkedEnd | None = None
        self._body: ChunkedBody | None = None
        self.passed_bytes = 0

    def __repr__(self) -> str:
        return f"ResponseReader({self._mode.name}, passed_bytes={self.passed_bytes})"

    def begin(self, receiver: ResponseReceiver) -> None:
        """Expect the response to a request that is about to be written. Nothing else is under way."""
        self._receiver = receiver
        self.passed_bytes = 0
        self._mode = _HEAD
        self._head_bytes = self._interim_count = 0

    def feed(self, data: bytes) -> None:
        """Take in what the worker sent."""
        mode = self._mode
        if mode is _CHUNKED:
            try:
                end = self._chunks.feed(data)  # type: ignore[union-attr]
            except BadFraming as exc:
                self._bad(str(exc))
                return
            self.passed_bytes += len(data)
            if end is None:
                self._sink(data)
            else:
                self._pass_last(data, end)
        elif mode is _LENGTH:
            remaining = self._remaining - len(data)
            self.passed_bytes += len(data)
            if remaining > 0:
                self._remaining = remaining
                self._sink(data)
            else:
                self._pass_last(data, self._remaining)
        elif mode is _HEAD:
            self._feed_head(data)
        elif mode is _FIRST:
            self._mode = self._next
            self._receiver.response_first_byte()  # type: ignore[union-attr]
            self.feed(data)
        elif mode is _UNTIL_CLOSE:
            self.passed_bytes += len(data)
            self._sink(data)
        elif mode is _PLAIN:
            self._feed_plain(data)
        elif mode is _IDLE:
            # Nothing was asked: a response to somebody else, or a worker gone wrong.
            assert self._owner is not None, self
            self._owner.abort()

    def end_of_stream(self, error: str | None) -> None:
        """Nothing more comes. error: why the connection broke; None when the worker closed it."""
        mode, receiver = self._mode, self._receiver
        began = mode is not _HEAD or self._head_bytes > 0 or len(self._pending) > 0
        until_close = mode is _UNTIL_CLOSE or (mode is _FIRST and self._next is _UNTIL_CLOSE)
        self.detach(reusable=False)
        self._owner = None  # It refers to this object, too: nothing is left for the garbage collector.
        if receiver is None:
            return
        if until_close and error is None:
            receiver.response_end(clean=True)
        else:
            receiver.response_lost("it closed the connection" if error is None else error, began=began)

    def detach(self, *, reusable: bool) -> None:
        """Let go of the receiver, which hears nothing more. reusable: another response may be read."""
        self._mode = _IDLE if reusable else _CLOSED
        self._receiver = None
        self._pending.clear()
        self._withheld = None
        self._sink = _to_nobody
        if self._chunks is not None:
            self._chunks.release()
            self._chunks = None
        if self._body is not None:
            self._body.release()
            self._body = None

    def _feed_head(self, data: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None, self
        pending, start, searched = self._pending, 0, 0
        if not pending and not self._head_bytes:
            last = self._heads.last_in(data, self._head_bytes_max)
            if last is not None:
                head, length, end = last
                self._head_bytes = end
                self._start_body(receiver, head, length, data[end:])
                return
        buffer: bytes | bytearray = data
        if pending:
            searched = max(0, len(pending) - len(HEAD_END) + 1)
            pending += data
            buffer = pending
        while (end := buffer.find(HEAD_END, searched)) >= 0:
            end += len(HEAD_END)
            self._head_bytes += end - start
            if self._refuse_long_head(self._head_bytes):
                return
            try:
                head, length = self._heads.parse(bytes(buffer[start:end]))
                if head.status == SWITCHING and not (head.websocket and receiver.switching):
                    raise BadResponse("it switches protocols, which nobody has asked for")
                if head.status in INTERIM and not head.websocket:
                    self._count_interim()
            except BadResponse as exc:
                self._bad(str(exc))
                return
            if head.status not in INTERIM or head.websocket:
                self._start_body(receiver, head, length, bytes(buffer[end:]))
                return
            start = searched = end
        if buffer is pending:
            del pending[:start]
        else:
            pending += data[start:]
        self._refuse_long_head(self._head_bytes + len(pending))

    def _count_interim(self) -> None:
        """Note an interim response, which says nothing that a client waits for: the proxy itself asks for bodies."""
        self._interim_count += 1
        if self._interim_count > INTERIM_COUNT_MAX:
            raise BadResponse(f"expected at most {INTERIM_COUNT_MAX} interim responses before it, got more")

    def _refuse_long_head(self, size: int) -> bool:
        """Refuse a response whose heads, the interim ones with it, have more bytes than a head may have."""
        if size <= self._head_bytes_max:
            return False
        self._bad(f"expected a head of at most {self._head_bytes_max} bytes, got more")
        return True

    def _start_body(self, receiver: ResponseReceiver, head: ResponseHead, length: int | None, data: bytes) -> None:
        self._pending.clear()
        self._keep = head.keep_alive
        left = 0 if receiver.no_body or head.no_body else length
        if left is not None and len(data) >= left:
            # All of it is here.
            lines, sink = receiver.response_head(head, length, whole=True)
            if left:
                receiver.response_first_byte()
            receiver.response_begins()
            sink(lines + data[:left])
            self._finish(clean=len(data) == left)
            return
        if head.chunked and left is None and not receiver.plain and data.endswith(_LAST_CHUNK) and _is_whole(data):
            lines, sink = receiver.response_head(head, length, whole=True)
            receiver.response_first_byte()
            receiver.response_begins()
            sink(lines + data)
            self._finish(clean=True)
            return
        lines, sink = receiver.response_head(head, length, whole=False)
        self._mode = _FIRST
        self._sink = sink
        if head.chunked and receiver.plain:
            self._next = _PLAIN
            self._body = ChunkedBody(self._pass_on, of_request=False)
        elif head.chunked:
            self._next = _CHUNKED
            self._chunks = ChunkedEnd()
        elif left is None:
            self._next = _UNTIL_CLOSE
        else:
            self._next = _LENGTH
            self._remaining = left
        if data:
            self._withheld = lines
            self._sink = partial(self._pass_first, sink)
            self.feed(data)
        else:
            receiver.response_begins()
            sink(lines)

    def _pass_first(self, sink: Sink, data: bytes) -> None:
        """Pass on the head together with the beginning of the body."""
        receiver, lines = self._receiver, self._withheld
        assert receiver is not None, self
        assert lines is not None, self
        self._withheld = None
        self._sink = sink
        receiver.response_begins()
        sink(lines + data)

    def _pass_on(self, data: bytes) -> None:
        self._sink(data)

    def _feed_plain(self, data: bytes) -> None:
        body = self._body
        assert body is not None, self
        self.passed_bytes += len(data)
        try:
            body.feed(data)
        except BadFraming as exc:
            self._bad(str(exc))
            return
        if body.over:
            self._finish(clean=not body.surplus)

    def _pass_last(self, data: bytes, end: int) -> None:
        """Pass on the end of a body."""
        clean = end == len(data)
        self._sink(data if clean else data[:end])
        self._finish(clean=clean)

    def _finish(self, *, clean: bool) -> None:
        receiver, owner = self._receiver, self._owner
        assert receiver is not None, self
        assert owner is not None, self
        if self._withheld is not None:
            self._sink(b"")  # Out of its framing the body is empty.
        owner.response_read(reusable=clean and self._keep)
        receiver.response_end(clean=clean)

    def _bad(self, error: str) -> None:
        receiver, owner = self._receiver, self._owner
        assert receiver is not None, self
        assert owner is not None, self
        owner.abort()
        receiver.response_bad(error)


def _is_whole(body: bytes) -> bool:
    """Say whether these are all the bytes of a chunked body, with nothing behind it."""
    chunks = ChunkedEnd()
    try:
        return chunks.feed(body) == len(body)
    except BadFraming:
        return False  # How far it can be passed on is found out piece by piece.
    finally:
        chunks.release()


def _to_nobody(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes of a response to nobody")
