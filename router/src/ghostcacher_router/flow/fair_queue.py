"""The order in which waiting requests get their turn. No I/O, no clock.

    bands       strict: nothing of a band has its turn while a lower one has a request that could go
    tenants     of one band share by work: start-time fair queuing. Each request of a tenant starts, in virtual time,
                where the one before it ended, and no earlier than what had its turn last; it takes its work over the
                weight of its tenant. The one that starts first goes.
    a tenant    its requests go in the order in which they came, of each model apart

So two tenants that both wait get work in proportion to their weights, but for one request of each; one that comes anew
is not behind all that others have waiting; and one that was idle has saved nothing up.

A request whose model has no room is passed over; what waits behind it for another model goes first.

The queue is bounded in requests and bytes. Where it is full, a request that comes takes the place of the last one of
the worst band, if its own is better, or of the tenant of its band that has most there, if that has more than its own
would have: who floods the queue keeps nobody else out of it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

TENANTS_MAX = 1024
"""Tenants of one band that are told apart. All beyond share one place, so that making up names wins no more."""
OTHERS = "*"
"""The tenant that these are."""


class Bounds(NamedTuple):
    """How much may wait."""

    requests: int
    size: int
    """Bytes of their bodies."""


class Waiting(Generic[T]):
    """A request that waits. item: what it is to whoever waits for it. May be pushed once."""

    __slots__ = ("band", "flow", "item", "model", "number", "size", "tenant", "work")

    def __init__(self, item: T, *, band: int, tenant: str, model: str | None, work: float, size: int) -> None:
        self.item = item
        self.band = band
        """Lower ones go first."""
        self.tenant = tenant
        self.model = model
        self.work = work
        """What it costs its tenant, in tokens; more than 0."""
        self.size = size
        """Bytes that it holds."""
        self.number = 0
        """In which order it came."""
        self.flow: _Flow[T] | None = None
        """Where it waits; None before and after that."""

    def __repr__(self) -> str:
        return f"Waiting({self.number}, band={self.band}, tenant={self.tenant!r}, work={self.work:g})"


class _Tenant(Generic[T]):
    """A tenant within one band."""

    __slots__ = ("count", "end", "flows", "name", "size", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.end = 0.0
        """Where its next request starts, in virtual time, if nothing later has had its turn."""
        self.flows: dict[str | None, _Flow[T]] = {}
        """What waits, by model."""
        self.count = 0
        self.size = 0


class _Flow(Generic[T]):
    """What one tenant has waiting for one model, in one band."""

    __slots__ = ("band", "model", "tenant", "waiting")

    def __init__(self, band: _Band[T], tenant: _Tenant[T], model: str | None) -> None:
        self.band, self.tenant, self.model = band, tenant, model
        self.waiting: OrderedDict[Waiting[T], None] = OrderedDict()

    @property
    def first(self) -> Waiting[T]:
        return next(iter(self.waiting))


class _Band(Generic[T]):
    """All that waits with one priority."""

    __slots__ = ("count", "flow_count", "heap", "now", "priority", "tenants")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.count = 0
        self.flow_count = 0
        self.now = 0.0
        """Virtual time: where the request started that had its turn last."""
        self.tenants: dict[str, _Tenant[T]] = {}
        self.heap: list[tuple[float, int, _Flow[T]]] = []
        """Flows by the start and the number of their first request, or of one that was first before: a flow whose entry
        is out of date is put in its place when its entry comes up. Both only grow."""

    def start_of(self, flow: _Flow[T]) -> float:
        return max(self.now, flow.tenant.end)

    def entry(self, flow: _Flow[T]) -> tuple[float, int, _Flow[T]]:
        return self.start_of(flow), flow.first.number, flow


class FairQueue(Generic[T]):
    """The requests that wait. weights: of tenants whose weight is not 1, by name."""

    def __init__(self, bounds: Bounds, weights: Mapping[str, float] | None = None) -> None:
        self._bounds, self._weights = bounds, weights or {}
        self._bands: dict[int, _Band[T]] = {}
        self._priorities: list[int] = []
        """Of the bands, in order."""
        self._number = 0
        self._models: dict[str | None, int] = {}
        """How many wait for each model."""
        self.count = 0
        self.size = 0
        """Bytes, in all."""

    def __repr__(self) -> str:
        return f"FairQueue({self.count} of {self._bounds.requests}, {self.size} bytes, bands={self._priorities})"

    def __len__(self) -> int:
        return self.count

    def push(self, one: Waiting[T], *, bounded: bool = True) -> Waiting[T] | None:
        """Let a request wait; return the one that lost its place to it: that may be the same one, which does not wait.

        bounded: whether the bounds count for it.
        """
        assert one.flow is None, one
        displaced = None
        if bounded and (self.count >= self._bounds.requests or self.size + one.size > self._bounds.size):
            displaced = self._displaced_by(one)
            if displaced is one:
                return one
            self.remove(displaced)
        self._number += 1
        one.number = self._number
        band = self._bands.get(one.band)
        if band is None:
            band = self._bands[one.band] = _Band(one.band)
            insort(self._priorities, one.band)
        tenant = self._tenant(band, one.tenant)
        flow = tenant.flows.get(one.model)
        is_new = flow is None
        if flow is None:
            flow = tenant.flows[one.model] = _Flow(band, tenant, one.model)
        flow.waiting[one] = None
        one.flow = flow
        self._count(one, flow, 1)
        if is_new:
            band.flow_count += 1
            heappush(band.heap, band.entry(flow))
        return displaced

    def pop(self, has_room: Callable[[str | None], bool]) -> Waiting[T] | None:
        """Take out the request whose turn it is; None where there is none that could go.

        has_room: says whether a request for a model could go now. Asked once for each model.
        """
        full = {}
        for model in self._models:
            full[model] = not has_room(model)
            if not full[model]:
                break
        else:
            return None  # Without looking at every tenant: it is what mostly happens while all workers are busy.
        for priority in self._priorities:
            one = self._pop_of(self._bands[priority], full, has_room)
            if one is not None:
                return one
        return None

    def remove(self, one: Waiting[T]) -> bool:
        """Let a request wait no longer; False where it does not. It costs its tenant nothing."""
        flow = one.flow
        if flow is None:
            return False
        del flow.waiting[one]
        one.flow = None
        self._count(one, flow, -1)
        self._tidy(flow)
        return True

    def by_band(self) -> dict[int, int]:
        """Return how many requests wait with each priority, in order."""
        return {priority: self._bands[priority].count for priority in self._priorities}

    def largest_tenants(self, count: int) -> list[tuple[str, int]]:
        """Return the tenants that have most requests waiting, with how many, most first."""
        sums: dict[str, int] = {}
        for band in self._bands.values():
            for tenant in band.tenants.values():
                if tenant.count:
                    sums[tenant.name] = sums.get(tenant.name, 0) + tenant.count
        return sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))[:count]

    def check_invariants(self) -> None:
        """Assert that what is counted is what is there."""
        assert self._priorities == sorted(self._bands), self
        assert self.count == sum(self._models.values()), self
        assert all(self._models.values()), self
        assert self.count == sum(band.count for band in self._bands.values()), self
        assert self.size == sum(tenant.size for band in self._bands.values() for tenant in band.tenants.values()), self
        for band in self._bands.values():
            assert band.count > 0, band.priority
            assert len(band.tenants) <= TENANTS_MAX + 1, band.priority
            in_heap = [id(flow) for _, _, flow in band.heap if flow.waiting]
            flows = [flow for tenant in band.tenants.values() for flow in tenant.flows.values()]
            assert sorted(in_heap) == sorted(map(id, flows)), band.priority
            assert band.flow_count == len(flows), band.priority
            assert len(band.heap) <= 2 * len(flows) + 1, band.priority
            for tenant in band.tenants.values():
                waiting = [one for flow in tenant.flows.values() for one in flow.waiting]
                assert tenant.count == len(waiting), tenant.name
                assert tenant.size == sum(one.size for one in waiting), tenant.name
                assert all(flow.waiting for flow in tenant.flows.values()), tenant.name

    def _pop_of(
        self, band: _Band[T], full: dict[str | None, bool], has_room: Callable[[str | None], bool]
    ) -> Waiting[T] | None:
        heap, found = band.heap, None
        passed_over = []
        while heap:
            start, number, flow = heap[0]
            if not flow.waiting:
                heappop(heap)
                continue
            entry = band.entry(flow)
            if entry[:2] > (start, number):
                heapreplace(heap, entry)
                continue
            if (is_full := full.get(flow.model)) is None:
                is_full = full[flow.model] = not has_room(flow.model)
            if not is_full:
                found = flow.first
                band.now = start
                flow.tenant.end = start + found.work / flow.tenant.weight
                break
            passed_over.append(heappop(heap))
        for entry in passed_over:
            heappush(heap, entry)
        if found is not None:
            self.remove(found)
        return found

    def _tenant(self, band: _Band[T], name: str) -> _Tenant[T]:
        tenant = band.tenants.get(name)
        if tenant is not None:
            return tenant
        if len(band.tenants) >= TENANTS_MAX:
            for idle in [one for one in band.tenants.values() if not one.count and one.end <= band.now]:
                del band.tenants[idle.name]
            if len(band.tenants) >= TENANTS_MAX:
                name = OTHERS
        return band.tenants.setdefault(name, _Tenant(name, self._weights.get(name, 1.0)))

    def _count(self, one: Waiting[T], flow: _Flow[T], change: int) -> None:
        flow.band.count += change
        flow.tenant.count += change
        flow.tenant.size += change * one.size
        self.count += change
        self.size += change * one.size
        left = self._models.get(one.model, 0) + change
        if left:
            self._models[one.model] = left
        else:
            del self._models[one.model]

    def _tidy(self, flow: _Flow[T]) -> None:
        """Forget what holds nothing any more."""
        band, tenant = flow.band, flow.tenant
        if not flow.waiting:
            del tenant.flows[flow.model]
            band.flow_count -= 1
        if not band.count:
            del self._bands[band.priority]
            self._priorities.remove(band.priority)
        elif not tenant.count and tenant.end <= band.now:
            del band.tenants[tenant.name]
        if len(band.heap) > 2 * band.flow_count + 1:
            # Flows that ended before their entry came up: clients that leave must not make it grow.
            band.heap = [entry for entry in band.heap if entry[2].waiting]
            band.heap.sort()

    def _displaced_by(self, one: Waiting[T]) -> Waiting[T]:
        """Return what loses its place where the queue is full: another request, or this one."""
        bounds = self._bounds
        worst = self._bands[self._priorities[-1]] if self._priorities else None
        if worst is None or worst.priority < one.band or not bounds.requests:
            return one
        by_size = self.count < bounds.requests

        def held(tenant: _Tenant[T]) -> int:
            return tenant.size if by_size else tenant.count

        most = max((tenant for tenant in worst.tenants.values() if tenant.count), key=held)
        if worst.priority == one.band:
            own = worst.tenants.get(one.tenant)
            if own is None and len(worst.tenants) >= TENANTS_MAX:
                own = worst.tenants.get(OTHERS)
            if held(most) <= (0 if own is None else held(own)) + (one.size if by_size else 1):
                return one
        last = max((next(reversed(flow.waiting)) for flow in most.flows.values()), key=lambda other: other.number)
        return last if self.size - last.size + one.size <= bounds.size else one
