"""Who loses a place in a full queue to a request that comes. Pure: nothing is taken out here.

Bands are looked at from the worst one to that of the request itself. In each, the tenant that holds most loses its last
request, again and again, until there is room: by requests where the queue is full of them, by bytes where it is full of
these. In the band of the request itself only a tenant loses one that holds more than the request's own then would.

All that is needed, or nothing: a request that does not get its place takes none from others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heapreplace, merge
from typing import Generic, NamedTuple, TypeVar

from ghostcacher_router.flow.waiting import Band, Tenant, Waiting

T = TypeVar("T")

DISPLACED_MAX = 256
"""Requests that lose their places to one: it bounds the time that a large body takes to be let in."""


class Bounds(NamedTuple):
    """How much may wait."""

    requests: int
    size: int
    """Bytes of their bodies."""


class _Held(Generic[T]):
    """What a tenant of a band still holds, beside what it is to lose."""

    __slots__ = ("_lasts", "count", "order", "size", "tenant")

    def __init__(self, tenant: Tenant[T], order: int) -> None:
        self.tenant, self.order = tenant, order
        self.count, self.size = tenant.count, tenant.size
        self._lasts: Iterator[Waiting[T]] | None = None

    def __lt__(self, other: _Held[T]) -> bool:
        """Say whether it holds more bytes; among equals, whether it came first."""
        return (-self.size, self.order) < (-other.size, other.order)

    def lose(self) -> Waiting[T]:
        """Return the last of what it holds."""
        if self._lasts is None:
            flows = self.tenant.flows.values()
            self._lasts = merge(*(reversed(flow.waiting) for flow in flows), key=lambda one: -one.number)
        one = next(self._lasts)
        self.count -= 1
        self.size -= one.size
        return one


def displaced_by(
    one: Waiting[T], worst_first: Iterable[Band[T]], own: Tenant[T] | None, bounds: Bounds, count: int, size: int
) -> list[Waiting[T]] | None:
    """Return those that lose their places to a request; None where it gets none.

    own: its tenant in its band, where that holds anything. count, size: of all that waits.
    """
    wants_place, excess = count >= bounds.requests, size + one.size - bounds.size
    if not bounds.requests or one.size > bounds.size:
        return None
    own_count, own_size = (0, 0) if own is None else (own.count, own.size)
    lost: list[Waiting[T]] = []
    for band in worst_first:
        if band.priority < one.band:
            break
        is_own = band.priority == one.band
        held = [_Held(tenant, order) for order, tenant in enumerate(band.tenants.values()) if tenant.count]
        if wants_place:
            most = max(held, key=lambda each: each.count)
            if is_own and most.count <= own_count + 1:
                break
            lost.append(most.lose())
            wants_place, excess = False, excess - lost[-1].size
        heapify(held)
        while excess > 0 and held[0].size and not (is_own and held[0].size <= own_size + one.size):
            if len(lost) == DISPLACED_MAX:
                return None
            lost.append(held[0].lose())
            excess -= lost[-1].size
            heapreplace(held, held[0])
        if excess <= 0:
            return lost
    return None
