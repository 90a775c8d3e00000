"""When something is to happen to a block: one time for each block, the earliest first."""

from __future__ import annotations

import heapq
from itertools import count

from ghostcacher_connector.core.retention.base import TierBlock

OUTDATED_SPARE = 64
"""Outdated times that may be kept beside as many as valid ones before the heap is made anew."""


class Alarms:
    """A binary heap of blocks by time. `set` and `clear` are O(log n) or less."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TierBlock]] = []
        self._valid: dict[TierBlock, int] = {}
        self._tickets = count()

    def __len__(self) -> int:
        return len(self._valid)

    def __contains__(self, block: TierBlock) -> bool:
        return block in self._valid

    def set(self, block: TierBlock, at: float) -> None:
        """Set or replace a block's time."""
        ticket = next(self._tickets)
        self._valid[block] = ticket
        heapq.heappush(self._heap, (at, ticket, block))
        if len(self._heap) > 2 * len(self._valid) + OUTDATED_SPARE:
            self._heap = [place for place in self._heap if self._valid.get(place[2]) == place[1]]
            heapq.heapify(self._heap)

    def clear(self, block: TierBlock) -> None:
        self._valid.pop(block, None)

    def next_at(self) -> float | None:
        """Return the earliest time; None without any."""
        while self._heap and self._valid.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> TierBlock | None:
        """Return a block whose time has come, which has none from now on; None if there is none."""
        at = self.next_at()
        if at is None or at > now:
            return None
        block = heapq.heappop(self._heap)[2]
        del self._valid[block]
        return block
