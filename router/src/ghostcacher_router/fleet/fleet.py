"""The fleet: workers found through their leases in Redis, or given as static URLs, or both.

    Redis --Discovery--+
    static URLs -------+--> Roster: a Worker and its Watch each --READY--+
    requests that fail ---> Outliers ---------------------ejected--------+--> the workers that serve a model

Requests in flight at a worker that leaves the fleet go on; nothing here knows of them. Who has left without being
drained is named for a while.

A drain belongs to one incarnation of a worker: the next one is READY again. Incarnations of a worker that is known by
its URL only cannot be told apart: its drain lasts until it is taken back, or `drain_ttl_s`.

Everything here runs on the event loop; store and index are asked in threads of the fleet's own.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.fleet.adapter_uses import AdapterUses
from ghostcacher_router.fleet.cache_sizes import CacheSizes
from ghostcacher_router.fleet.discovery import Discovery
from ghostcacher_router.fleet.drains import Drains
from ghostcacher_router.fleet.hung_workers import HungWorkers
from ghostcacher_router.fleet.lazy_adapters import LazyAdapters
from ghostcacher_router.fleet.membership.gone import GoneWorker
from ghostcacher_router.fleet.membership.members import Unroutable
from ghostcacher_router.fleet.model_lists import (
    base_models,
    merged_models,
    models_with_billing_line,
    serving_by_model,
    split_models,
)
from ghostcacher_router.fleet.model_refresh import ModelRefresh
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import Outliers
from ghostcacher_router.fleet.probes import HttpProber, Prober
from ghostcacher_router.fleet.roster import Roster
from ghostcacher_router.fleet.watch import WatchDependencies
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.store_calls import StoreThreads
from ghostcacher_router.types import Endpoint, Outcome, WorkerState

THREADS = 3
"""Records, loads and drains are asked for, each at most once at a time."""


class Fleet:
    """Every worker that the router knows, and which of them can be used. On the event loop only.

    index, store: None for a fleet of static URLs alone. lazy: adapters that engines find when they are asked for them.
    roles: of engines that do not say what they do where prefill and decode are apart, by `same_server`.
    clock: in seconds, as the loop's. It is started once, and stopped once.
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
        lazy: LazyAdapters | None = None,
        roles: Mapping[Endpoint, PdRole] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.options = options or FleetOptions()
        self._metrics, self._clock = metrics, clock
        prober = prober or HttpProber()
        self._lazy = lazy or LazyAdapters()
        self._has_index = index is not None
        self._threads = StoreThreads(THREADS, "gc-fleet", limit_s=self.options.store_call_s_max)
        self._drains = Drains(store, ttl_s=self.options.drain_ttl_s, offload=self._threads)
        self._outliers = Outliers(self.options, clock, count=metrics.ejections.inc, changed=self._changed)
        self.hung = HungWorkers(self.options.gone_ttl_s)
        self._cache_sizes, self._adapter_uses = CacheSizes(prober), AdapterUses(prober)
        told = self._changed, self._went_down, self._cache_sizes.ask, self.hung.tell, self._adapter_uses.ask
        watched = WatchDependencies(prober, self.options, metrics, clock, jitter, *told)
        self._roster = Roster(static, watched, self._drains, self.hung, left=self._left, roles=roles)
        self.workers: Mapping[str, Worker] = self._roster.workers
        self._discovery = Discovery(
            index, store, self._roster, self._drains, self._threads, options=self.options, clock=clock
        )
        self._model_refresh = ModelRefresh(prober, self._roster.in_order, clock, self._changed)
        self._when_down: list[Callable[[str], None]] = []
        self._when_changed: list[Callable[[], None]] = []
        self._serving: dict[str | None, list[Worker]] | None = None
        self._models: dict[str, Mapping[str, object]] | None = None
        self._bases: frozenset[str] | None = None
        self._billing_kept: frozenset[str | None] | None = None

    def __repr__(self) -> str:
        states = {state.value: count for state, count in self.count_by_state().items() if count}
        return f"Fleet({states}, redis_available={self.redis_available})"

    # What there is

    @property
    def unroutable(self) -> Mapping[str, Unroutable]:
        """Workers that have a lease, but cannot be sent requests, and why, by name."""
        return self._roster.unroutable

    @property
    def gone(self) -> list[GoneWorker]:
        """Workers that have left within `gone_ttl_s` without being drained before, the latest first."""
        return self._roster.gone.recent()

    @property
    def has_looked(self) -> bool:
        """Whether Redis has been asked for workers, and every worker that is known for its health, at least once."""
        return self._discovery.has_looked and all(watch.has_probed for watch in self._roster.watches.values())

    @property
    def redis_available(self) -> bool:
        """Whether the index answered the last time; False without one."""
        return self._discovery.leases.available

    @property
    def redis_error(self) -> str | None:
        """Why the index did not answer the last time, for people; None when it did, and without one."""
        return self._discovery.trouble.text

    def serving(self, model: str | None) -> list[Worker]:
        """Return the READY workers of a model, or all when it is None, in order of name; ejected ones are left out.

        Of an adapter that engines find by themselves they are those of its base model.

        It is the same list object until something changes, and not to be changed by the caller.
        """
        self._settle()
        if self._serving is None:
            self._serving = serving_by_model(self._roster.in_order(), self._outliers.ejected)
        base = self.base_of(model)
        return (base and self._serving.get(base)) or self._serving.get(model) or []

    def base_of(self, model: str | None) -> str | None:
        """Return the model whose workers find this one when they are asked for it; None when nobody does.

        A model that any worker lists as one of its own, and not as an adapter, is not looked for.
        """
        base = None if model is None else self._lazy.base_of(model)
        if base is None:
            return None
        if self._bases is None:
            self._bases = base_models(self.workers.values())
        return None if model in self._bases else base

    def models(self) -> list[str]:
        """Return the ids of all known models, also of those that no READY worker serves right now, in order."""
        return list(self.model_objects())

    def model_objects(self) -> Mapping[str, Mapping[str, object]]:
        """Return each known model as an engine describes it, in order of id."""
        if self._models is None:
            self._models = merged_models(self._roster.in_order())
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
            self._billing_kept = models_with_billing_line(self.workers.values())
        return self._billing_kept

    def count_by_state(self) -> dict[WorkerState, int]:
        """Return how many workers are in each state."""
        counts = Counter(worker.state for worker in self.workers.values())
        return {state: counts[state] for state in WorkerState}

    def lease_of(self, name: str) -> str:
        """Say why a worker is in the fleet: "static" by its URL, or its lease is "held", or "kept" without Redis."""
        if self.workers[name].record is None:
            return "static"
        leases = self._discovery.leases
        return "held" if leases.available and not leases.kept(name) else "kept"

    def limits(self) -> Mapping[str, int]:
        """Return how many requests may be in flight at a worker, by name, where that is limited."""
        return self._outliers.limits()

    def why_ejected(self, name: str) -> str | None:
        """Say why a worker gets no requests though its probes are fine; None when it is not ejected."""
        self._settle()
        return self._outliers.why(name)

    # What the HTTP proxy and people tell it

    def lost(self, name: str, outcome: Outcome) -> None:
        """A request got no whole answer from a worker: it is probed at once, and so are all ranks behind its server."""
        if (watch := self._roster.watches.get(name)) is not None:
            watch.lost(refused=outcome is Outcome.REFUSED)
            self.doubted(watch.worker.endpoint)

    def doubted(self, endpoint: Endpoint) -> None:
        """Something has happened to a server that may be its end: all workers behind it are probed at once."""
        for watch in self._roster.watches.values():
            if watch.worker.endpoint == endpoint:
                watch.doubted()

    def doubts(self, name: str) -> bool:
        """Say whether requests have failed at a worker lately, however well it is otherwise."""
        return self._outliers.doubts(name)

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:
        """A request failed at a worker: it is probed at once; after some in a row it is ejected.

        kind: a label of metrics. why: for people. sure: another worker has answered the same request.
        """
        if (watch := self._roster.watches.get(name)) is not None:
            self.doubted(watch.worker.endpoint)
            if watch.worker.state is WorkerState.READY:
                self._outliers.failed(name, kind, why, sure=sure)

    def answered(self, name: str) -> None:
        """A request got an answer from a worker."""
        if (watch := self._roster.watches.get(name)) is not None:
            watch.answered()
            self._outliers.answered(name)

    def when_down(self, tell: Callable[[str], None]) -> None:
        """Have a function called with the name of each worker that becomes DOWN."""
        self._when_down.append(tell)

    def when_reported(self, tell: Callable[[Sequence[Worker]], None]) -> None:
        """Have a function called with workers that have another load, some at a time. There is one such function."""
        self._discovery.on_reports = tell

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Have a function called when loads were read, and when other workers serve a model, or it may be others."""
        self._when_changed.append(tell)
        self._discovery.on_loads = self._tell_changed

    def drain(self, name: str, draining: bool) -> None:
        """Give a worker no new requests, or take that back: here at once, in every replica soon. KeyError: unknown."""
        watch = self._roster.watches[name]
        self._drains.want(watch.worker.drain_id, draining)
        watch.drain(draining)

    def follow(self, static: Sequence[Endpoint], roles: Mapping[Endpoint, PdRole]) -> None:
        """Have the workers by URL be these from now on. roles: what they do, by `same_server`, if they do not say."""
        self._roster.follow(static, roles)

    async def share_drains(self) -> bool:
        """Tell the other replicas now; return whether they can know of every drain. Bounded by the store's time-out."""
        return await self._discovery.share_drains()

    # Start and stop

    async def start(self) -> None:
        """Begin to look for workers and to probe them. Static ones are known at once, found ones soon."""
        self._discovery.start()
        self._metrics.watch_fleet(
            self.count_by_state,
            lambda: self.redis_available if self._has_index else None,
            self._discovery.refused_values,
            lambda: len(split_models(self.workers.values())),
        )

    async def stop(self) -> None:
        """End all tasks. Threads end when the store or index has answered. Idempotent."""
        await self._discovery.stop()
        await self._roster.stop()
        await self._model_refresh.stop()
        await self._cache_sizes.stop()
        await self._adapter_uses.stop()
        await self.hung.stop()
        self._threads.close()

    # What its parts report

    def _left(self, worker: Worker, for_good: bool) -> None:
        self._outliers.forget(worker.name)
        if for_good:
            self._metrics.forget_worker(worker.name)

    def _settle(self) -> None:
        if self._outliers.due < inf and self._outliers.due <= self._clock():
            self._outliers.settle()

    def _went_down(self, name: str) -> None:
        # From now on its probes have the say, and what it had in memory is likely gone.
        self._outliers.forget(name)
        self._metrics.downs.inc(name)
        for tell in self._when_down:
            tell(name)

    def _changed(self) -> None:
        self._serving = self._models = self._bases = self._billing_kept = None
        self._tell_changed()

    def _tell_changed(self) -> None:
        for tell in self._when_changed:
            tell()
