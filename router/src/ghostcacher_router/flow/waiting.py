"""What waits: requests, by band, tenant and what they need. `FairQueue` keeps them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """A request that waits. item: what it is to whoever waits for it. May be pushed once."""

    __slots__ = ("band", "flow", "item", "needs", "number", "size", "tenant", "work")

    def __init__(self, item: T, *, band: int, tenant: str, needs: Any, work: float, size: int) -> None:
        self.item = item
        self.band = band
        """Lower ones go first."""
        self.tenant = tenant
        self.needs = needs
        """What has to have room for it, hashable: of one tenant and band, requests that need the same go in order."""
        self.work = work
        """What it costs its tenant, in tokens; more than 0."""
        self.size = size
        """Bytes that it holds."""
        self.number = 0
        """In which order it came."""
        self.flow: Flow[T] | None = None
        """Where it waits; None before and after that."""

    def __repr__(self) -> str:
        return f"Waiting({self.number}, band={self.band}, tenant={self.tenant!r}, work={self.work:g})"


class Tenant(Generic[T]):
    """A tenant within one band."""

    __slots__ = ("count", "end", "flows", "name", "size", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.end = 0.0
        """Where its next request starts, in virtual time, if nothing later has had its turn."""
        self.flows: dict[Any, Flow[T]] = {}
        """What waits, by what it needs."""
        self.count = 0
        self.size = 0


class Flow(Generic[T]):
    """What one tenant has waiting in one band that needs the same."""

    __slots__ = ("band", "needs", "tenant", "waiting")

    def __init__(self, band: Band[T], tenant: Tenant[T], needs: Any) -> None:
        self.band, self.tenant, self.needs = band, tenant, needs
        self.waiting: OrderedDict[Waiting[T], None] = OrderedDict()

    @property
    def first(self) -> Waiting[T]:
        return next(iter(self.waiting))


class Band(Generic[T]):
    """All that waits with one priority."""

    __slots__ = ("count", "flow_count", "heap", "now", "priority", "tenants")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.count = 0
        self.flow_count = 0
        self.now = 0.0
        """Virtual time: where the request started that had its turn last."""
        self.tenants: dict[str, Tenant[T]] = {}
        self.heap: list[tuple[float, int, Flow[T]]] = []
        """Flows by the start and the number of their first request, or of one that was first before: a flow whose entry
        is out of date is put in its place when its entry comes up. Both only grow."""

    def start_of(self, flow: Flow[T]) -> float:
        return max(self.now, flow.tenant.end)

    def entry(self, flow: Flow[T]) -> tuple[float, int, Flow[T]]:
        return self.start_of(flow), flow.first.number, flow
