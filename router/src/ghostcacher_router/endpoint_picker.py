"""The endpoint picker as a program: a router with a second port, where gateways ask to whom they shall send requests.

    gateway ==ext_proc==> epp.PickerServer --> the router's own parsing, placement and fleet

What a router answers itself is at its HTTP port as ever (`/health`, `/ready`, `/metrics`, `/gc/*`), and a request that
is sent there is routed. All pickers and routers of a fleet share what they know through Redis.

Start: as the router's, then the pool is read once, for a bounded time, and gRPC listens.
End: the health service says so, until gateways that check it have heard of it; then no new stream is taken, and those
under way have `drain_timeout_s` to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import uvloop

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import parse_listen
from ghostcacher_router.app import Router
from ghostcacher_router.epp.pool import KubernetesApi, PoolWatch
from ghostcacher_router.epp.settings import PickerSettings
from ghostcacher_router.garbage import look_through_all, set_survivors_aside
from ghostcacher_router.process_signals import ProcessSignals

try:
    from ghostcacher_router.epp.picking import EndpointPicking
    from ghostcacher_router.epp.server import PickerServer
except ModuleNotFoundError as exc:
    raise ConfigError(f"the endpoint picker: expected the packages that 'ghostcacher[epp]' brings, got: {exc}") from exc

logger = logging.getLogger(__name__)


def run(settings: PickerSettings, read_again: Callable[[], PickerSettings]) -> int:
    """Run a picker until SIGINT or SIGTERM; return its exit code. Raises ConfigError, IndexUnavailable at start.

    read_again: returns the settings as they are given at a SIGHUP. Raises ConfigError.
    """
    return uvloop.run(_main(settings, read_again))


async def _main(settings: PickerSettings, read_again: Callable[[], PickerSettings]) -> int:
    picker = EndpointPicker(settings)
    router = picker.router
    signals = ProcessSignals(settings, read_again=read_again, take_over=router.take_over, cut=router.cut)
    signals.install()
    try:
        await picker.start()
        set_survivors_aside()
        looking = asyncio.create_task(look_through_all())
        await signals.wait_for_end()
        looking.cancel()
        await picker.server.give_notice()
        logger.info("stopping: %d streams have %g s to end", picker.server.streams, router.drain_timeout_s)
    finally:
        await picker.stop()
    return signals.status


class EndpointPicker:
    """One picker process. On the event loop only. router: its other half. server: for gateways. pool: None without."""

    def __init__(self, settings: PickerSettings, *, api: KubernetesApi | None = None) -> None:
        """api: of the cluster that the pool is in; None: of the one that this process is a pod of."""
        tls = settings.grpc_tls()
        self._listen = parse_listen(settings.grpc_listen, "grpc_listen")
        self.pool: PoolWatch | None = None
        pool_api = None if settings.pool is None else api or KubernetesApi.of_pod()
        self.router = Router(settings)
        parts = self.router.parts()
        if settings.pool is not None and pool_api is not None:
            self.pool = PoolWatch(pool_api, settings.pool, parts.fleet.follow)
        picking = EndpointPicking(parts, fallbacks_max=settings.fallback_endpoints_max, members=self._members)
        self.server = PickerServer(parts, picking, timeout_s=settings.wait_s_max, tls=tls, has_pool=self._has_pool)

    def __repr__(self) -> str:
        return f"EndpointPicker({self.server!r}, {self.router!r})"

    async def start(self) -> None:
        """Read the pool, start the router, then listen for gateways. Raises ConfigError."""
        if self.pool is not None:
            await self.pool.start()
        await self.router.start()
        await self.server.start(self._listen)
        where = self._listen._replace(port=self.server.port)
        logger.info("the endpoint picker listens for gateways on %s", where)

    async def stop(self) -> None:
        """End everything, within twice `drain_timeout_s` and some seconds. Idempotent."""
        await self.server.stop(self.router.drain_timeout_s)
        if self.pool is not None:
            await self.pool.stop()
        await self.router.stop()

    def _members(self) -> Collection[str] | None:
        return None if self.pool is None else self.pool.members

    def _has_pool(self) -> bool:
        return self.pool is None or self.pool.is_known
