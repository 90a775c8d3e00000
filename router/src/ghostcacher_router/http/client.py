"""One client's connection: requests in, one at a time and in order.

    HEAD --head--> BODY --whole--> BUSY --answered--> HEAD ...        any --error in mid-request--> LINGER --> CLOSED

Bodies are held whole, counted against one budget. While a request is answered the next ones are read, up to a limit,
so that it is seen when the client leaves. A FIN counts as leaving, as with nginx: it cannot be told from a close.
"""

from __future__ import annotations

import asyncio
import re
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, cast

from ghostcacher_router.http.answers import own_error
from ghostcacher_router.http.body import BodyIntake, body_too_large
from ghostcacher_router.http.errors import Refusal
from ghostcacher_router.http.exchange import Exchange
from ghostcacher_router.http.head import CONTINUE, HEAD_END, RequestHead, read_request_head
from ghostcacher_router.http.own import OwnAnswer

if TYPE_CHECKING:
    from ghostcacher_router.http.front import Front


class State(IntEnum):
    """Where a connection is. BUSY: a request is answered, or its answer has not been read by the client."""

    HEAD = 0
    BODY = 1
    BUSY = 2
    LINGER = 3
    CLOSED = 4


_HEAD, _BODY, _BUSY, _LINGER, _CLOSED = State
_CR = 13
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]|\0")
"""What no head may contain: found at once, where the end of a head would never come."""
_TCP_INFO_LEFT = frozenset({7, 8})
"""Linux's TCP_CLOSE and TCP_CLOSE_WAIT: the other side has closed."""


_TOO_MANY = Refusal(503, "too many connections", code="overloaded", retry_after_s=1)


class Running(Protocol):
    """What is under way for a client: `Exchange` or `OwnAnswer`."""

    request_id: bytes

    @property
    def passed_bytes(self) -> int: ...

    def start(self) -> None: ...

    def cancel(self) -> None: ...

    def expire(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """A connection to a client. Loop only. deadline: when `expired` is to be called, by the front's clock."""

    __slots__ = (
        "_front",
        "_head",
        "_held",
        "_intake",
        "_moved",
        "_moved_at",
        "_pending",
        "_read_paused",
        "_running",
        "_since",
        "_state",
        "_write_paused",
        "deadline",
        "peer",
        "transport",
        "write",
    )
    transport: asyncio.Transport
    _since: float

    def __init__(self, front: Front) -> None:
        self._front = front
        self._state = _HEAD
        self._pending = bytearray()
        self._head: RequestHead | None = None
        self._intake: BodyIntake | None = None
        self._held = 0
        self._running: Running | None = None
        self._moved = 0
        self._moved_at = 0.0
        self._read_paused = False
        self._write_paused = False
        self.peer: str | None = None

    def __repr__(self) -> str:
        return f"ClientConnection({self.peer}, {self._state.name}, pending={len(self._pending)}, {self._running!r})"

    # what is under way uses these

    @property
    def may_keep_alive(self) -> bool:
        return self._head is not None and self._head.keep_alive and not self._front.draining

    def forwarded_for(self, before: bytes | None) -> bytes:
        """Return the header X-Forwarded-For with this client's address."""
        peer = (self.peer or "unknown").encode()
        return peer if before is None else b"%b, %b" % (before, peer)

    def release_body(self) -> None:
        """The body is no longer held."""
        self._front.buffered_bytes -= self._held
        self._held = 0

    def exchange_done(self, keep: bool) -> None:
        """The answer has been written, as a whole."""
        self._running = None
        self._front.in_flight -= 1
        self._head = None
        if not keep or self._front.draining:
            self._close()
        else:
            self._next()

    def exchange_refused(self, refusal: Refusal) -> None:
        """The router answers itself; nothing has been written."""
        head, running = self._head, self._running
        assert head is not None, self
        assert running is not None, self
        keep = self.may_keep_alive
        self._write_error(refusal, head, running.request_id, keep)
        self.exchange_done(keep)

    def abort(self) -> None:
        """Close at once: what was written must not look like a whole answer."""
        self._leave()
        self.transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else None
        self._since = self._front.clock()
        self.deadline = self._since + self._front.limits.client_header_s
        if not self._front.admit(self):
            self._write_error(_TOO_MANY, None, None, False)
            self._close()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            self._take_head(data)
        elif state is _BODY:
            self._take_body(data)
        elif state is _BUSY:
            self._pending += data
            if len(self._pending) > self._front.limits.pipelined_bytes_max and not self._read_paused:
                self._read_paused = True
                self.transport.pause_reading()

    def eof_received(self) -> None:
        """Leave; asyncio closes the connection when what was written is sent."""
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._leave()
        self._front.forget(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._moved_at = self._front.clock()
        if self._running is not None:
            self._running.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._moved_at = self._front.clock()
        if self._running is not None:
            self._running.resume()
        elif self._state is _BUSY:
            self._next()

    # time

    def expired(self, now: float) -> None:
        """The deadline has passed."""
        limits = self._front.limits
        if self._state is _HEAD:
            if self._pending:
                self._refuse(Refusal(408, "the request's head did not come in time", code="timeout"))
            else:
                self._close()
        elif self._state is _BODY:
            received_bytes = 0 if self._intake is None else self._intake.received_bytes
            self.deadline = self._since + limits.client_body_s + received_bytes / limits.body_rate_min
            if now > self.deadline:
                self._refuse(Refusal(408, "the request's body did not come in time", code="timeout"))
        elif self._state is _BUSY:
            self._watch(now)
        else:
            self.transport.abort()

    def _watch(self, now: float) -> None:
        """Look after an answer that is under way."""
        running, limits = self._running, self._front.limits
        if self._read_paused and _peer_left(self.transport):
            self.abort()
        elif self._write_paused or running is None:
            if now - self._moved_at > limits.client_stall_s:
                self.abort()
        elif running.passed_bytes != self._moved:
            self._moved, self._moved_at = running.passed_bytes, now
        elif now - self._moved_at > limits.worker_silence_s:
            running.expire()

    def drain(self) -> None:
        """No more requests; the one that is under way ends in peace."""
        if self._state is _HEAD and not self._pending:
            self._close()

    # a request

    def _take_head(self, data: bytes) -> None:
        pending = self._pending
        if pending and pending[0] == _CR:
            data = bytes(pending) + data
            pending.clear()
        if pending:
            before = max(0, len(pending) - 3)
            pending += data
            end = pending.find(HEAD_END, before)
            if end < 0:
                self._wait_for_head(before)
                return
            data = bytes(pending)
            pending.clear()
        else:
            if data[0] == _CR:
                data = data[_EMPTY_LINES.match(data).end() :]  # type: ignore[union-attr]
            end = data.find(HEAD_END)
            if end < 0:
                if len(data) > 1 or data not in b"\r":
                    # Empty lines alone start no request, and so prolong nothing.
                    self.deadline = self._front.clock() + self._front.limits.client_header_s
                pending += data
                self._wait_for_head(0)
                return
        end += len(HEAD_END)
        limits = self._front.limits
        try:
            if end > limits.head_bytes_max:
                raise _head_too_large(limits.head_bytes_max)
            self._head = head = read_request_head(data[:end], limits.headers_max)
            if head.length is not None and head.length > limits.body_bytes_max:
                raise body_too_large(limits.body_bytes_max)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._start_body(head, data[end:])

    def _wait_for_head(self, before: int) -> None:
        limits = self._front.limits
        if _BARE.search(self._pending, before):
            self._refuse(Refusal(400, "malformed head of a request: bare CR, LF or NUL"))
        elif len(self._pending) > limits.head_bytes_max:
            self._refuse(_head_too_large(limits.head_bytes_max))

    def _start_body(self, head: RequestHead, data: bytes) -> None:
        length = head.length
        if length is not None and len(data) >= length:
            # All of it is here.
            if len(data) > length:
                self._pending += data[length:]
                data = data[:length]
            if self._hold(length):
                self._run(head, data)
            return
        self._state = _BODY
        self._since = self._front.clock()
        self.deadline = self._since + self._front.limits.client_body_s
        self._intake = BodyIntake(length, self._front.limits)
        if head.expects_continue:
            self.write(CONTINUE)
        if data:
            self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        intake, head = self._intake, self._head
        assert intake is not None, self
        assert head is not None, self
        try:
            intake.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if not self._hold(len(intake.content) - self._held) or not intake.over:
            return
        self._pending += intake.rest
        if intake.surplus:
            self._head = head = head._replace(keep_alive=False)
        body = bytes(intake.content)
        self._drop_intake()
        self._run(head, body)

    def _hold(self, size: int) -> bool:
        """Count bytes of a body that are held; False when there are too many: the request is refused."""
        self._held += size
        self._front.buffered_bytes += size
        if self._front.buffered_bytes <= self._front.limits.buffered_bytes_max:
            return True
        self._refuse(Refusal(503, "too many bytes of requests are held", code="overloaded", retry_after_s=1))
        return False

    def _drop_intake(self) -> None:
        if self._intake is not None:
            self._intake.release()
            self._intake = None

    def _run(self, head: RequestHead, body: bytes) -> None:
        front = self._front
        now = front.clock()
        self._state = _BUSY
        self._moved_at = now
        self.deadline = now + front.limits.tick_s
        front.in_flight += 1
        running: Running
        if front.local.match(head.method, head.path):
            running = OwnAnswer(front, self, head, body)
        else:
            running = Exchange(front, self, head, body, now)
        self._running = running
        running.start()

    def _next(self) -> None:
        """Go on to the next request, when the client has taken the answer."""
        if self._write_paused:
            return
        self._state = _HEAD
        self.deadline = self._front.clock() + self._front.limits.keep_alive_s
        if self._pending:
            asyncio.get_running_loop().call_soon(self._take_pending)

    def _take_pending(self) -> None:
        """Take what was sent ahead; in a new call, so that many small requests do not nest."""
        if self._state is _HEAD and self._pending:
            data = bytes(self._pending)
            self._pending.clear()
            self._take_head(data)
        if self._read_paused and len(self._pending) <= self._front.limits.pipelined_bytes_max:
            self._resume_reading()

    # ends

    def _write_error(self, refusal: Refusal, head: RequestHead | None, request_id: bytes | None, keep: bool) -> None:
        path = "" if head is None else head.path
        no_body = head is not None and head.method == "HEAD"
        self.write(own_error(path, refusal, request_id=request_id, keep_alive=keep, no_body=no_body))
        self._front.meter.answered(path, refusal.status)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error while the request may still be coming, and take no other."""
        self._write_error(refusal, self._head, None, False)
        self._leave()
        self._state = _LINGER
        self.deadline = self._front.clock() + self._front.limits.linger_s
        self._resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _close(self) -> None:
        """Close when what was written is sent."""
        self._leave()
        self.transport.close()

    def _leave(self) -> None:
        """Let go of everything: the client is gone, or its connection is about to be."""
        running, self._running = self._running, None
        if running is not None:
            self._front.in_flight -= 1
            running.cancel()
        self._state = _CLOSED
        self.deadline = self._front.clock() + self._front.limits.client_stall_s
        self._head = None
        self._pending.clear()
        self._drop_intake()
        self.release_body()

    def _resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()


def _head_too_large(bytes_max: int) -> Refusal:
    return Refusal(431, f"expected a head of at most {bytes_max} bytes, got more")


def _peer_left(transport: asyncio.Transport) -> bool:
    """Say whether the client has closed, behind bytes of it that are not read yet."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] in _TCP_INFO_LEFT
