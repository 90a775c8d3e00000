"""Has blocks of a prompt read from objects into the host tier, where that is faster than computing them.

It is asked last, when the engine, the host tier and the peers are known to have less. The request says "ask again"
until its blocks are there, or not, and is then matched again: it finds what came in the host tier, like any block
there. A request does so once, and for a bounded time. Requests that want the same blocks wait for one fetch.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import MissReason, Tier
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, candidate_of
from ghostcacher_connector.publish.block_notes import BlockNotes, Note
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.object_orders import Fetched, ObjectOrders


@dataclass(slots=True)
class _Wait:
    """A request that waits for its blocks ``[first, end)``."""

    first: int
    end: int
    until: float
    """On the fetcher's clock."""
    otherwise: MissReason | None
    """Why peers have none of its blocks, where that is not plain."""


class ObjectFetcher:
    """See the module's docstring."""

    def __init__(
        self,
        orders: ObjectOrders,
        tier: HostTier,
        forecaster: Forecaster,
        settings: Settings,
        notes: BlockNotes,
        *,
        block_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """notes: of what this worker holds, for orders to flush."""
        self._orders, self._tier = orders, tier
        self._forecaster, self._settings, self._notes = forecaster, settings, notes
        self._block_tokens = block_tokens
        self._clock = clock
        self._waits: dict[str, _Wait] = {}

    def begin(self, tracked: Tracked, first_block: int, covered: int, otherwise: MissReason | None) -> bool:
        """Order a fetch for a request, if it is worth one and had none; return whether it is to wait for it.

        first_block: the first one that the engine has not. covered: where that ends which can be loaded or pulled.
        otherwise: kept for when the wait is over.
        """
        if tracked.fetched:
            return False
        blocks = tracked.blocks[: tracked.pullable]
        own = self._tier.ledger.prefix(blocks, first_block)
        first = first_block + len(own)
        end = first + self._orders.longest(blocks[first:])
        wait_s = self._wait_s(end - max(covered, first), end - first)
        if wait_s <= 0:
            return False
        tracked.fetched = True
        lacking = [index for index in range(first, end) if not self._tier.ledger.knows(blocks[index])]
        candidates = [candidate_of(tracked, index, self._block_tokens, self._tier.block_bytes) for index in lacking]
        # What the request has there must still be there when the rest has come.
        self._tier.ledger.pin(_pin_id(tracked), blocks[first_block:first], wait_s)
        for each in candidates:
            self._notes.put(each.block, Note(each.parent, each.traits.section, each.session))
        if candidates:
            self._orders.fetch(candidates, wait_s)
        self._waits[tracked.request_id] = _Wait(first, end, self._clock() + wait_s, otherwise)
        return True

    def waits(self, tracked: Tracked) -> bool:
        """Say whether a request still waits for what was ordered for it."""
        wait = self._waits.get(tracked.request_id)
        if wait is None or self._clock() >= wait.until:
            return False
        ledger = self._tier.ledger
        return not ledger.on_their_way.isdisjoint(tracked.blocks[wait.first : wait.end])

    def end(self, tracked: Tracked) -> tuple[bool, MissReason | None]:
        """End a request's wait; return whether there was one, and the reason that `begin` was given."""
        wait = self._waits.pop(tracked.request_id, None)
        if wait is None:
            return False, None
        self._tier.ledger.unpin(_pin_id(tracked))
        return True, wait.otherwise

    def fetched(self, fetched: Fetched) -> None:
        """Learn how long a fetch took."""
        self._forecaster.observe_pull(self._tier.worker, fetched.bytes, fetched.seconds, Tier.OBJECT)

    def _wait_s(self, gained: int, read: int) -> float:
        """Return how long to wait for so many blocks to be read, for the sake of those gained; 0: compute them."""
        if gained <= 0:
            return 0.0
        if self._settings.pull == "always":
            return self._settings.pull_timeout_s
        choice = self._forecaster.compare(
            self._tier.worker, gained * self._block_tokens, read * self._tier.block_bytes, Tier.OBJECT
        )
        # No longer than computing takes, so that a store which has become slow costs no more than that.
        return min(self._settings.pull_timeout_s, choice.compute_s) if choice.pull else 0.0


def _pin_id(tracked: Tracked) -> str:
    return f"fetch:{tracked.request_id}"
