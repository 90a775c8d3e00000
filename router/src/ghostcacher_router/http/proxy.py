"""The front: listens to clients, and has what their connections share."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
import time
from collections.abc import Callable, Mapping

from ghostcacher_router.http.client_connection import ClientConnection
from ghostcacher_router.http.limits import Limits
from ghostcacher_router.http.local import LocalEndpoints
from ghostcacher_router.http.ports import Meter
from ghostcacher_router.http.protocol.head import RequestHead
from ghostcacher_router.types import Dispatcher, RequestShape
from ghostcacher_router.upstreams.pool import Pools

access = logging.getLogger("ghostcacher_router.access")

ACCEPT_BACKLOG = 1024
"""A burst of new clients waits in the kernel instead of being refused."""

Parse = Callable[[str, bytes, Mapping[bytes, bytes]], RequestShape]
"""path, body, headers with lower-case names -> shape. Raises BadBody."""


class Front:
    """Takes requests from clients, has them placed, and streams the answers back. Loop only.

    now: the time of the last tick, for what may be half a second off. in_flight: requests being answered.
    buffered_bytes: of bodies held. router: a name that goes into request ids. access_log: a line for each request.
    worker_tls: for workers that listen with TLS; None: the system's certificates.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        local: LocalEndpoints,
        parse: Parse,
        meter: Meter,
        *,
        router: str,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        worker_tls: ssl.SSLContext | None = None,
        access_log: bool = False,
    ) -> None:
        self.dispatcher = dispatcher
        self.access_log = access_log
        self.local = local
        self.parse = parse
        self.meter = meter
        self.limits = limits if limits is not None else Limits()
        self.clock = clock
        self.now = clock()
        self.pools = Pools(self.limits, self.now, worker_tls)
        self.in_flight = 0
        self.buffered_bytes = 0
        self.draining = False
        self._clients: set[ClientConnection] = set()
        self._ids = itertools.count(1)
        self._id_prefix = f"gc-{router}-".encode()
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Front(clients={len(self._clients)}, in_flight={self.in_flight}, buffered_bytes={self.buffered_bytes})"

    @property
    def connection_count(self) -> int:
        return len(self._clients)

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Listen; return the port. port 0: any free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: ClientConnection(self), host, port, ssl=tls, backlog=ACCEPT_BACKLOG)
        self._servers.append(server)
        if self._timer is None:
            self._timer = loop.call_later(self.limits.tick_s, self._on_timer)
        return int(server.sockets[0].getsockname()[1])

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let those in flight end within `drain_s`, and close everything."""
        self.draining = True
        for server in self._servers:
            server.close()
        for client in list(self._clients):
            client.drain()
        try:
            async with asyncio.timeout(drain_s):
                await self._emptied()
        except TimeoutError:
            for client in list(self._clients):
                client.abort()
            await self._emptied()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.pools.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def tick(self) -> None:
        """Do what has become due: time-outs of clients, old connections to workers."""
        self.now = now = self.clock()
        for client in [client for client in self._clients if now > client.deadline]:
            client.expired(now)
        self.pools.tick(now)

    # what connections use

    def next_request_id(self) -> bytes:
        return b"%b%d" % (self._id_prefix, next(self._ids))

    def log_access(
        self,
        peer: str | None,
        head: RequestHead | None,
        status: int,
        request_id: bytes | None,
        *,
        worker: str | None = None,
        took_s: float = 0.0,
    ) -> None:
        """Log a request that has ended, as uvicorn does, with worker and time. No query: it may hold a secret."""
        what = "-" if head is None else f"{head.method} {head.path}"
        number = "-" if request_id is None else request_id.decode()
        access.info('%s "%s" %d %s %.1f ms %s', peer or "-", what, status, worker or "-", took_s * 1e3, number)

    def admit(self, client: ClientConnection) -> bool:
        """Take in a connection; False when there are too many."""
        self._clients.add(client)
        return len(self._clients) <= self.limits.connections_max

    def forget(self, client: ClientConnection) -> None:
        """A connection is closed."""
        self._clients.discard(client)
        if not self._clients and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def _emptied(self) -> None:
        if self._clients:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty

    def _on_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.limits.tick_s, self._on_timer)
        self.tick()
