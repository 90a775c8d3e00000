"""Takes note of what workers tell everybody of the prompts that they receive, of this router and of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ghostcacher_connector.core.coordination.base import WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.feed.messages import FoldedEvents
from ghostcacher_router.placement.foreign_requests import ForeignRequests
from ghostcacher_router.ports import WorkerPort, WorkersPort
from ghostcacher_router.signals.eviction_regret import EvictionRegret
from ghostcacher_router.signals.prefix_locations import PrefixLocations
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.sent_caches import SentCaches
from ghostcacher_router.signals.working_sets import capacity_tokens
from ghostcacher_router.types import Prompt

CAPACITY_PROMPTS = 16
"""Workers come and go seldom: what the fleet's caches hold is added up once in so many prompts."""

IsOwn = Callable[[str], bool]
"""Says whether this router has sent a request."""


class HeardPrompts:
    """On the event loop only."""

    def __init__(
        self,
        fleet: WorkersPort,
        queues: QueueEstimator,
        locations: PrefixLocations,
        regret: EvictionRegret,
        sent_caches: SentCaches,
    ) -> None:
        self._fleet, self._regret, self._sent_caches = fleet, regret, sent_caches
        self._foreign = ForeignRequests(fleet, queues, locations)
        self._prompts = 0
        """Noted prompts, in all."""

    def __repr__(self) -> str:
        return f"HeardPrompts(foreign={len(self._foreign)}, {self._regret!r})"

    def heard(self, events: WorkerEvents, now: float, is_own: IsOwn) -> None:
        """Take note of what a worker has published."""
        ref = WorkerRef(events.namespace, events.worker, events.incarnation)
        for chain in events.chains:
            self._foreign.received(ref, chain, now, own=is_own(chain.request))
            self.note(chain.hashes, len(chain.hashes), chain.tokens, events.worker)
        self._foreign.computed(events)

    def heard_folded(self, events: FoldedEvents, now: float, is_own: IsOwn) -> None:
        """Take note of it as the router's feed tells it: what each worker has received, the feed keeps in mind."""
        ref, worker = WorkerRef(events.namespace, events.worker, events.incarnation), events.worker
        for prompt in events.prompts:
            if not prompt.is_computed and not is_own(prompt.request):
                self._foreign.received(ref, prompt.unpacked(), now, own=False, blocks=prompt.blocks)
            self.note(prompt.sampled, prompt.hashes, prompt.tokens, worker)
        self._foreign.computed(events)

    def note(self, digests: Sequence[bytes], boundaries: int, tokens: int, worker: str) -> None:
        """Note a prompt that a worker was sent, and now and then how much the fleet's caches hold.

        digests: of its boundaries, those that the regret looks at, or more.
        """
        self._measure(boundaries, tokens)
        self._regret.note(digests, worker)

    def note_sent(self, prompt: Prompt, tokens: int, worker: str) -> None:
        """Note a prompt that this router has sent to a worker that tells nobody of it."""
        self._measure(len(prompt.digests), tokens)
        self._regret.set_aside(prompt.digests, worker)

    def _measure(self, boundaries: int, tokens: int) -> None:
        self._regret.measure(boundaries, tokens)
        if self._prompts % CAPACITY_PROMPTS == 0:
            self._regret.resize(sum(map(self._room_tokens, self._fleet.workers.values())))
        self._prompts += 1

    def _room_tokens(self, worker: WorkerPort) -> int:
        """Return how many tokens a worker's cache holds, as far as that is known: by what it reports, says or shows."""
        said = capacity_tokens(worker)
        return (0 if worker.load is None else said) or self._sent_caches.capacity_tokens(worker.name) or said
