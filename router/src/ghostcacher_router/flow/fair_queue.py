"""The order in which waiting requests get their turn. No I/O, no clock.

    bands       strict: nothing of a band has its turn while a lower one has a request that could go
    tenants     of one band share by work: start-time fair queuing. Each request of a tenant starts, in virtual time,
                where the one before it ended, and no earlier than what had its turn last; it takes its work over the
                weight of its tenant. The one that starts first goes.
    a tenant    its requests go in the order in which they came, of those that need the same

So two tenants that both wait get work in proportion to their weights, but for one request of each; one that comes anew
is not behind all that others have waiting; and one that was idle has saved nothing up.

A request for which there is no room where it may go is passed over; what waits behind it for another model goes first.

The queue is bounded in requests and bytes. Where it is full, a request that comes takes the place of the last ones of
the worst band, if its own is better, or of the tenant of its band that has most there, if that has more than its own
would have (`displacement.py`): who floods the queue keeps nobody else out of it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

from ghostcacher_router.flow.displacement import Bounds, displaced_by
from ghostcacher_router.flow.waiting import Band, Flow, Tenant, Waiting

T = TypeVar("T")

TENANTS_MAX = 1024
"""Tenants of one band that are told apart. All beyond share one place, so that making up names wins no more."""
OTHERS = "*"
"""The tenant that these are."""


class FairQueue(Generic[T]):
    """The requests that wait. weights: of tenants whose weight is not 1, by name."""

    def __init__(self, bounds: Bounds, weights: Mapping[str, float] | None = None) -> None:
        self._bounds, self._weights = bounds, weights or {}
        self._bands: dict[int, Band[T]] = {}
        self._priorities: list[int] = []
        """Of the bands, in order."""
        self._number = 0
        self._needs: dict[Any, int] = {}
        """How many wait that need the same."""
        self.count = 0
        self.size = 0
        """Bytes, in all."""

    def __repr__(self) -> str:
        return f"FairQueue({self.count} of {self._bounds.requests}, {self.size} bytes, bands={self._priorities})"

    def __len__(self) -> int:
        return self.count

    def push(self, one: Waiting[T], *, bounded: bool = True) -> Sequence[Waiting[T]]:
        """Let a request wait; return those that lost their places to it: or the same one alone, which does not wait.

        bounded: whether the bounds count for it.
        """
        assert one.flow is None, one
        displaced: Sequence[Waiting[T]] = ()
        if bounded and (self.count >= self._bounds.requests or self.size + one.size > self._bounds.size):
            found = self._displaced_by(one)
            if found is None:
                return (one,)
            displaced = found
            for other in displaced:
                self.remove(other)
        self._number += 1
        one.number = self._number
        band = self._bands.get(one.band)
        if band is None:
            band = self._bands[one.band] = Band(one.band)
            insort(self._priorities, one.band)
        tenant = self._tenant(band, one.tenant)
        flow = tenant.flows.get(one.needs)
        is_new = flow is None
        if flow is None:
            flow = tenant.flows[one.needs] = Flow(band, tenant, one.needs)
        flow.waiting[one] = None
        one.flow = flow
        self._count(one, flow, 1)
        if is_new:
            band.flow_count += 1
            heappush(band.heap, band.entry(flow))
        return displaced

    def pop(self, has_room: Callable[[Any], bool]) -> Waiting[T] | None:
        """Take out the request whose turn it is; None where there is none that could go.

        has_room: says whether there is room for a request that needs this. Asked once for each.
        """
        full: dict[Any, bool] = {}
        for needs in self._needs:
            full[needs] = not has_room(needs)
            if not full[needs]:
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
        assert self.count == sum(self._needs.values()), self
        assert all(self._needs.values()), self
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

    def _pop_of(self, band: Band[T], full: dict[Any, bool], has_room: Callable[[Any], bool]) -> Waiting[T] | None:
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
            if (is_full := full.get(flow.needs)) is None:
                is_full = full[flow.needs] = not has_room(flow.needs)
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

    def _tenant(self, band: Band[T], name: str) -> Tenant[T]:
        tenant = band.tenants.get(name)
        if tenant is not None:
            return tenant
        if len(band.tenants) >= TENANTS_MAX:
            for idle in [one for one in band.tenants.values() if not one.count and one.end <= band.now]:
                del band.tenants[idle.name]
            if len(band.tenants) >= TENANTS_MAX:
                name = OTHERS
        return band.tenants.setdefault(name, Tenant(name, self._weights.get(name, 1.0)))

    def _count(self, one: Waiting[T], flow: Flow[T], change: int) -> None:
        flow.band.count += change
        flow.tenant.count += change
        flow.tenant.size += change * one.size
        self.count += change
        self.size += change * one.size
        left = self._needs.get(one.needs, 0) + change
        if left:
            self._needs[one.needs] = left
        else:
            del self._needs[one.needs]

    def _tidy(self, flow: Flow[T]) -> None:
        """Forget what holds nothing any more."""
        band, tenant = flow.band, flow.tenant
        if not flow.waiting:
            del tenant.flows[flow.needs]
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

    def _displaced_by(self, one: Waiting[T]) -> Sequence[Waiting[T]] | None:
        """Return what loses its place where the queue is full; None where this one gets none."""
        band = self._bands.get(one.band)
        own = None if band is None else band.tenants.get(one.tenant)
        if own is None and band is not None and len(band.tenants) >= TENANTS_MAX:
            own = band.tenants.get(OTHERS)
        worst_first = (self._bands[priority] for priority in reversed(self._priorities))
        return displaced_by(one, worst_first, own, self._bounds, self.count, self.size)
