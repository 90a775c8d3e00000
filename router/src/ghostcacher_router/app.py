"""The router as a whole: makes the parts, starts them in order, and ends them in order.

    client --> http.HttpProxy --> parsing.BodyParser --> placement.Picker --> fleet.Fleet
                  |  '--> admin.Admin (what the router answers itself)        |
                  v                                                           v
               workers        sync.RouterSync <--> Redis (coordination store, index) <-- workers' connectors

Start: the router announces itself in Redis, reads what the others have learned and asks each worker for its health, for
a bounded time, so that the first request finds a warm router; then it listens. When Redis is away it starts all the
same, and catches up later.
End: no new request is taken, those in flight finish within `drain_timeout_s`, then the router takes leave in Redis.
What signals do: process_signals.py.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from random import Random

import msgspec
import uvloop

from ghostcacher_connector.core.admin_api import Prefetched
from ghostcacher_connector.core.coordination.base import HeartbeatReply
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen, parse_listen
from ghostcacher_connector.core.tracing import open_tracer
from ghostcacher_router.admin.access import Access
from ghostcacher_router.admin.actions import AdminActions
from ghostcacher_router.admin.admin import Admin, AdminPorts
from ghostcacher_router.admin.dashboard.dashboard import Dashboard
from ghostcacher_router.admin.parameters import PrefetchTarget
from ghostcacher_router.admin.worker_flushes import WorkerFlushes
from ghostcacher_router.build import THREADS, Routing
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.epp.parts import Parts
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.lazy_adapters import LazyAdapters
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint, parse_roles
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.probes import HttpProber
from ghostcacher_router.garbage import look_through_all, set_survivors_aside
from ghostcacher_router.http.exchanges.handover import steps_of
from ghostcacher_router.http.exchanges.warming import Warmer
from ghostcacher_router.http.open_files import allow_clients
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.parsing.parser import BodyParser
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.placement.kv_sources import KvSources
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.process_signals import RELOADED, ProcessSignals
from ghostcacher_router.processes.membership import Membership, Told
from ghostcacher_router.setup import limits_of, make_providers
from ghostcacher_router.store_calls import StoreThreads, call_s_max
from ghostcacher_router.stores import open_stores, seed_of
from ghostcacher_router.sync import READ_BLOCK_S
from ghostcacher_router.types import Body, RequestShape, WorkerState
from ghostcacher_router.warm_up import wait_until_of_use, wait_until_warm

logger = logging.getLogger(__name__)


def run(
    settings: RouterSettings, read_again: Callable[[], RouterSettings], membership: Membership | None = None
) -> int:
    """Run a router until SIGINT or SIGTERM; return its exit code. Raises ConfigError, IndexUnavailable at start.

    read_again: returns the settings as they are given at a SIGHUP. Raises ConfigError. membership: where this process
    is one of several of a router.
    """
    return uvloop.run(_main(settings, read_again, membership))


async def _main(
    settings: RouterSettings, read_again: Callable[[], RouterSettings], membership: Membership | None
) -> int:
    router = Router(settings, membership)
    signals = ProcessSignals(settings, read_again=read_again, take_over=router.take_over, cut=router.cut)
    signals.install()
    try:
        await router.start()
        set_survivors_aside()
        looking = asyncio.create_task(look_through_all())
        if membership is not None:
            await router.follow(membership, signals.end)
        await signals.wait_for_end()
        looking.cancel()
        logger.info("stopping: %d requests in flight have %g s to end", router.in_flight, router.drain_timeout_s)
    finally:
        await router.stop()
    return signals.status


class Router:
    """One router process. On the event loop only. url: where it listens; empty before it does."""

    def __init__(self, settings: RouterSettings, membership: Membership | None = None) -> None:
        """membership: where it is one process of several."""
        self._settings, self._membership = settings, membership
        self._tracer = open_tracer("ghostcacher-router") if settings.tracing else None
        self._workerless = bool(settings.upstreams) and not settings.workers and not settings.redis
        """Whether it serves hosted providers alone."""
        self._listen: Listen = parse_listen(settings.listen, "listen")
        self._name = secrets.token_hex(4)
        self._seed = seed_of(settings)
        limit_s = call_s_max(settings.redis_timeout_s)
        self._threads = StoreThreads(THREADS, "gc-store", limit_s=limit_s)
        self._reader = StoreThreads(1, "gc-read", limit_s=READ_BLOCK_S + limit_s)
        self._parser = BodyParser(settings.body_bytes_max)
        self._index, self._store = open_stores(settings)
        self._metrics = RouterMetrics()
        self._resolver = Resolver(refresh_s=settings.dns_refresh_s, count=self._metrics.dns_lookups.inc)
        self._fleet = Fleet(
            metrics=self._metrics,
            static=[parse_endpoint(url, "workers") for url in settings.workers],
            index=self._index,
            store=self._store,
            prober=HttpProber(resolver=self._resolver, timeout_s=settings.health_timeout_s),
            options=FleetOptions(
                health_interval_s=settings.health_interval_s,
                failures_max=settings.health_failures_max,
                load_interval_s=settings.load_interval_ms / 1e3,
                store_call_s_max=limit_s,
            ),
            lazy=LazyAdapters(settings.lazy_adapters),
            roles=parse_roles(settings.roles, "roles"),
        )
        text = PrefixMap(self._name, entries_max=settings.text_map_entries_max)
        self._routing = self._make_routing(text)
        self._routing.control_flow(settings)
        self._routing.join(*((None, None) if membership is None else membership.shared()))
        self._dashboard = Dashboard(
            self._fleet,
            text,
            self._routing,
            self._metrics,
            index=self._index,
            offload=self._threads,
            router=self._name,
        )
        self._proxy = self._make_proxy(text)
        self._proxy.state.tracer = self._tracer
        if settings.p2p_port is not None:
            history = self._routing.state.history
            self._proxy.state.kv_source = KvSources(history, self._fleet, time.monotonic, port=settings.p2p_port)
        self._warmer = Warmer(self._proxy.state)
        self._fleet.when_down(lambda name: self._proxy.worker_down(self._fleet.workers[name].endpoint))
        if self._routing.flow is not None:
            self._fleet.when_changed(self._routing.flow.changed)
        self._fleet.hung.when(lambda worker, since: self._proxy.worker_hangs(worker.name, worker.endpoint, since))
        self._proxy.when_idle_closed(self._fleet.doubted)
        clients = self._proxy.state.clients
        self._metrics.gauge("gc_router_clients", "Connections of clients.", lambda: {"": len(clients)})
        self._metrics.gauge(
            "gc_router_processes",
            "Processes of this router, those that end included, as each of them sees it.",
            lambda: {"": 1 if membership is None else 1 + len(membership.siblings.others())},
        )
        self.url = ""

    def __repr__(self) -> str:
        return f"Router({self._name}, {self.url or 'not listening'}, {self._fleet!r})"

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._proxy.in_flight

    @property
    def drain_timeout_s(self) -> float:
        """How long requests in flight have to end when the router stops."""
        return self._settings.drain_timeout_s

    def parts(self) -> Parts:
        """Return what an endpoint picker uses of it."""
        routing, limits = self._routing, self._proxy.state.limits
        shared = self._metrics, self._resolver, limits, routing.state.queues.in_flight, time.monotonic
        return Parts(self._name, self._fleet, routing.dispatcher, self._parse, *shared, self._proxy.state.kv_source)

    def take_over(self, settings: RouterSettings) -> None:
        """Put those settings in force that change nothing in flight (`process_signals.RELOADED`)."""
        taken = {name: getattr(settings, name) for name in RELOADED}
        self._settings = msgspec.structs.replace(self._settings, **taken)
        logging.getLogger().setLevel(settings.log_level.upper())
        self._proxy.state.access_log = settings.access_log
        self._proxy.state.access_log_prompts = settings.access_log_prompts

    def cut(self) -> None:
        """End the connections of all clients at once."""
        self._proxy.cut()

    async def start(self) -> None:
        """Read what the other routers have learned, for a bounded time, and listen.

        Raises ConfigError when the port is taken.
        """
        allow_clients(self._settings.connections_max)
        self._parser.start()
        await self._fleet.start()
        self._routing.start()
        self._dashboard.start()
        await wait_until_warm(self._routing, self._fleet)
        if self._membership is not None and self._membership.seat.replaces and not self._workerless:
            await wait_until_of_use(self._fleet)
        host, port = self._listen
        try:
            if self._membership is None:
                port = await self._proxy.start(host, port)
            else:
                port = await self._membership.accept(self._proxy)
        except OSError as exc:
            raise ConfigError(
                f"listen: expected a free address, got {self._settings.listen!r}: {exc.strerror or exc}"
            ) from exc
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        ready = self._fleet.count_by_state()[WorkerState.READY]
        workers = f"{ready} of {len(self._fleet.workers)} workers ready" if ready else "waiting for workers"
        where = f"Redis: {self._index!r}" if self._index is not None else "no Redis"
        logger.info("router %s listens on %s, %s (%s)", self._name, self.url, workers, where)

    async def follow(self, membership: Membership, end: Callable[[], None]) -> None:
        """Do from now on what the supervisor of several processes says. end: has this process end in order."""
        await membership.follow(self._proxy, Told(lambda: self._proxy.leave(self.drain_timeout_s), end))

    async def stop(self) -> None:
        """End everything, within `drain_timeout_s` and some seconds. Idempotent."""
        await self._proxy.stop(self.drain_timeout_s)
        if self._membership is not None:
            await self._membership.stop()
        await self._dashboard.stop()
        await self._routing.stop()
        await self._fleet.stop()
        for closing in (self._store, self._index):
            if closing is not None:
                closing.close()
        self._parser.stop()
        for threads in (self._threads, self._reader):
            threads.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    def _make_routing(self, text: PrefixMap) -> Routing:
        settings = self._settings
        dependencies = Dependencies(
            fleet=self._fleet,
            prefix_map=text,
            pending=PendingPrompts(),
            metrics=self._metrics,
            clock=time.monotonic,
            rng=Random(),  # noqa: S311 - ties among equal forecasts
            offload=self._threads,
            read_offload=self._reader,
        )
        options = Options(settings.affinity_tolerance, settings.ghost_lock, settings.ghost_lock_tokens_min)
        return Routing(
            dependencies,
            index=self._index,
            store=self._store,
            router=self._name,
            options=options,
            session_ttl_s=settings.session_ttl_s,
            stored_ttl_s=settings.stored_ttl_s,
            replicas=settings.replicas,
            on_heartbeat=self._on_heartbeat,
        )

    def _make_proxy(self, text: PrefixMap) -> HttpProxy:
        settings, routing = self._settings, self._routing
        actions = AdminActions(
            self._fleet,
            text,
            routing,
            self._parse,
            steps=lambda *asked: steps_of(self._proxy.state.limits, routing.picker, *asked),
            workers=WorkerFlushes(self._store, self._threads, self._fleet, router=self._name),
            router=self._name,
            seed=lambda: self._seed,
        )

        async def prefetch(target: PrefetchTarget) -> Prefetched:
            warmed = await self._warmer.warm(target.path, target.body, actions.exclude_all_but(target.worker))
            return Prefetched(*warmed)

        ports = AdminPorts(
            in_flight=routing.state.queues.in_flight,
            replicas=lambda: routing.replicas,
            refused=lambda: routing.refused,
            queue=lambda: None if routing.flow is None else routing.flow.report(),
            explain=actions.explain,
            prefetch=prefetch,
            flush=actions.flush,
            history=self._dashboard.history,
            prefixes=self._dashboard.prefixes,
            locks=self._dashboard.locks,
            links=self._dashboard.links,
        )
        access = Access(token=settings.admin_token, loopback=self._listen.loopback)
        if access.open_here:
            logger.warning(
                "/gc/* is open to programs on this machine, and to whoever a proxy on it lets through: set admin_token"
            )
        limits = limits_of(settings, takes_turns=routing.flow is not None)
        admin = Admin(
            fleet=self._fleet,
            metrics=self._metrics,
            access=access,
            ports=ports,
            router=self._name,
            workerless=self._workerless,
        )
        membership = self._membership
        proxy = HttpProxy(
            routing.dispatcher,
            admin
            if membership is None
            else membership.whole(
                admin, self._metrics, self._dashboard, lambda: self._fleet.workers, shared=settings.redis
            ),
            self._parse,
            self._metrics,
            router=self._name,
            limits=limits,
            resolver=self._resolver,
            access_log=settings.access_log,
        )
        proxy.state.access_log_prompts = settings.access_log_prompts
        proxy.use_providers(make_providers(settings, limits, self._metrics, self._resolver))
        return proxy

    def _parse(self, path: str, body: Body, headers: Mapping[bytes, bytes]) -> RequestShape | Awaitable[RequestShape]:
        return self._parser.parse(path, body, headers, self._seed, self._fleet.billing_kept())

    def _on_heartbeat(self, reply: HeartbeatReply) -> None:
        # Prefixes that were hashed with another seed are not found again: they expire in time, and are learned anew.
        self._seed = reply.seed
