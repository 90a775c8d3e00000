"""The HTTP proxy: listens to clients, watches over time, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import cast

from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.clients.client_connection import ClientConnection
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.proxy_ports import Connection, LocalEndpoints, Meter, Parse, Providers
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Dispatcher, Endpoint

logger = logging.getLogger(__name__)

ACCEPT_BACKLOG = 1024
"""A burst of new clients waits in the kernel instead of being refused."""
ACCEPTED_TURNS = 4
"""Of the event loop, after which whatever was accepted before the proxy ceased to listen is a client that it knows."""
LEAVE_IDLE_S = 5.0
"""How long a connection that is kept for a next request stays open when the proxy leaves clients to another one. A
client may be sending in the very moment in which it is closed: the less likely, the longer it has not."""


class HttpProxy:
    """Takes requests from clients, has them placed, and streams the responses back. Loop only.

    router: a name that goes into request ids. access_log: a line for each request. worker_tls: for workers that listen
    with TLS; None: the system's certificates. resolver: finds workers by their names; None: one of its own.
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
        resolver: Resolver | None = None,
        access_log: bool = False,
    ) -> None:
        self.state = ProxyState(
            dispatcher,
            local,
            parse,
            meter,
            router=router,
            limits=limits if limits is not None else Limits(),
            clock=clock,
            worker_tls=worker_tls,
            resolver=resolver or Resolver(),
            access_log=access_log,
        )
        self._servers: list[asyncio.Server] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._left_at: float | None = None

    def __repr__(self) -> str:
        return f"HttpProxy({self.state!r})"

    def when_idle_closed(self, tell: Callable[[Endpoint], None]) -> None:
        """Have a function called with the address of each worker that closes a connection on which nothing was asked.

        It is what engines do first when they end, and may be the first that anybody learns of it.
        """
        self.state.pools.idle_closed = tell

    def use_providers(self, providers: Providers | None) -> None:
        """Let requests go to hosted providers, too; None: to none. To be called before there are any requests."""
        self.state.providers = providers

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self.state.in_flight

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Listen; return the port. port 0: any free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connection, host, port, ssl=tls, backlog=ACCEPT_BACKLOG)
        self._began_to_listen(server)
        return int(server.sockets[0].getsockname()[1])

    async def start_on(self, bound: socket.socket) -> asyncio.Server:
        """Listen on a socket that is bound, until `stop_on`; what other processes do with the same one is their own."""
        server = await asyncio.get_running_loop().create_server(
            self._connection, sock=bound.dup(), backlog=ACCEPT_BACKLOG
        )
        self._began_to_listen(server)
        return server

    def stop_on(self, server: asyncio.Server) -> None:
        """Listen no more there. What waits to be accepted is for those who have the same socket."""
        self._servers.remove(server)
        server.close()

    async def leave(self, within_s: float) -> None:
        """Accept no more clients, and let those that are there go. Return when they are gone, or after `within_s`.

        They are told to connect again with their next answer. Those that ask nothing are closed after `LEAVE_IDLE_S`.
        """
        state = self.state
        self._left_at = state.clock()
        state.leaving, state.keep_alive_s = True, min(state.keep_alive_s, LEAVE_IDLE_S)
        for server in self._servers:
            server.close()
        for _ in range(ACCEPTED_TURNS):
            await asyncio.sleep(0)
        for client in list(state.clients):
            client.leave_soon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await state.wait_until_empty()

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let those in flight end within `drain_s` (from `leave` on), and close everything."""
        state = self.state
        state.leaving = state.draining = True
        if self._left_at is not None:
            drain_s = max(0.0, self._left_at + drain_s - state.clock())
        for server in self._servers:
            server.close()
        for client in list(state.clients):
            client.drain()
        try:
            async with asyncio.timeout(drain_s):
                await state.wait_until_empty()
        except TimeoutError:
            await self._end_late()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._leaving:
            task.cancel()
        await state.pools.close()
        if state.providers is not None:
            await state.providers.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def _connection(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, ClientConnection(self.state))

    def _began_to_listen(self, server: asyncio.Server) -> None:
        self._servers.append(server)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.state.limits.tick_s, self._on_timer)

    async def _end_late(self) -> None:
        """Tell the clients whose requests have not ended, and close their connections once they know."""
        self._say_late()
        for client in list(self.state.clients):
            client.router_stops()
        try:
            async with asyncio.timeout(self.state.limits.linger_s):
                await self.state.wait_until_empty()
        except TimeoutError:
            for client in list(self.state.clients):
                client.abort()
            await self.state.wait_until_empty()

    def _say_late(self) -> None:
        if self.in_flight:
            logger.warning("%d requests have not ended, and are cut off", self.in_flight)

    def cut(self) -> None:
        """End the connections of all clients at once."""
        self._say_late()
        for client in list(self.state.clients):
            client.abort()

    def worker_down(self, endpoint: Endpoint) -> None:
        """Use no kept connection to a worker any more: they would lead nowhere, or to what it was."""
        self.state.pools.close_idle(endpoint)

    def worker_hangs(self, worker: str, endpoint: Endpoint, since: float) -> None:
        """Have other workers answer the requests of one that hangs, and end the responses that have begun.

        since: it has answered no probe from then on, by the proxy's clock. If a response of it has moved since, it does
        not hang, and nothing is done.
        """
        self.worker_down(endpoint)
        there = [client for client in self.state.clients if client.is_at(worker, endpoint)]
        if there and not any(client.moved_after(since) for client in there):
            logger.warning("worker %s answers nobody any more: %d requests leave it", worker, len(there))
            task = asyncio.get_running_loop().create_task(self._leave(worker, endpoint, there))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _leave(worker: str, endpoint: Endpoint, clients: Sequence[Connection]) -> None:
        for client in clients:
            client.worker_hangs(worker, endpoint)
            await asyncio.sleep(0)  # Each is placed again: all at once would hold up everybody else.

    def tick(self) -> None:
        """Do what has become due: time-outs of clients, old connections to workers."""
        state = self.state
        state.now = now = state.clock()
        for client in [client for client in state.clients if now > client.deadline]:
            client.expired(now)
        state.admission.tick(now)
        state.pools.tick(now)
        if state.providers is not None:
            state.providers.pools.tick(now)

    def _on_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.state.limits.tick_s, self._on_timer)
        self.tick()
