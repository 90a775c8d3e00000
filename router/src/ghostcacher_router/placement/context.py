"""What the parts of routing hand each other: the router around them, and their own books."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.ports import Clock, FleetPort, Offload, PendingPort, TextPort
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.sent_history import SentHistory
from ghostcacher_router.signals.sessions import SessionAffinity


class Dependencies(NamedTuple):
    """The router around routing. clock: the loop's, s. rng: for ties.

    offload: for calls that take a fraction of a millisecond; read_offload: for one that blocks for long, nothing else
    may wait behind it.
    """

    fleet: FleetPort
    text: TextPort
    pending: PendingPort
    metrics: RouterMetrics
    clock: Clock
    rng: Random
    offload: Offload
    read_offload: Offload


class RoutingState(NamedTuple):
    """What routing keeps about workers, texts and sessions."""

    queues: QueueEstimator
    sent_history: SentHistory
    locations: PrefixLocations
    sessions: SessionAffinity
    locks: SingleFlight
