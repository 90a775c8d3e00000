"""One connection to a worker: writes a request, and has its response read and passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.response_head import ResponseHeads
from ghostcacher_router.types import Body, Endpoint, LongBody
from ghostcacher_router.upstreams.acknowledgement import outstanding
from ghostcacher_router.upstreams.response_reader import ResponseReader
from ghostcacher_router.upstreams.response_receiver import ResponseReceiver


class Pool(Protocol):
    """What a connection asks of the pool that it belongs to.

    prefix: the path under which the worker is served. host_line: the header Host of every request sent there.
    heads: what is remembered of the worker's responses.
    """

    endpoint: Endpoint
    limits: Limits
    prefix: bytes
    host_line: bytes
    heads: ResponseHeads

    def put(self, connection: WorkerConnection) -> None:
        """Keep an idle connection for the next request."""

    def closed(self, connection: WorkerConnection) -> None:
        """Forget a connection."""

    def close_idle(self) -> None:
        """Close the connections that are kept, and those in use after their answers: they lead nowhere."""


class WorkerConnection:
    """A connection to a worker, for one request at a time: a protocol to asyncio, which wants no base class. Loop only.

    data_received: the reader's own method, so that no call lies between the transport and it. blocked: told whether the
    worker does not keep up with what is written; None: nobody is.
    """

    __slots__ = (
        "_arrived",
        "_begun_at",
        "_paused",
        "_reader",
        "_said_end",
        "blocked",
        "data_received",
        "pool",
        "transport",
    )
    transport: asyncio.Transport
    data_received: Callable[[bytes], None]

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._reader = ResponseReader(pool.heads, pool.limits.head_bytes_max, self)
        self._paused = False
        self._begun_at = 0.0
        self._arrived = False
        self._said_end = False
        self.blocked: Callable[[bool], None] | None = None
        self.data_received = self._reader.feed

    def __repr__(self) -> str:
        return f"WorkerConnection({self.pool.endpoint.url}, {self._reader!r})"

    @property
    def usable(self) -> bool:
        """Whether an idle connection is still open."""
        return not self.transport.is_closing()

    @property
    def passed_bytes(self) -> int:
        """Bytes of the response's body passed on; it grows while the worker sends."""
        return self._reader.passed_bytes

    @property
    def unsent_bytes(self) -> int:
        """Bytes of the request that are still to be written."""
        return self.transport.get_write_buffer_size()

    def unacknowledged_s(self, now: float, limit_s: float) -> float | None:
        """Return for how long the worker's host has acknowledged nothing of the request; None for less than `limit_s`.

        None, too, once all has arrived, or where the system cannot say.
        """
        if self._arrived or now - self._begun_at < limit_s:
            return None
        waiting = outstanding(self.transport)
        self._arrived = waiting is None
        return waiting.silent_s if waiting is not None and waiting.expected and waiting.silent_s >= limit_s else None

    def begin(self, receiver: ResponseReceiver, head: bytes, body: Body, now: float) -> None:
        """Write a request, and pass its response on to `receiver`. The connection is usable. now: in s."""
        self._reader.begin(receiver)
        self._begun_at = now
        self._arrived = False
        # uvloop writes at once: two writes would be two system calls.
        if isinstance(body, LongBody):
            self.transport.writelines((head, *body.pieces))
        elif body:
            self.transport.writelines((head, body))
        else:
            self.transport.write(head)

    def write(self, data: bytes) -> None:
        """Write on, once the worker has switched to another protocol."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        """Close at once, whatever is under way; the receiver hears nothing more."""
        self._reader.detach(reusable=False)
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

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> None:
        """Close, as the default is. With TLS it is called for an end that the other side has signed."""
        self._said_end = True

    def pause_writing(self) -> None:
        if self.blocked is not None:
            self.blocked(True)

    def resume_writing(self) -> None:
        if self.blocked is not None:
            self.blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.closed(self)
        error = None if exc is None else str(exc)
        if error is None and self.pool.endpoint.tls and not self._said_end:
            error = "its TLS connection ended without saying so"  # Whoever is in between can do that, too.
        self._reader.end_of_stream(error)

    # the reader's side

    def response_read(self, *, reusable: bool) -> None:
        transport = self.transport
        # A response that came before the whole request was written: the worker may not read the rest.
        if reusable and not transport.get_write_buffer_size() and not transport.is_closing():
            self._reader.detach(reusable=True)
            if self._paused:
                self.resume()
            self.pool.put(self)
        else:
            self.abort()
