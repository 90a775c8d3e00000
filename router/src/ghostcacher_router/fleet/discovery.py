"""What Redis says of the fleet, again and again: which workers there are, which are drained, how loaded they are.

    index --records--> Leases (which are in force) --> Roster
    store --orders--> Drains --> Watch                         what is ordered here goes the other way
    store --loads--> Worker

While Redis does not answer, all of it stays as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ghostcacher_connector.core.coordination.base import CoordinationStore, StampedLoad
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.drains import Drains
from ghostcacher_router.fleet.forever import forever
from ghostcacher_router.fleet.membership.leases import Leases
from ghostcacher_router.fleet.membership.members import NAME_CHARS_MAX
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.redis_trouble import RedisTrouble
from ghostcacher_router.fleet.roster import Roster
from ghostcacher_router.fleet.worker import Worker, drain_id_of
from ghostcacher_router.store_calls import StoreThreads

logger = logging.getLogger(__name__)

LOADS_AT_ONCE = 64
"""Loads that are handed out before other tasks get their turn: some 0.5 ms."""


class Discovery:
    """Keeps the roster, its drains and its loads as Redis has them. On the event loop only.

    leases: which records are in force. trouble: why Redis did not answer the last time. has_looked: whether Redis has
    been asked for workers at least once, or there is none.
    """

    def __init__(
        self,
        index: BlockIndex | None,
        store: CoordinationStore | None,
        roster: Roster,
        drains: Drains,
        threads: StoreThreads,
        *,
        options: FleetOptions,
        clock: Callable[[], float],
    ) -> None:
        """index, store: None without Redis. threads: in which both are called. clock: in seconds."""
        self._index, self._store, self._roster, self._drains = index, store, roster, drains
        self._threads, self._options, self._clock = threads, options, clock
        self.leases = Leases(options.lease_ttl_s)
        self.trouble = RedisTrouble()
        self.has_looked = index is None
        self.on_loads: Callable[[], None] = lambda: None
        """Called whenever loads were asked for, and with them all that comes of their age."""
        self.on_reports: Callable[[Sequence[Worker]], None] = lambda _: None
        """Called before that with workers that have another load, some at a time."""
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"Discovery({self.leases!r}, {self.trouble!r})"

    def start(self) -> None:
        """Take in the static workers, and begin to ask Redis for more."""
        assert not self._tasks, "it starts once"
        options = self._options
        self._roster.reconcile(self.leases.records)
        if self._index is not None:
            self._tasks.append(forever(self.find_workers, options.discover_interval_s))
        if self._store is not None:
            self._tasks.append(forever(self.share_drains, options.drain_interval_s))
            self._tasks.append(forever(self.read_loads, options.load_interval_s))

    async def stop(self) -> None:
        """Ask for nothing any more. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def find_workers(self) -> None:
        """Have the roster follow the records in Redis."""
        index, roster = self._index, self._roster
        assert index is not None
        try:
            records = await self._threads(lambda: index.workers(None))
        except IndexUnavailable as exc:
            self.trouble.failed(exc, len(roster.workers))
            self.leases.redis_silent()
            self.has_looked = True
            return
        self.trouble.answered()
        kept = await self._update_leases(records)
        roster.reconcile(self.leases.records)
        self.has_looked = True
        for name in kept & roster.watches.keys():
            logger.warning("worker %s: Redis has no lease of it any more; kept for now, while it answers", name)
            roster.watches[name].soon()

    async def _update_leases(self, records: list[WorkerRecord]) -> set[str]:
        """Return the workers that are kept from now on though Redis no longer has them."""
        # Before a new worker is taken in: it may have been drained through another router.
        known = {worker.drain_id for worker in self._roster.workers.values()}
        routable = [record for record in records if len(record.worker) <= NAME_CHARS_MAX]
        if new := {drain_id_of(record.worker, record) for record in routable} - known:
            await self._drains.exchange(new)
        # The drains are asked, for a flush shows nowhere among the records once the first of the workers is back.
        forgot = self.leases.lacks(records) and await self._drains.forgot(self._options.lease_ttl_s)
        return self.leases.update(records, self._clock(), forgot=forgot)

    async def share_drains(self) -> bool:
        """Exchange drains with the other routers now; return whether they can know of every one of this router."""
        shared = await self._drains.exchange()
        for watch in self._roster.watches.values():
            hold = self._drains.hold(watch.worker.drain_id)
            if hold is not watch.worker.draining:
                watch.drain(hold)
        return shared

    async def read_loads(self) -> None:
        """Hand each worker the last load that it has reported."""
        store = self._store
        assert store is not None
        workers = {worker.ref: worker for worker in self._roster.workers.values() if worker.ref is not None}
        refs = [ref for ref in workers if ref is not None]
        if not refs:
            return
        try:
            store_now, loads = await self._threads(lambda: store.loads(refs))
        except IndexUnavailable:
            pass  # The last loads grow old, and whoever uses them sees their age.
        else:
            now, told = self._clock(), list(zip(refs, loads, strict=True))
            for first in range(0, len(told), LOADS_AT_ONCE):
                some = told[first : first + LOADS_AT_ONCE]
                self.on_reports([workers[ref] for ref, load in some if self._takes(workers[ref], load, store_now, now)])
                await asyncio.sleep(0)
        self.on_loads()

    def _takes(self, worker: Worker, load: StampedLoad | None, store_now: float, now: float) -> bool:
        """Hand a worker its load; return whether it is a new one. Not to one that was replaced since it was asked for.

        Queues are known by names, and its successor has its name.
        """
        return self._roster.workers.get(worker.name) is worker and worker.take_load(load, store_now, now)

    def refused_values(self) -> Mapping[str, int]:
        """Return how many values in Redis were not believed, by kind and reason."""
        counts = Counter[str]()
        for source in (self._index, self._store):
            counts.update({} if source is None else source.refusals())
        return counts
