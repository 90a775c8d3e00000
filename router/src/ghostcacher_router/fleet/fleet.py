"""The fleet: workers found through their leases in Redis, or given as static URLs, or both.

    Redis --records--> Leases (which are in force) --+
    static URLs -------------------------------------+--> members --> Worker, one Watch task each --> gone
    store --loads, drains--> Worker

One server that has both a record and a static URL is one worker, and the record wins. Data-parallel ranks behind one
server are workers of their own at one address: each has its load and its drain, and what their server refuses concerns
them all. Requests in flight at a worker that leaves the fleet go on; nothing here knows of them. Who has left without
being drained is named for a while.

A drain belongs to one incarnation of a worker: the next one is READY again. Incarnations of a worker that is known by
its URL only cannot be told apart: its drain lasts until it is taken back, or `drain_ttl_s`.

Everything here runs on the event loop; store and index are asked in threads of the fleet's own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.drains import Drains
from ghostcacher_router.fleet.hung_workers import HungWorkers
from ghostcacher_router.fleet.membership.gone import GoneWorker, GoneWorkers
from ghostcacher_router.fleet.membership.leases import Leases
from ghostcacher_router.fleet.membership.members import NAME_CHARS_MAX, Member, Unroutable, members_of
from ghostcacher_router.fleet.model_lists import merged_models, models_with_billing_line, serving_by_model
from ghostcacher_router.fleet.model_refresh import ModelRefresh
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import Outliers
from ghostcacher_router.fleet.probes import HttpProber, Prober
from ghostcacher_router.fleet.redis_trouble import RedisTrouble
from ghostcacher_router.fleet.watch import Watch, WatchDependencies
from ghostcacher_router.fleet.worker import Worker, drain_id_of
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.store_calls import StoreThreads
from ghostcacher_router.types import Endpoint, Outcome, WorkerState

logger = logging.getLogger(__name__)

THREADS = 3
"""Records, loads and drains are asked for, each at most once at a time."""


class Fleet:
    """Every worker that the router knows, and which of them can be used. On the event loop only.

    index, store: None for a fleet of static URLs alone. clock: in seconds, as the loop's. It is started once, and
    stopped once.
    """

    def __init__(
        self,
        *,
        metrics: RouterMetrics,
        static: Sequence[Endpoint] = (),
        index: BlockIndex | None = None,
        store: CoordinationStore | None = None,
        prober: Prober | None = None,
        options: FleetOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.options = options or FleetOptions()
        self._static = tuple(static)
        self._index, self._store, self._metrics, self._clock = index, store, metrics, clock
        prober = prober or HttpProber()
        self.hung = HungWorkers(self.options.gone_ttl_s)
        told = self._changed, self._went_down, self.hung.tell
        self._watched = WatchDependencies(prober, self.options, metrics, clock, jitter, *told)
        self._model_refresh = ModelRefresh(prober, lambda: list(self._workers.values()), clock, self._changed)
        self.outliers = Outliers(self.options, clock, count=metrics.ejections.inc, changed=self._changed)
        self._when_down: list[Callable[[str], None]] = []
        self._leases = Leases(self.options.lease_ttl_s)
        self._threads = StoreThreads(THREADS, "gc-fleet", limit_s=self.options.store_call_s_max)
        self._drains = Drains(store, ttl_s=self.options.drain_ttl_s, offload=self._threads)
        self._workers: dict[str, Worker] = {}
        self.workers: Mapping[str, Worker] = MappingProxyType(self._workers)
        self._watches: dict[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._has_discovered = index is None
        self._serving: dict[str | None, list[Worker]] | None = None
        self._models: dict[str, Mapping[str, object]] | None = None
        self._billing_kept: frozenset[str | None] | None = None
        self._unroutable: Mapping[str, Unroutable] = {}
        self._gone = GoneWorkers(self.options.gone_ttl_s, clock)
        self._redis = RedisTrouble()
        self._reconciled: list[WorkerRecord] | None = None

    def __repr__(self) -> str:
        states = {state.value: count for state, count in self.count_by_state().items() if count}
        return f"Fleet({states}, redis_available={self.redis_available})"

    # What there is

    @property
    def unroutable(self) -> Mapping[str, Unroutable]:
        """Workers that have a lease, but cannot be sent requests, and why, by name."""
        return self._unroutable

    @property
    def gone(self) -> list[GoneWorker]:
        """Workers that have left within `gone_ttl_s` without being drained before, the latest first."""
        return self._gone.recent()

    @property
    def has_looked(self) -> bool:
        """Whether Redis has been asked for workers, and every worker that is known for its health, at least once."""
        return self._has_discovered and all(watch.has_probed for watch in self._watches.values())

    @property
    def redis_available(self) -> bool:
        """Whether the index answered the last time; False without one."""
        return self._leases.available

    @property
    def redis_error(self) -> str | None:
        """Why the index did not answer the last time, for people; None when it did, and without one."""
        return self._redis.text

    def serving(self, model: str | None) -> list[Worker]:
        """Return the READY workers of a model, or all when it is None, in order of name; ejected ones are left out.

        It is the same list object until something changes, and not to be changed by the caller.
        """
        self._settle()
        if self._serving is None:
            workers = [self._workers[name] for name in sorted(self._workers)]
            self._serving = serving_by_model(workers, self.outliers.ejected)
        found = self._serving.get(model)
        return [] if found is None else found

    def models(self) -> list[str]:
        """Return the ids of all known models, also of those that no READY worker serves right now, in order."""
        return list(self.model_objects())

    def model_objects(self) -> Mapping[str, Mapping[str, object]]:
        """Return each known model as an engine describes it, in order of id."""
        if self._models is None:
            self._models = merged_models(self._workers[name] for name in sorted(self._workers))
        return self._models

    @property
    def models_may_be_old(self) -> bool:
        """Whether asking the workers for their models now may show one that is not known."""
        return self._model_refresh.due

    async def refresh_models(self) -> None:
        """Ask the workers for their models, once in a second at most, and wait for the answers, a second at most."""
        await self._model_refresh.wait()

    def models_changed(self) -> None:
        """A worker has loaded or unloaded an adapter: ask them all for their models, without anybody waiting."""
        self._model_refresh.soon()

    def billing_kept(self) -> frozenset[str | None]:
        """Return the models of which a prompt may keep a client's billing line (`models_with_billing_line`)."""
        if self._billing_kept is None:
            self._billing_kept = models_with_billing_line(self._workers.values())
        return self._billing_kept

    def count_by_state(self) -> dict[WorkerState, int]:
        """Return how many workers are in each state."""
        counts = Counter(worker.state for worker in self._workers.values())
        return {state: counts[state] for state in WorkerState}

    def lease_of(self, name: str) -> str:
        """Say why a worker is in the fleet: "static" by its URL, or its lease is "held", or "kept" without Redis."""
        if self._workers[name].record is None:
            return "static"
        return "held" if self._leases.available and not self._leases.kept(name) else "kept"

    # What the HTTP proxy and people report

    def limits(self) -> Mapping[str, int]:
        """Return how many requests may be in flight at a worker, by name, where that is limited."""
        return self.outliers.limits()

    def why_ejected(self, name: str) -> str | None:
        """Say why a worker gets no requests though its probes are fine; None when it is not ejected."""
        self._settle()
        return self.outliers.why(name)

    def lost(self, name: str, outcome: Outcome) -> None:
        """A request got no whole answer from a worker: it is probed at once, and so are all ranks behind its server."""
        if (watch := self._watches.get(name)) is not None:
            watch.lost(refused=outcome is Outcome.REFUSED)
            self.doubted(watch.worker.endpoint)

    def doubted(self, endpoint: Endpoint) -> None:
        """Something has happened to a server that may be its end: all workers behind it are probed at once."""
        for watch in self._watches.values():
            if watch.worker.endpoint == endpoint:
                watch.doubted()

    def failed(self, name: str, kind: str, why: str) -> None:
        """A request failed at a worker, not for its own sake: it is probed at once; after some in a row it is ejected.

        kind: a label of metrics. why: for people.
        """
        if (watch := self._watches.get(name)) is not None:
            self.doubted(watch.worker.endpoint)
            if watch.worker.state is WorkerState.READY:
                self.outliers.failed(name, kind, why)

    def answered(self, name: str) -> None:
        """A request got an answer from a worker."""
        if (watch := self._watches.get(name)) is not None:
            watch.answered()
            self.outliers.answered(name)

    def when_down(self, tell: Callable[[str], None]) -> None:
        """Have a function called with the name of each worker that becomes DOWN."""
        self._when_down.append(tell)

    def drain(self, name: str, draining: bool) -> None:
        """Give a worker no new requests, or take that back: here at once, in every replica soon. KeyError: unknown."""
        watch = self._watches[name]
        self._drains.want(watch.worker.drain_id, draining)
        watch.drain(draining)

    async def share_drains(self) -> bool:
        """Tell the other replicas now; return whether they can know of every drain. Bounded by the store's time-out."""
        shared = await self._drains.exchange()
        for watch in self._watches.values():
            hold = self._drains.hold(watch.worker.drain_id)
            if hold is not watch.worker.draining:
                watch.drain(hold)
        return shared

    # Start and stop

    async def start(self) -> None:
        """Begin to look for workers and to probe them. Static ones are known at once, found ones soon."""
        assert not self._loops, "a fleet starts once"
        self._reconcile()
        if self._index is not None:
            self._loops.append(self._forever(self._discover, self.options.discover_interval_s))
        if self._store is not None:
            self._loops.append(self._forever(self.share_drains, self.options.drain_interval_s))
            self._loops.append(self._forever(self._poll_loads, self.options.load_interval_s))
        self._metrics.watch_fleet(self.count_by_state, lambda: self.redis_available, self._refused)

    async def stop(self) -> None:
        """End all tasks. Threads end when the store or index has answered. Idempotent."""
        tasks = [*self._loops, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._model_refresh.stop()
        await self.hung.stop()
        self._tasks.clear()
        self._threads.close()

    def _forever(self, step: Callable[[], Awaitable[object]], interval_s: float) -> asyncio.Task[None]:
        async def run() -> None:
            while True:
                try:
                    await step()
                except Exception:
                    # A bug must not freeze what the router knows until it is restarted.
                    logger.exception("unexpected error in the fleet's %s", getattr(step, "__name__", step))
                await asyncio.sleep(interval_s)

        return asyncio.create_task(run())

    # What Redis says

    async def _discover(self) -> None:
        index = self._index
        assert index is not None
        try:
            records = await self._threads(lambda: index.workers(None))
        except IndexUnavailable as exc:
            self._redis.failed(exc, len(self._workers))
            self._leases.redis_silent()
            self._has_discovered = True
            return
        self._redis.answered()
        # Before a new worker is taken in: it may have been drained through another router.
        known = {worker.drain_id for worker in self._workers.values()}
        routable = [record for record in records if len(record.worker) <= NAME_CHARS_MAX]
        if new := {drain_id_of(record.worker, record) for record in routable} - known:
            await self._drains.exchange(new)
        # The drains are asked, for a flush shows nowhere among the records once the first of the workers is back.
        forgot = self._leases.lacks(records) and await self._drains.forgot(self.options.lease_ttl_s)
        kept = self._leases.update(records, self._clock(), forgot=forgot)
        # Looked at twice a second: thousands of workers that are as they were cost the loop next to nothing.
        if self._leases.records != self._reconciled:
            self._reconcile()
        self._has_discovered = True
        for name in kept & self._watches.keys():
            logger.warning("worker %s: Redis has no lease of it any more; kept for now, while it answers", name)
            self._watches[name].soon()

    async def _poll_loads(self) -> None:
        store = self._store
        assert store is not None
        workers = {worker.ref: worker for worker in self._workers.values() if worker.ref is not None}
        refs = [ref for ref in workers if ref is not None]
        if not refs:
            return
        try:
            store_now, loads = await self._threads(lambda: store.loads(refs))
        except IndexUnavailable:
            return  # The last loads grow old, and whoever uses them sees their age.
        now = self._clock()
        for ref, load in zip(refs, loads, strict=True):
            workers[ref].take_load(load, store_now, now)

    # Who is a member

    def _reconcile(self) -> None:
        self._reconciled = records = self._leases.records
        members, unroutable = members_of(records, self._static)
        for name, trouble in unroutable.items():
            if self._unroutable.get(name) != trouble:
                logger.warning("worker %s cannot be sent requests: %s", name, trouble.why)
        self._unroutable = unroutable
        before = dict(self._workers)
        for name, worker in before.items():
            member = members.get(name)
            if member is None or not member.is_same(worker):
                if member is None or member.endpoint != worker.endpoint:
                    self.hung.look_after(worker, self._watched)
                self._remove(worker, for_good=member is None)
        for member in members.values():
            if member.name in self._workers:
                self._workers[member.name].renew(member.record)
            else:
                self._add(member, before)
        places = [(member.endpoint, member.data_parallel_rank) for member in members.values()]
        self._gone.forget(members.keys() | unroutable.keys(), places)
        if self._workers != before:
            self._drains.follow(worker.drain_id for worker in self._workers.values())
            self._changed()

    def _add(self, member: Member, before: Mapping[str, Worker]) -> None:
        worker = Worker(member.name, member.endpoint, member.record, self._clock())
        by_url = next((other for other in before.values() if member.takes_over(other)), None)
        if by_url is not None:
            worker.inherit(by_url)
            if by_url.draining:
                self._drains.want(worker.drain_id, True)
        watch = Watch(worker, self._watched)
        self._workers[member.name], self._watches[member.name] = worker, watch
        watch.drain(self._drains.hold(worker.drain_id))
        self._tasks[member.name] = self._forever(watch.run, self.options.backoff_max_s)
        logger.info("worker %s: %s at %s", worker.name, worker.state.value, worker.endpoint.url)

    def _remove(self, worker: Worker, *, for_good: bool) -> None:
        del self._workers[worker.name], self._watches[worker.name]
        self._tasks.pop(worker.name).cancel()
        self.outliers.forget(worker.name)
        if for_good:
            self._gone.add(worker)
            self._metrics.forget_worker(worker.name)
        logger.info("worker %s: %s", worker.name, "gone" if for_good else "a new incarnation takes over")

    def _refused(self) -> dict[str, int]:
        """Return how many values in Redis were not believed, by kind and reason."""
        counts = Counter[str]()
        for source in (self._index, self._store):
            counts.update({} if source is None else source.refusals())
        return counts

    def _settle(self) -> None:
        if self.outliers.due < inf and self.outliers.due <= self._clock():
            self.outliers.settle()

    def _went_down(self, name: str) -> None:
        # From now on its probes have the say, and what it had in memory is likely gone.
        self.outliers.forget(name)
        for tell in self._when_down:
            tell(name)

    def _changed(self) -> None:
        self._serving = self._models = self._billing_kept = None
