"""One client's connection: requests in, one at a time and in order.

    HEAD --head--> BODY --whole--> BUSY --answered--> HEAD ...        any --error in mid-request--> LINGER --> CLOSED

Bodies are held whole, counted against one budget. While a request is answered the next ones are read, up to a limit,
so that it is seen when the client leaves. A FIN counts as leaving, as with nginx: it cannot be told from a close.
"""

from __future__ import annotations

import asyncio
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from ghostcacher_router.http.errors import Refusal
from ghostcacher_router.http.exchange import Exchange
from ghostcacher_router.http.local_response import OwnAnswer
from ghostcacher_router.http.ports import Running
from ghostcacher_router.http.protocol.head import CONTINUE, RequestHead
from ghostcacher_router.http.protocol.request_reader import BodyIntake, HeadIntake, body_too_large
from ghostcacher_router.http.protocol.responses import own_error

if TYPE_CHECKING:
    from ghostcacher_router.http.proxy import Front


class State(IntEnum):
    """Where a connection is. BUSY: a request is answered, or its answer has not been read by the client."""

    HEAD = 0
    BODY = 1
    BUSY = 2
    LINGER = 3
    CLOSED = 4


_HEAD, _BODY, _BUSY, _LINGER, _CLOSED = State
_TCP_INFO_LEFT = frozenset({7, 8})
"""Linux's TCP_CLOSE and TCP_CLOSE_WAIT: the other side has closed."""


_TOO_MANY = Refusal(503, "too many connections", code="overloaded", retry_after_s=1)


class ClientConnection(asyncio.Protocol):
    """A connection to a client. Loop only. deadline: when `expired` is to be called, by the front's clock."""

    __slots__ = (
        "_begun",
        "_front",
        "_head",
        "_heads",
        "_held",
        "_intake",
        "_keep",
        "_moved",
        "_moved_at",
        "_peer_bytes",
        "_read_paused",
        "_running",
        "_seen_bytes",
        "_state",
        "_write_paused",
        "deadline",
        "peer",
        "transport",
        "write",
    )
    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front
        self._state = _HEAD
        self._heads = HeadIntake(front.limits)
        self._head: RequestHead | None = None
        self._begun = False
        self._keep = False
        self._intake: BodyIntake | None = None
        self._held = 0
        self._seen_bytes = 0
        self._running: Running | None = None
        self._moved = 0
        self._moved_at = 0.0
        self._read_paused = False
        self._write_paused = False
        self.peer: str | None = None

    def __repr__(self) -> str:
        return (
            f"ClientConnection({self.peer}, {self._state.name}, pending={len(self._heads.pending)}, {self._running!r})"
        )

    # what is under way uses these

    @property
    def may_keep_alive(self) -> bool:
        return self._keep and not self._front.draining

    def forwarded_for(self, before: bytes | None) -> bytes:
        """Return the header X-Forwarded-For with this client's address."""
        return self._peer_bytes if before is None else b"%b, %b" % (before, self._peer_bytes)

    def release_body(self) -> None:
        """The body is no longer held."""
        self._front.buffered_bytes -= self._held
        self._held = 0

    def exchange_done(self, keep: bool) -> None:
        """The answer has been written, as a whole."""
        front = self._front
        self._running = self._head = None
        front.in_flight -= 1
        front.buffered_bytes -= self._held
        self._held = 0
        if not keep or front.draining:
            self._close()
        elif not self._write_paused:
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
        self._peer_bytes = (self.peer or "unknown").encode()
        self.deadline = self._front.clock() + self._front.limits.client_header_s
        if not self._front.admit(self):
            self._write_error(_TOO_MANY, None, None, False)
            self._close()
        elif self._front.draining:
            self._close()  # It was accepted before the front ceased to listen.

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            self._take_head(data)
        elif state is _BODY:
            self._take_body(data)
        elif state is _BUSY:
            self._heads.pending += data
            if len(self._heads.pending) > self._front.limits.pipelined_bytes_max and not self._read_paused:
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
            if self._heads.pending:
                self._refuse(Refusal(408, "the request's head did not come in time", code="timeout"))
            else:
                self._close()
        elif self._state is _BODY:
            received_bytes = 0 if self._intake is None else self._intake.received_bytes
            if received_bytes - self._seen_bytes < limits.client_body_s * limits.body_rate_min:
                self._refuse(Refusal(408, "the request's body did not come in time", code="timeout"))
            else:
                # What came fast earns no time to be silent.
                self._seen_bytes = received_bytes
                self.deadline = now + limits.client_body_s
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
        if self._state is _HEAD and not self._heads.pending:
            self._close()

    # a request

    def _take_head(self, data: bytes) -> None:
        limits = self._front.limits
        try:
            found = self._heads.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if found is None:
            if not self._begun and self._heads.begun:
                self._begun = True
                self.deadline = self._front.clock() + limits.client_header_s
            return
        head, length, data = found
        self._head = head
        self._keep = head.keep_alive
        self._begun = False
        if length is not None:
            if length > limits.body_bytes_max:
                self._refuse(body_too_large(limits.body_bytes_max))
                return
            if len(data) >= length:
                # All of it is here.
                if len(data) > length:
                    self._heads.pending += data[length:]
                    data = data[:length]
                if self._hold(length):
                    self._run(head, data)
                return
        self._state = _BODY
        self._seen_bytes = 0
        self.deadline = self._front.clock() + limits.client_body_s
        self._intake = BodyIntake(length, limits)
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
        if not self._hold(intake.size - self._held) or not intake.over:
            return
        self._heads.pending += intake.rest
        if intake.surplus:
            self._keep = False  # Where the next request begins is not known; the client has to send it again.
        body = intake.whole()
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
        """Go on to the next request: the client has taken the answer."""
        if self._front.draining:
            self._close()
            return
        self._state = _HEAD
        self.deadline = self._front.now + self._front.limits.keep_alive_s
        if self._heads.pending:
            asyncio.get_running_loop().call_soon(self._take_pending)

    def _take_pending(self) -> None:
        """Take what was sent ahead; in a new call, so that many small requests do not nest."""
        if self._state is _HEAD and self._heads.pending:
            data = bytes(self._heads.pending)
            self._heads.pending.clear()
            self._take_head(data)
        if self._state is not _BUSY or len(self._heads.pending) <= self._front.limits.pipelined_bytes_max:
            self._resume_reading()

    # ends

    def _write_error(self, refusal: Refusal, head: RequestHead | None, request_id: bytes | None, keep: bool) -> None:
        path = "" if head is None else head.path
        no_body = head is not None and head.method == "HEAD"
        self.write(own_error(path, refusal, request_id=request_id, keep_alive=keep, no_body=no_body))
        self._front.meter.answered(path, refusal.status)
        if self._front.access_log:
            self._front.log_access(self.peer, head, refusal.status, request_id)

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
        self._heads.pending.clear()
        self._drop_intake()
        self.release_body()

    def _resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()


def _peer_left(transport: asyncio.Transport) -> bool:
    """Say whether the client has closed, behind bytes of it that are not read yet."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] in _TCP_INFO_LEFT
