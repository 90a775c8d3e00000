"""Tracks what other routers have placed, from what workers tell everybody of the prompts that they receive.

A worker tells of a prompt within milliseconds of its arrival, and again when it is computed; its load report, which
counts all of them, comes a few times a second. Between two reports routers that know nothing of each other would all
pick the same short queue. The events are read anyway: for what this router itself has placed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain, WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.feed.messages import FoldedEvents
from ghostcacher_router.ports import WorkersPort
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.received_blocks import ReceivedBlocks
from ghostcacher_router.signals.reservation import Reservation

FOREIGN_MAX = 4096
FOREIGN_S = 30.0
"""A request of another router counts for so long at most: the event that it is computed may be lost."""


class _Foreign(NamedTuple):
    """One request of another router."""

    at: float
    """When its worker told of it; loop clock, s."""
    reservation: Reservation


class ForeignRequests:
    """Requests of other routers that are still prefilling. On the event loop only."""

    def __init__(self, fleet: WorkersPort, queues: QueueEstimator, locations: PrefixLocations) -> None:
        self._fleet, self._queues, self._locations = fleet, queues, locations
        self._open: OrderedDict[tuple[WorkerRef, str], _Foreign] = OrderedDict()
        self._received = ReceivedBlocks()

    def __len__(self) -> int:
        return len(self._open)

    def received(self, ref: WorkerRef, chain: PromptChain, now: float, *, own: bool, blocks: int = 0) -> None:
        """Note that a worker has received a prompt.

        own: whether this router has sent it. blocks: of the prompt, that the worker is known to have received lately.
        """
        worker, key = self._fleet.workers.get(ref.worker), (ref, chain.request)
        if worker is None or worker.ref != ref or key in self._open:
            return
        if own:
            self._received.remember(ref, chain, now)
            return
        blocks = max(blocks, self._locations.blocks_at(ref, chain.hashes), self._received.blocks(ref, chain, now))
        self._received.remember(ref, chain, now)
        computed = max(1, chain.tokens - blocks * (worker.block_tokens or 0))
        self._open[key] = _Foreign(now, self._queues.reserve_foreign(ref.worker, chain.tokens, computed, now))
        while len(self._open) > FOREIGN_MAX or next(iter(self._open.values())).at < now - FOREIGN_S:
            self._queues.foreign_computed(self._open.popitem(last=False)[1].reservation)

    def computed(self, events: WorkerEvents | FoldedEvents) -> None:
        """Note what a worker has computed."""
        if not self._open:
            return
        ref = WorkerRef(events.namespace, events.worker, events.incarnation)
        for request_id in events.computed:
            found = self._open.pop((ref, request_id), None)
            if found is not None:
                self._queues.foreign_computed(found.reservation)
