"""One client's connection: requests in, one at a time and in order.

    HEAD --head--> BODY --whole--> BUSY --answered--> HEAD ...        any --error in mid-request--> LINGER --> CLOSED
                              BUSY --broken off, and only a reset says so--> RESET --all sent has arrived--> CLOSED

    data_received -> _read -> _run -> the exchange writes a response -> exchange_done -> _next -> data_received

Bodies are held whole, counted against one budget. While a request is answered the next ones are read, up to a limit,
so that it is seen when the client leaves. A FIN counts as leaving, as with nginx: it cannot be told from a close.

How a connection ends is in `client_ends.py`, what happens when something takes too long in `client_time.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from ghostcacher_router.http.clients.client_state import TOO_MANY, TOO_MANY_BYTES, State
from ghostcacher_router.http.clients.client_time import TimedConnection
from ghostcacher_router.http.clients.reading_turns import LONG_PIECE_BYTES
from ghostcacher_router.http.exchanges.fan_out import HEADER as FAN_OUT
from ghostcacher_router.http.exchanges.fan_out import fan_out
from ghostcacher_router.http.exchanges.local_exchange import LocalExchange
from ghostcacher_router.http.exchanges.provider_exchange import ProviderExchange
from ghostcacher_router.http.exchanges.websocket_exchange import WebSocketExchange
from ghostcacher_router.http.exchanges.worker_exchange import WorkerExchange
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import CONTINUE, RequestHead
from ghostcacher_router.http.proxy_ports import Exchange
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Body

_HEAD, _BODY, _BUSY = State.HEAD, State.BODY, State.BUSY


class ClientConnection(TimedConnection):
    """A connection to a client: a `Client` of its exchanges, and a protocol to asyncio, which wants no base class.

    Loop only.
    """

    __slots__ = ("_begun", "_peer_bytes", "_workers_head")

    def __init__(self, proxy: ProxyState) -> None:
        super().__init__(proxy)
        self._begun = False
        """Whether a part of the next head has come."""
        self._workers_head: RequestHead | None = None
        """The head of the last request that only workers answer: the next one has mostly the same (`HeadReader`)."""

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
        if self._state is State.RESET:
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

    # a request

    def _read(self, data: bytes) -> None:
        """Read on in a request; once it is whole, have it answered."""
        reader = self._reader
        try:
            body = reader.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if body is not None:
            if self._hold(len(body)):
                assert reader.head is not None, self
                self._run(reader.head, body)
        elif not self._hold(reader.body_bytes):
            return
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
        elif len(data) >= LONG_PIECE_BYTES and reader.in_long_body:
            self._proxy.turns.took(self.transport)

    def _hold(self, size: int) -> bool:
        """Count the bytes of a body that are held; False when there are too many: the request is refused."""
        proxy = self._proxy
        proxy.buffered_bytes = held = proxy.buffered_bytes + size - self._held_bytes
        self._held_bytes = size
        if held <= proxy.room_bytes or proxy.has_room_for(size):
            return True
        self._refuse(TOO_MANY_BYTES)
        return False

    def _run(self, head: RequestHead, body: Body) -> None:
        """Have a request answered: by the router itself, by every server, by one worker or by a provider."""
        proxy = self._proxy
        now = proxy.clock()
        proxy.admission.busy(self)
        self._state, self._begun = _BUSY, False
        self._moved_bytes = self._heard_bytes = 0
        self._moved_at = self._heard_at = now
        self.deadline = now + proxy.limits.tick_s
        proxy.in_flight += 1
        exchange: Exchange
        if head is self._workers_head:
            exchange = WorkerExchange(proxy, self, head, body, now)
        elif proxy.local.match(head.method, head.path):
            exchange = LocalExchange(proxy, self, head, body)
        elif FAN_OUT in head.headers:
            request_id = head.request_id or proxy.next_request_id()
            exchange = LocalExchange(proxy, self, head, body, partial(fan_out, proxy, head, request_id))
        elif head.websocket and body == b"":
            exchange = WebSocketExchange(proxy, self, head, body, now)
        elif proxy.providers is not None:
            exchange = ProviderExchange(proxy, self, head, body, now, proxy.providers)
        else:
            exchange = WorkerExchange(proxy, self, head, body, now)
            self._workers_head = head
        self._exchange = exchange
        exchange.start()

    # what the exchange that answers it uses

    @property
    def may_keep_alive(self) -> bool:
        return self._reader.keep_alive and not self._proxy.leaving

    def forwarded_for(self, before: bytes | None) -> bytes:
        return self._peer_bytes if before is None else b"%b, %b" % (before, self._peer_bytes)

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

    def exchange_refused(self, refusal: Refusal) -> None:
        assert self._exchange is not None, self
        keep = self.may_keep_alive
        self._write_error(refusal, self._exchange.request_id, keep)
        self.exchange_done(keep)

    def exchange_done(self, keep: bool) -> None:
        proxy = self._proxy
        self._exchange = self._reader.head = None
        proxy.in_flight -= 1
        proxy.buffered_bytes -= self._held_bytes
        self._held_bytes = 0
        if not keep or proxy.draining:
            self._close()
        elif not self._write_paused:
            self._next()

    # the next request

    def _next(self) -> None:
        """Go on to the next request: the client has taken the response."""
        if self._proxy.draining:
            self._close()
            return
        self._proxy.admission.waits(self)
        self._state = _HEAD
        self.deadline = self._proxy.now + self._proxy.keep_alive_s
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
