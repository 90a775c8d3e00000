"""Gathers what the dashboard shows, in a task of its own, and answers its questions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ghostcacher_connector.core.dashboard_api import History, Links, Locks, Prefixes
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_router.admin.dashboard.history import INTERVAL_S, HistoryKeeper
from ghostcacher_router.admin.dashboard.link_reports import LinkReports
from ghostcacher_router.admin.dashboard.lock_reports import lock_reports
from ghostcacher_router.admin.dashboard.prefix_reports import PrefixReports
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.ports import Offload
from ghostcacher_router.prefix_map import PrefixMap

logger = logging.getLogger(__name__)

SETTLE_S = 1.0
"""How often the prompts that came are looked at."""


class Dashboard:
    """What one router shows of itself over time. On the event loop only. Start it once, stop it once."""

    def __init__(
        self,
        fleet: Fleet,
        text: PrefixMap,
        routing: Routing,
        metrics: RouterMetrics,
        *,
        index: BlockIndex | None,
        offload: Offload,
        router: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """index: None without Redis. offload: runs its calls. router: the name of this one."""
        state, workers = routing.state, fleet.workers
        self._hot, self._locks, self._clock = state.hot, state.locks, clock
        self._history = HistoryKeeper(router, metrics, workers, state.queues.in_flight, clock=clock)
        self._prefixes = PrefixReports(state, text, workers, index, offload=offload, clock=clock)
        self._links = LinkReports(index, workers, offload, clock)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Dashboard({self._history!r}, {self._hot!r})"

    def start(self) -> None:
        """Begin to gather."""
        assert self._task is None, "it starts once"
        self._task = asyncio.get_running_loop().create_task(self._gather())

    async def stop(self) -> None:
        """End that. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def history(self, after: float | None) -> History:
        """Return how the router fared after a time, in seconds since 1970; None: in all that is kept."""
        return self._history.since(after)

    def sample(self) -> None:
        """Add what has happened since the last interval ended to the history."""
        self._history.sample()

    async def prefixes(self) -> Prefixes:
        """Return what many prompts begin with, and who holds it."""
        return await self._prefixes.report()

    def locks(self) -> Locks:
        """Return the ghost locks that are held."""
        return lock_reports(self._locks, self._clock())

    async def links(self, worker: str | None) -> Links:
        """Return the links of one worker, or of all. Raises Refusal."""
        return await self._links.report(worker)

    async def _gather(self) -> None:
        sampled_at = self._clock()
        while True:
            await asyncio.sleep(SETTLE_S)
            try:
                self._hot.settle()
                if self._clock() - sampled_at >= INTERVAL_S:
                    # From when it was due: what a busy loop delays must not add up.
                    sampled_at = max(sampled_at + INTERVAL_S, self._clock() - INTERVAL_S)
                    self._history.sample()
            except Exception:
                # A bug here must not end what people see for ever.
                logger.exception("unexpected error while gathering for the dashboard")
