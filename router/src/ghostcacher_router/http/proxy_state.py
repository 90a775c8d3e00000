"""What all connections of one HTTP proxy share: its parts, its counts and its names for requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import Callable

from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.http.access_log import log_request
from ghostcacher_router.http.clients.admission import Admission, Admitted
from ghostcacher_router.http.clients.reading_turns import ReadingTurns
from ghostcacher_router.http.protocol.cors import AllowedOrigins
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.protocol.request_reader import JOINED_BYTES_MAX
from ghostcacher_router.http.proxy_ports import LocalEndpoints, Meter, Parse, Providers
from ghostcacher_router.http.rare_lines import RareLines
from ghostcacher_router.types import Dispatcher, KvSource, Placement
from ghostcacher_router.upstreams.worker_pools import Pools

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""The status under which a request is counted whose client left, as nginx calls it. It is never sent."""
FAN_OUTS_MAX = 32
"""Servers that are asked at a time for requests that go to all: each takes a connection, whoever has asked for it."""
SHORT_SHARE = 16
"""A part of `buffered_bytes_max` that is kept for bodies up to `JOINED_BYTES_MAX`, however many long ones there are."""


def pulls_from_nobody(_: Placement) -> KvSource | None:
    """Return from whom the worker of a placement is told to pull: it is told nothing."""
    return None


class ProxyState:
    """Shared by the proxy, its clients' connections and their exchanges. Loop only.

    now: the time of the last tick, for what may be half a second off. in_flight: requests that are being answered.
    buffered_bytes: of bodies held. leaving: each connection takes one more request at most. draining: none is taken.
    clients: open connections, let in by `admission`. tracer: of each request that a worker answers; None: none is
    traced. keep_alive_s: how long a connection stays open between two requests. kv_source: returns from whom the worker
    of a placement is told to pull.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        local: LocalEndpoints,
        parse: Parse,
        meter: Meter,
        *,
        router: str,
        limits: Limits,
        clock: Callable[[], float],
        worker_tls: ssl.SSLContext | None,
        resolver: Resolver,
        access_log: bool,
    ) -> None:
        self.dispatcher = dispatcher
        self.local = local
        self.parse = parse
        self.meter = meter
        self.limits = limits
        self.clock = clock
        self.access_log = access_log
        self.access_log_prompts = False
        self.tracer: Tracer | None = None
        self.kv_source: Callable[[Placement], KvSource | None] = pulls_from_nobody
        self.allowed_origins = AllowedOrigins(limits.allowed_origins)
        self.now = clock()
        self.pools = Pools(limits, self.now, worker_tls, resolver)
        self.providers: Providers | None = None
        self.in_flight = 0
        self.buffered_bytes = 0
        most = limits.buffered_bytes_max
        self.room_bytes = most - most // SHORT_SHARE
        """While no more are held, there is room for any body."""
        self.leaving = False
        self.draining = False
        self.keep_alive_s = limits.keep_alive_s
        self.admission = Admission(limits, meter, lambda: self.open_count)
        self.turns = ReadingTurns()
        self.fan_outs = asyncio.Semaphore(FAN_OUTS_MAX)
        self.clients = self.admission.clients
        self._emptied: asyncio.Future[None] | None = None
        self._unconnected = 0
        self._lines = RareLines()
        self._ids = itertools.count(1)
        self._id_prefix = f"gc-{router}-".encode()

    def __repr__(self) -> str:
        counts = f"clients={len(self.clients)}, in_flight={self.in_flight}, buffered_bytes={self.buffered_bytes}"
        return f"ProxyState({counts})"

    @property
    def open_count(self) -> int:
        """Return how many connections to workers and providers are open."""
        return self.pools.open_count + (0 if self.providers is None else self.providers.pools.open_count)

    def has_room_for(self, size: int) -> bool:
        """Say whether a body of which `size` bytes are held, and counted, may stay."""
        limits = self.limits
        most = limits.buffered_bytes_max
        if size > JOINED_BYTES_MAX:
            most = max(most - most // SHORT_SHARE, limits.body_bytes_max)
        return self.buffered_bytes <= most

    def next_request_id(self) -> bytes:
        return b"%b%d" % (self._id_prefix, next(self._ids))

    def answered(
        self,
        peer: str | None,
        head: RequestHead | None,
        status: int,
        request_id: bytes | None,
        *,
        worker: str | None = None,
        placement: Placement | None = None,
        began_at: float | None = None,
        queued_s: float | None = None,
    ) -> None:
        """Count a request that has ended, and log it where that is wanted.

        began_at: when a worker was first wanted for it, by the proxy's clock. queued_s: how long it waited for its
        turn; None where nobody waits for one. The others: as in `log_request`.
        """
        self.meter.answered("" if head is None else head.path, status)
        if self.access_log:
            took_ms = 0.0 if began_at is None else (self.clock() - began_at) * 1e3
            log_request(
                peer,
                head,
                status,
                request_id,
                worker=worker,
                placement=placement,
                took_ms=took_ms,
                prompts=self.access_log_prompts,
                queued_ms=None if queued_s is None else queued_s * 1e3,
            )

    def cannot_connect(self, exc: OSError) -> None:
        """Log what the router lacks to connect to workers: once in a while, and for how many requests so far."""
        self._unconnected += 1
        if self._lines.due("cannot connect", self.now):
            logger.warning("the router cannot connect to workers, for %d requests so far: %s", self._unconnected, exc)

    def forget(self, client: Admitted) -> None:
        """A connection is closed."""
        self.admission.forget(client)
        if not self.clients and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def wait_until_empty(self) -> None:
        """Return when all connections are closed."""
        if self.clients:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied
