"""What the parts of placement share: what they depend on, and the state that they keep."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import Flush
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.ports import Clock, FleetPort, Offload, PendingPort, PrefixMapPort
from ghostcacher_router.signals.adapter_costs import AdapterCosts
from ghostcacher_router.signals.eviction_regret import EvictionRegret
from ghostcacher_router.signals.hot_prefixes import HotPrefixes
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.sent_caches import SentCaches
from ghostcacher_router.signals.sent_history import SentHistory
from ghostcacher_router.signals.sessions import SessionAffinity
from ghostcacher_router.signals.stored_objects import StoredObjects


class Dependencies(NamedTuple):
    """What placement needs of the rest of the router."""

    fleet: FleetPort
    prefix_map: PrefixMapPort
    pending: PendingPort
    metrics: RouterMetrics
    clock: Clock
    """The loop's clock, s."""
    rng: Random
    """Breaks ties among forecasts."""
    offload: Offload
    """Runs blocking calls that take a fraction of a millisecond."""
    read_offload: Offload
    """Runs a call that blocks for long; nothing else may wait behind it."""


class RoutingState(NamedTuple):
    """What a router knows about workers, prefixes and sessions when it places a request."""

    queues: QueueEstimator
    """The prefill work ahead at each worker, and this router's requests in flight."""
    history: SentHistory
    """Which prompt this router sent to which worker."""
    locations: PrefixLocations
    """Which workers hold how much of each prefix, as the index says."""
    sessions: SessionAffinity
    """Which worker each client's session is at."""
    locks: SingleFlight
    """Who computes which cold prefix now."""
    stored: StoredObjects
    """Which worker holds which stored answer, file or batch."""
    sent_caches: SentCaches
    """What each worker's cache likely holds, from what this router sent it."""
    regret: EvictionRegret
    """How likely it is that what full caches evict next is asked for again."""
    hot: HotPrefixes
    """What many prompts begin with, for people."""
    adapters: AdapterCosts
    """Which LoRA adapters each worker has at hand."""
    several: Callable[[], bool]
    """Returns whether other routers place requests at the same workers."""

    def flush(self, flush: Flush) -> None:
        """Forget what a flush names. What it names in the prefix map is the map's own to forget."""
        if flush.scope == "session":
            self.sessions.drop(flush.key)
        else:
            # The history cannot be told apart by documents: losing more than was asked for only costs time.
            self.history.clear()
            self.sent_caches.clear()
            self.locations.clear()
            self.regret.clear()
            self.hot.clear()
        if flush.scope == "all":
            self.sessions.clear()
