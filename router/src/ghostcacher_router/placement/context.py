"""What the parts of routing hand each other: the router around them, and their own books."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from ghostcacher_router.ghostlock.locks import Locks
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.ports import Clock, FleetPort, Offload, PendingPort, TextPort
from ghostcacher_router.signals.prefix_locations import Residency
from ghostcacher_router.signals.queue_estimate import Ledger
from ghostcacher_router.signals.sent_history import Memory
from ghostcacher_router.signals.sessions import Affinity


class Around(NamedTuple):
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


class Books(NamedTuple):
    """What routing keeps about workers, texts and sessions."""

    ledger: Ledger
    memory: Memory
    residency: Residency
    sessions: Affinity
    locks: Locks
