"""One connection to a worker: a request out, its answer in, straight on to the client.

    IDLE --begin--> HEAD --head--> FIRST --> LENGTH | CHUNKED | UNTIL_CLOSE | PLAIN --end--> IDLE (pooled) or closed

FIRST waits for the first byte of the body, which the placement is told of. PLAIN takes the framing off for clients
of HTTP/1.0. An answer without a body ends with its head. Whatever comes that does not belong to the answer
closes the connection and is not passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, cast

from ghostcacher_router.http.ports import Receiver
from ghostcacher_router.http.protocol.framing import BadFraming, ChunkedBody, ChunkedEnd
from ghostcacher_router.http.protocol.head import HEAD_END
from ghostcacher_router.http.protocol.responses import AnswerHead, BadAnswer

if TYPE_CHECKING:
    from ghostcacher_router.upstreams.pool import WorkerPool


class Mode(IntEnum):
    """Where a connection is within an answer."""

    IDLE = 0
    HEAD = 1
    FIRST = 2
    LENGTH = 3
    CHUNKED = 4
    UNTIL_CLOSE = 5
    PLAIN = 6
    CLOSED = 7


_SWITCHING = 101
_INTERIM = range(100, 200)
_IDLE, _HEAD, _FIRST, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _PLAIN, _CLOSED = Mode


class WorkerConnection(asyncio.Protocol):
    """A connection to a worker. Loop only.

    passed_bytes: of bodies, since it was made; whoever watches over it sees whether anything moves.
    """

    __slots__ = (
        "_began",
        "_body",
        "_chunks",
        "_keep",
        "_mode",
        "_next",
        "_paused",
        "_pending",
        "_receiver",
        "_remaining",
        "_sink",
        "_withheld",
        "passed_bytes",
        "pool",
        "transport",
    )
    transport: asyncio.Transport
    _receiver: Receiver | None
    _sink: Callable[[bytes], None]

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._mode = _IDLE
        self._next = _IDLE
        self._receiver = None
        self._sink = _to_nobody
        self._pending = b""
        self._withheld: bytes | None = None
        self._remaining = 0
        self._began = False
        self._keep = False
        self._paused = False
        self._chunks: ChunkedEnd | None = None
        self._body: ChunkedBody | None = None
        self.passed_bytes = 0

    def __repr__(self) -> str:
        return f"WorkerConnection({self.pool.endpoint.url}, {self._mode.name}, passed_bytes={self.passed_bytes})"

    @property
    def usable(self) -> bool:
        return self._mode is _IDLE and not self.transport.is_closing()

    def begin(self, receiver: Receiver, head: bytes, body: bytes) -> None:
        """Write a request. The connection is idle and open."""
        self._receiver = receiver
        self._mode = _HEAD
        self._began = False
        # uvloop writes at once: two writes would be two system calls.
        if body:
            self.transport.writelines((head, body))
        else:
            self.transport.write(head)

    def abort(self) -> None:
        """Close at once, whatever is under way; the receiver hears nothing more."""
        self._detach(_CLOSED)
        self.transport.abort()

    def pause(self) -> None:
        """Read no more: the client does not keep up."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """Of the request, still to be written."""
        return self.transport.get_write_buffer_size()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
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
                self._last(data, end)
        elif mode is _LENGTH:
            remaining = self._remaining - len(data)
            self.passed_bytes += len(data)
            if remaining > 0:
                self._remaining = remaining
                self._sink(data)
            else:
                self._last(data, self._remaining)
        elif mode is _HEAD:
            self._take_head(data)
        elif mode is _FIRST:
            self._mode = self._next
            self._receiver.answer_first_byte()  # type: ignore[union-attr]
            self.data_received(data)
        elif mode is _UNTIL_CLOSE:
            self.passed_bytes += len(data)
            self._sink(data)
        elif mode is _PLAIN:
            self._take_plain(data)
        elif mode is _IDLE:
            # Nothing was asked: an answer to somebody else, or a worker gone wrong.
            self.abort()

    def eof_received(self) -> None:
        """Close, as the default is."""

    def connection_lost(self, exc: Exception | None) -> None:
        mode, receiver = self._mode, self._receiver
        began = mode is not _HEAD or self._began or self._pending != b""
        until_close = mode is _UNTIL_CLOSE or (mode is _FIRST and self._next is _UNTIL_CLOSE)
        self._detach(_CLOSED)
        self.pool.closed(self)
        if receiver is None:
            return
        if until_close and exc is None:
            receiver.answer_end(clean=True)
        else:
            receiver.answer_lost(str(exc) if exc is not None else "it closed the connection", began=began)

    # one answer

    def _take_head(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        receiver = self._receiver
        assert receiver is not None, self
        while (end := data.find(HEAD_END)) >= 0:
            end += len(HEAD_END)
            try:
                head, length = self.pool.answers.read(data[:end])
                if head.status == _SWITCHING:
                    raise BadAnswer("it switches protocols, which nobody has asked for")
            except BadAnswer as exc:
                self._bad(str(exc))
                return
            data = data[end:]
            if head.status not in _INTERIM:
                self._start_body(receiver, head, length, data)
                return
            # An interim answer says nothing that a client waits for: the front itself asks for bodies.
            self._began = True
        self._pending = data
        if len(data) > self.pool.limits.head_bytes_max:
            self._bad(f"expected a head of at most {self.pool.limits.head_bytes_max} bytes, got more")

    def _start_body(self, receiver: Receiver, head: AnswerHead, length: int | None, data: bytes) -> None:
        self._pending = b""
        self._keep = head.keep_alive
        left = 0 if receiver.no_body or head.no_body else length
        if left is not None and len(data) >= left:
            # All of it is here.
            lines, sink = receiver.answer_head(head, length, whole=True)
            if left:
                receiver.answer_first_byte()
            receiver.answer_passed_on()
            sink(lines + data[:left])
            self._finish(clean=len(data) == left)
            return
        lines, sink = receiver.answer_head(head, length, whole=False)
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
            self.data_received(data)
        else:
            receiver.answer_passed_on()
            sink(lines)

    def _pass_first(self, sink: Callable[[bytes], None], data: bytes) -> None:
        """Pass on the head together with the beginning of the body."""
        receiver, lines = self._receiver, self._withheld
        assert receiver is not None, self
        assert lines is not None, self
        self._withheld = None
        self._sink = sink
        receiver.answer_passed_on()
        sink(lines + data)

    def _pass_on(self, data: bytes) -> None:
        self._sink(data)

    def _take_plain(self, data: bytes) -> None:
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

    def _last(self, data: bytes, end: int) -> None:
        """Pass on the end of a body."""
        clean = end == len(data)
        self._sink(data if clean else data[:end])
        self._finish(clean=clean)

    def _finish(self, *, clean: bool) -> None:
        receiver, transport = self._receiver, self.transport
        assert receiver is not None, self
        if self._withheld is not None:
            self._sink(b"")  # Out of its framing the body is empty.
        # An answer that came before the whole request was written: the worker may not read the rest.
        if clean and self._keep and not transport.get_write_buffer_size() and not transport.is_closing():
            self._detach(_IDLE)
            if self._paused:
                self.resume()
            self.pool.put(self)
        else:
            self._detach(_CLOSED)
            transport.abort()
        receiver.answer_end(clean=clean)

    def _bad(self, error: str) -> None:
        receiver = self._receiver
        assert receiver is not None, self
        self.abort()
        receiver.answer_bad(error)

    def _detach(self, mode: Mode) -> None:
        self._mode = mode
        self._receiver = None
        self._pending = b""
        self._withheld = None
        self._sink = _to_nobody
        if self._chunks is not None:
            self._chunks.release()
            self._chunks = None
        if self._body is not None:
            self._body.release()
            self._body = None


def _to_nobody(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes of an answer to nobody")
