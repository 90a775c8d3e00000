"""Connections to workers, kept for the next request. Bounded in number and in age, for each worker."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from typing import cast

from ghostcacher_router.dns.dial import dial
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.response_head import ResponseHeads
from ghostcacher_router.types import Endpoint
from ghostcacher_router.upstreams.worker_connection import WorkerConnection

_PLAIN = re.compile(r"[!-~]*")

_PROBES = 3
_WATCHES = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
"""Linux's. Where the system has none of these names, its own times hold, two hours mostly."""


class WorkerPool:
    """The idle connections to one endpoint, and what every head sent there has in common. Loop only."""

    def __init__(self, endpoint: Endpoint, limits: Limits, now: float, idle_closed: Callable[[Endpoint], None]) -> None:
        """idle_closed: called when the worker has closed an idle connection."""
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self.endpoint = endpoint
        self.limits = limits
        self.host_line = f"Host: {host}:{endpoint.port}\r\n".encode()
        self.prefix = endpoint.path.encode()
        self.heads = ResponseHeads()
        self.open: set[WorkerConnection] = set()
        self.connecting = 0
        self._idle: dict[WorkerConnection, float] = {}
        self._last_used: set[WorkerConnection] = set()
        """Those that are not to be kept once they are idle."""
        self._idle_closed = idle_closed
        self._now = now

    def __repr__(self) -> str:
        return f"WorkerPool({self.endpoint.url}, open={len(self.open)}, idle={len(self._idle)})"

    def take(self) -> WorkerConnection | None:
        """Return the connection used last: the worker is least likely to be about to close it."""
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()
            if not connection.transport.is_closing():
                return connection
            self._idle_closed(self.endpoint)
        return None

    def put(self, connection: WorkerConnection) -> None:
        """Keep an idle connection; close it when there are enough, or it leads to what the worker was."""
        if connection in self._last_used or len(self._idle) >= self.limits.upstream_idle_max:
            connection.abort()
        else:
            self._idle[connection] = self._now

    def closed(self, connection: WorkerConnection) -> None:
        self.open.discard(connection)
        self._last_used.discard(connection)
        if self._idle.pop(connection, None) is not None:
            self._idle_closed(self.endpoint)

    def close_idle(self) -> None:
        """Close the connections that are kept, and those in use after their answers."""
        for connection in list(self._idle):
            connection.abort()
        self._last_used = self.open - self._idle.keys()
        self._idle.clear()

    def tick(self, now: float) -> None:
        """Close what has been idle for too long."""
        self._now = now
        before = now - self.limits.upstream_idle_s
        for connection in [connection for connection, since in self._idle.items() if since < before]:
            del self._idle[connection]
            connection.abort()


class Pools:
    """A pool for each endpoint that requests go to. Loop only. tls: for workers that listen with TLS."""

    def __init__(self, limits: Limits, now: float, tls: ssl.SSLContext | None, resolver: Resolver) -> None:
        self._limits = limits
        self._resolver = resolver
        self._now = now
        self._tls = tls
        self._pools: dict[Endpoint, WorkerPool] = {}
        self.idle_closed: Callable[[Endpoint], None] = _ignore
        """Called when a worker has closed a connection that was kept for it. To be set before there is any."""

    def __repr__(self) -> str:
        return f"Pools({list(self._pools.values())})"

    def __getitem__(self, endpoint: Endpoint) -> WorkerPool:
        """Return the pool of an endpoint. Raises OSError when no request could be written to such a one."""
        pool = self._pools.get(endpoint)
        if pool is None:
            if not endpoint.host or not _PLAIN.fullmatch(endpoint.host + endpoint.path):
                raise OSError(f"expected an address of visible ASCII, got {endpoint!r}")
            pool = self._pools[endpoint] = WorkerPool(endpoint, self._limits, self._now, self.idle_closed)
        return pool

    @property
    def open_count(self) -> int:
        return sum(len(pool.open) for pool in self._pools.values())

    async def connect(self, endpoint: Endpoint) -> WorkerConnection:
        """Return a new connection. Raises OSError, within `connect_s`."""
        pool = self[endpoint]
        if endpoint.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        pool.connecting += 1
        try:
            async with asyncio.timeout(self._limits.connect_s):
                connection = await dial(
                    self._resolver,
                    endpoint.host,
                    lambda address: self._connect(pool, address),
                    lambda late: late.transport.abort(),
                )
        except TimeoutError:
            raise OSError(f"no connection within {self._limits.connect_s:g} s") from None
        except ValueError as exc:  # A host name that cannot be encoded, a port out of range.
            raise OSError(f"{endpoint.url}: {exc}") from exc
        finally:
            pool.connecting -= 1
        if not connection.usable:
            raise OSError("it closed the connection at once")
        _watch_host(connection.transport, self._limits.worker_gone_s)
        # Not before: of an attempt that was cancelled, uvloop closes the socket and tells its protocol nothing.
        pool.open.add(connection)
        return connection

    async def _connect(self, pool: WorkerPool, address: str) -> WorkerConnection:
        """Return a new connection to one address of an endpoint. Raises OSError."""
        endpoint, connection = pool.endpoint, WorkerConnection(pool)
        await asyncio.get_running_loop().create_connection(
            lambda: cast(asyncio.Protocol, connection),
            address,
            endpoint.port,
            ssl=self._tls if endpoint.tls else None,
            server_hostname=endpoint.host if endpoint.tls else None,
        )
        return connection

    def tick(self, now: float) -> None:
        """Close what has been idle for too long, and forget endpoints without connections."""
        self._now = now
        for endpoint, pool in list(self._pools.items()):
            pool.tick(now)
            if not pool.open and not pool.connecting:
                del self._pools[endpoint]

    def close_idle(self, endpoint: Endpoint) -> None:
        """Close the connections to an endpoint that no request uses, and keep none of the others."""
        if (pool := self._pools.get(endpoint)) is not None:
            pool.close_idle()

    async def close(self) -> None:
        """Close every connection; return when they are closed."""
        for pool in self._pools.values():
            for connection in list(pool.open):
                connection.abort()
        while self.open_count:
            await asyncio.sleep(0)


def _ignore(_: Endpoint) -> None: ...


def _watch_host(transport: asyncio.Transport, gone_s: int) -> None:
    """Have the kernel break a connection whose other end has been unreachable for `gone_s`."""
    connected = transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle_s = max(1, gone_s // 2)
    values = (idle_s, max(1, (gone_s - idle_s) // _PROBES), _PROBES, gone_s * 1000)
    for name, value in zip(_WATCHES, values, strict=True):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
