"""A client's connection as far as how it ends: with all that was written, with an error, or with a reset.

    _close     when what was written is sent
    _refuse    with an error while a request may still be coming: the client gets some time to read it (LINGER)
    cut        with a response that has broken off; where only a reset says so, that waits until all has arrived (RESET)
    abort      at once, with a reset

However it ends, `_leave` lets go of what is held for it, once or more often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ghostcacher_router.http.clients.admission import Admitted
from ghostcacher_router.http.clients.client_state import TOO_MANY, State
from ghostcacher_router.http.clients.peer_state import has_arrived, reset_connection
from ghostcacher_router.http.protocol.local_response import error_response
from ghostcacher_router.http.protocol.refusal import ROUTER_STOPS, Refusal
from ghostcacher_router.http.protocol.request_reader import RequestReader
from ghostcacher_router.http.proxy_ports import Exchange
from ghostcacher_router.http.proxy_state import ProxyState


class EndingConnection(Admitted):
    """What a client's connection holds, and its ends. Loop only.

    deadline: when `expired` is to be called; loop clock, s. peer: the client's address; None when it is not known.
    """

    __slots__ = (
        "_exchange",
        "_held_bytes",
        "_moved_at",
        "_proxy",
        "_read_paused",
        "_reader",
        "_state",
        "_take",
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
        self._state = State.HEAD
        self._reader = RequestReader(proxy.limits)
        self._exchange: Exchange | None = None
        """Answers the request; None while there is none."""
        self._held_bytes = 0
        """Of the request's body, as counted in the budget of all."""
        self._take: Callable[[bytes], None] | None = None
        """What the client sends goes there once it has switched to WebSocket."""
        self._read_paused = False
        self._moved_at = 0.0
        """When the request, or its answer, last came further; loop clock, s."""
        self.peer: str | None = None

    def __repr__(self) -> str:
        pending = len(self._reader.pending)
        return f"{type(self).__name__}({self.peer}, {self._state.name}, pending={pending}, {self._exchange!r})"

    def cut(self, last: bytes, *, reset: bool) -> None:
        self.write(last)
        if not reset:
            self._close()
            return
        self._leave()
        self._state = State.RESET
        self._moved_at = self._proxy.clock()
        self._reset_once_arrived(self._moved_at)

    def abort(self) -> None:
        """Close at once, with a reset: what was written must not look like a whole response."""
        self._leave()
        reset_connection(self.transport)

    def router_stops(self) -> None:
        if self._exchange is not None:
            self._exchange.router_stops()
        elif self._state in (State.HEAD, State.BODY):
            self._refuse(ROUTER_STOPS)

    def drop(self) -> None:
        if self._reader.pending or self._reader.in_body:
            self._write_error(TOO_MANY, None, False)
        if self.transport.get_write_buffer_size():
            self.abort()  # Of a response that the client has not read.
        else:
            self._leave()
            self.transport.abort()

    def leave_soon(self) -> None:
        if self._state is State.HEAD and not self._reader.pending:
            self.deadline = min(self.deadline, self._proxy.clock() + self._proxy.keep_alive_s)

    def drain(self) -> None:
        if self._state is State.HEAD and not self._reader.pending:
            self._close()

    def release_body(self) -> None:
        self._proxy.buffered_bytes -= self._held_bytes
        self._held_bytes = 0

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
        self._state = State.LINGER
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
        self._state = State.CLOSED
        self.deadline = self._proxy.clock() + self._proxy.limits.client_stall_s
        self._reader.release()
        self.release_body()

    def _resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()
