"""One client's connection: requests in, one at a time and in order.

    HEAD --head--> BODY --whole--> BUSY --answered--> HEAD ...        any --error in mid-request--> LINGER --> CLOSED
                              BUSY --broken off, and only a reset says so--> RESET --all sent has arrived--> CLOSED

Bodies are held whole, counted against one budget. While a request is answered the next ones are read, up to a limit,
so that it is seen when the client leaves. A FIN counts as leaving, as with nginx: it cannot be told from a close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from ghostcacher_router.http.client_state import LATE_BODY, LATE_HEAD, TOO_MANY, TOO_MANY_BYTES, State
from ghostcacher_router.http.fan_out import HEADER as FAN_OUT
from ghostcacher_router.http.fan_out import fan_out
from ghostcacher_router.http.local_exchange import LocalExchange
from ghostcacher_router.http.peer_state import has_arrived, peer_has_closed, reset_connection
from ghostcacher_router.http.protocol.local_response import error_response
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import CONTINUE, RequestHead
from ghostcacher_router.http.protocol.request_reader import PIECE_BYTES_MIN, RequestReader
from ghostcacher_router.http.proxy_ports import Exchange
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.http.websocket_exchange import WebSocketExchange
from ghostcacher_router.http.worker_exchange import WorkerExchange
from ghostcacher_router.types import Body, Endpoint

_HEAD, _BODY, _BUSY, _LINGER, _RESET, _CLOSED = State


class ClientConnection(asyncio.Protocol):
    """A connection to a client: a `Client` of its exchanges. Loop only."""

    __slots__ = (
        "_begun",
        "_exchange",
        "_heard_at",
        "_heard_bytes",
        "_held_bytes",
        "_moved_at",
        "_moved_bytes",
        "_peer_bytes",
        "_proxy",
        "_read_paused",
        "_reader",
        "_seen_bytes",
        "_state",
        "_take",
        "_write_paused",
        "deadline",
        "peer",
        "transport",
        "write",
    )
    transport: asyncio.Transport
    write: Callable[[bytes], None]
    deadline: float

    def __init__(self, proxy: ProxyState) -> None:
        self._proxy = proxy
        self._state = _HEAD
        self._reader = RequestReader(proxy.limits)
        self._begun = False
        self._held_bytes = 0
        self._seen_bytes = 0
        self._exchange: Exchange | None = None
        self._moved_bytes = self._heard_bytes = 0
        self._moved_at = self._heard_at = 0.0
        self._read_paused = False
        self._write_paused = False
        self._take: Callable[[bytes], None] | None = None
        self.peer: str | None = None

    def __repr__(self) -> str:
        pending = len(self._reader.pending)
        return f"ClientConnection({self.peer}, {self._state.name}, pending={pending}, {self._exchange!r})"

    # what an exchange uses

    @property
    def may_keep_alive(self) -> bool:
        return self._reader.keep_alive and not self._proxy.draining

    def forwarded_for(self, before: bytes | None) -> bytes:
        return self._peer_bytes if before is None else b"%b, %b" % (before, self._peer_bytes)

    def release_body(self) -> None:
        self._proxy.buffered_bytes -= self._held_bytes
        self._held_bytes = 0

    def switch(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._resume_reading()
        if self._reader.pending:
            data = bytes(self._reader.pending)
            self._reader.pending.clear()
            take(data)

    def hold(self, held: bool) -> None:
        if not held:
            self._resume_reading()
        elif not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def exchange_done(self, keep: bool) -> None:
        proxy = self._proxy
        self._exchange = self._reader.head = None
        proxy.in_flight -= 1
        if self._held_bytes:
            self.release_body()
        if not keep or proxy.draining:
            self._close()
        elif not self._write_paused:
            self._next()

    def exchange_refused(self, refusal: Refusal) -> None:
        assert self._exchange is not None, self
        keep = self.may_keep_alive
        self._write_error(refusal, self._exchange.request_id, keep)
        self.exchange_done(keep)

    def cut(self, last: bytes, *, reset: bool) -> None:
        self.write(last)
        if not reset:
            self._close()
            return
        self._leave()
        self._state = _RESET
        self._moved_at = self._proxy.clock()
        self._reset_once_arrived(self._moved_at)

    def abort(self) -> None:
        """Close at once, with a reset: what was written must not look like a whole response."""
        self._leave()
        reset_connection(self.transport)

    # what admission uses

    @property
    def trickles(self) -> bool:
        limits, took_s = self._proxy.limits, self._proxy.clock() - self._moved_at
        return took_s > limits.body_grace_s and self._reader.received_bytes < took_s * limits.body_rate_min

    def drop(self) -> None:
        if self._reader.pending or self._reader.in_body:
            self._write_error(TOO_MANY, None, False)
        if self.transport.get_write_buffer_size():
            self.abort()  # Of a response that the client has not read.
        else:
            self._leave()
            self.transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else None
        self._peer_bytes = (self.peer or "unknown").encode()
        self.deadline = self._proxy.clock() + self._proxy.limits.client_header_s
        if not self._proxy.admission.admit(self):
            if self._proxy.admission.may_linger:
                self._refuse(TOO_MANY)
            else:
                self._write_error(TOO_MANY, None, False)
                self._close()
        elif self._proxy.draining:
            self._close()  # It was accepted before the proxy ceased to listen.

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD or state is _BODY:
            self._read(data)
        elif self._take is not None:
            self._take(data)
        elif state is _BUSY:
            self._reader.pending += data
            if len(self._reader.pending) > self._proxy.limits.pipelined_bytes_max:
                self.hold(True)

    def eof_received(self) -> bool:
        """Leave; asyncio closes the connection when what was written is sent, unless that is no whole response."""
        if self._state is _RESET:
            return True
        if self._exchange is not None:
            self.abort()
        else:
            self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._leave()
        self._proxy.forget(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._moved_at = self._proxy.clock()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._moved_at = self._heard_at = self._proxy.clock()
        if self._exchange is not None:
            self._exchange.resume()
        elif self._state is _BUSY:
            self._next()

    # time

    def expired(self, now: float) -> None:
        if self._state is _HEAD:
            if self._reader.pending:
                self._refuse(LATE_HEAD)
            else:
                self._close()
        elif self._state is _BODY:
            limits, received_bytes = self._proxy.limits, self._reader.received_bytes
            if received_bytes - self._seen_bytes < limits.client_body_s * limits.body_rate_min:
                self._refuse(LATE_BODY)
            else:
                # What came fast earns no time to be silent.
                self._seen_bytes = received_bytes
                self.deadline = now + limits.client_body_s
        elif self._state is _BUSY:
            self._check_progress(now)
        elif self._state is _RESET:
            self._reset_once_arrived(now)
        elif self._state is _CLOSED:
            reset_connection(self.transport)
        else:
            self.transport.abort()

    def _check_progress(self, now: float) -> None:
        """Give up a response that nobody reads, or of which nothing comes."""
        exchange, limits = self._exchange, self._proxy.limits
        if exchange is not None and exchange.heard_bytes != self._heard_bytes:
            self._heard_bytes, self._heard_at = exchange.heard_bytes, now
        if self._read_paused and peer_has_closed(self.transport):
            self.abort()
        elif self._write_paused or exchange is None:
            if now - self._moved_at > limits.client_stall_s:
                self.abort()
        elif exchange.passed_bytes != self._moved_bytes:
            self._moved_bytes, self._moved_at = exchange.passed_bytes, now
        elif now - self._moved_at > limits.worker_silence_s:
            exchange.expire()
        else:
            exchange.check(now)

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        return self._exchange is not None and self._exchange.is_at(worker, endpoint)

    def moved_after(self, when: float) -> bool:
        heard_bytes = 0 if self._exchange is None else self._exchange.heard_bytes
        return heard_bytes > 0 and (heard_bytes != self._heard_bytes or self._heard_at > when)

    def worker_hangs(self, worker: str, endpoint: Endpoint) -> None:
        # Nothing can come while the client does not read. Should it read again, the worker's next probe has it end.
        if self._exchange is not None and self._exchange.is_at(worker, endpoint) and not self._write_paused:
            self._exchange.worker_hangs()

    def drain(self) -> None:
        if self._state is _HEAD and not self._reader.pending:
            self._close()

    # a request

    def _read(self, data: bytes) -> None:
        """Read on in a request; once it is whole, have it answered."""
        reader = self._reader
        try:
            body = reader.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if not self._hold(reader.body_bytes if body is None else len(body)):
            return
        if body is not None:
            assert reader.head is not None, self
            self._run(reader.head, body)
        elif not reader.in_body:
            if not self._begun and reader.begun:
                self._begun = True
                self.deadline = self._proxy.clock() + self._proxy.limits.client_header_s
        elif self._state is _HEAD:
            self._proxy.admission.sends(self)
            self._state = _BODY
            self._moved_at = self._proxy.clock()
            self._seen_bytes = 0
            self.deadline = self._proxy.clock() + self._proxy.limits.client_body_s
            if reader.head is not None and reader.head.expects_continue:
                self.write(CONTINUE)
        elif len(data) >= PIECE_BYTES_MIN:
            self._proxy.turns.took(self.transport)

    def _hold(self, size: int) -> bool:
        """Count the bytes of a body that are held; False when there are too many: the request is refused."""
        self._proxy.buffered_bytes += size - self._held_bytes
        self._held_bytes = size
        if self._proxy.has_room_for(size):
            return True
        self._refuse(TOO_MANY_BYTES)
        return False

    def _run(self, head: RequestHead, body: Body) -> None:
        proxy = self._proxy
        now = proxy.clock()
        proxy.admission.busy(self)
        self._state, self._begun = _BUSY, False
        self._moved_bytes = self._heard_bytes = 0
        self._moved_at = self._heard_at = now
        self.deadline = now + proxy.limits.tick_s
        proxy.in_flight += 1
        exchange: Exchange
        if proxy.local.match(head.method, head.path):
            exchange = LocalExchange(proxy, self, head, body)
        elif FAN_OUT in head.headers:
            request_id = head.request_id or proxy.next_request_id()
            exchange = LocalExchange(proxy, self, head, body, partial(fan_out, proxy, head, request_id))
        else:
            kind = WebSocketExchange if head.websocket and body == b"" else WorkerExchange
            exchange = kind(proxy, self, head, body, now)
        self._exchange = exchange
        exchange.start()

    def _next(self) -> None:
        """Go on to the next request: the client has taken the response."""
        if self._proxy.draining:
            self._close()
            return
        self._proxy.admission.waits(self)
        self._state = _HEAD
        self.deadline = self._proxy.now + self._proxy.limits.keep_alive_s
        if self._reader.pending:
            asyncio.get_running_loop().call_soon(self._read_pending)

    def _read_pending(self) -> None:
        """Read what was sent ahead; in a new call, so that many small requests do not nest."""
        pending = self._reader.pending
        if self._state is _HEAD and pending:
            data = bytes(pending)
            pending.clear()
            self._read(data)
        if self._state is not _BUSY or len(pending) <= self._proxy.limits.pipelined_bytes_max:
            self._resume_reading()

    # ends

    def _write_error(self, refusal: Refusal, request_id: bytes | None, keep: bool) -> None:
        head = self._reader.head
        path, no_body = ("", False) if head is None else (head.path, head.method == "HEAD")
        response = error_response(path, refusal).with_headers(self._proxy.allowed_origins.headers(head))
        self.write(response.encode(request_id, keep_alive=keep, no_body=no_body))
        self._proxy.answered(self.peer, head, refusal.status, request_id)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error while the request may still be coming, and take no other."""
        self._write_error(refusal, None, False)
        self._leave()
        self._state = _LINGER
        self.deadline = self._proxy.clock() + self._proxy.limits.linger_s
        self._resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _close(self) -> None:
        """Close when what was written is sent."""
        self._leave()
        self.transport.close()

    def _reset_once_arrived(self, now: float) -> None:
        if has_arrived(self.transport) or now - self._moved_at > self._proxy.limits.linger_s:
            self.abort()
        else:
            self.deadline = 0.0  # Look again at the next tick.

    def _leave(self) -> None:
        """Let go of everything: the client is gone, or its connection is about to be."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._proxy.in_flight -= 1
            exchange.cancel()
        self._proxy.admission.busy(self)
        self._take = None
        self._state = _CLOSED
        self.deadline = self._proxy.clock() + self._proxy.limits.client_stall_s
        self._reader.release()
        self.release_body()

    def _resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()
