"""What the endpoint picker needs of a router."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ghostcacher_router.dns.resolver import Resolver
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.proxy_ports import Parse
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import Dispatcher, KvSource, Placement


class Parts(NamedTuple):
    """The parts of one router. On the event loop only."""

    router: str
    """Its name."""
    fleet: Fleet
    dispatcher: Dispatcher
    parse: Parse
    metrics: RouterMetrics
    resolver: Resolver
    limits: Limits
    in_flight: Callable[[str], int]
    """Returns how many of its requests are at a worker."""
    clock: Callable[[], float]
    """In seconds."""
    kv_source: Callable[[Placement], KvSource | None]
    """Returns from whom the worker of a placement is told to pull."""
