"""The leaves of a tier in queues, the cheapest first of each: binary heaps whose outdated places are skipped."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import NamedTuple

from ghostcacher_connector.core.retention.base import TierBlock
from ghostcacher_connector.core.types import SectionType

PLACES_SPARE = 64
"""Outdated places that a queue may have beside as many as valid ones before it is made anew."""


class QueueName(NamedTuple):
    """Leaves of one queue have all this in common."""

    aged: bool
    retained: bool
    needed: bool
    section: SectionType
    group: Hashable
    """The policy's own: `TierBlock.queue`."""


class EvictionQueues:
    """Leaves by queue. A leaf has at most one valid place; its `ticket` says which. `put` and `take` are O(log n)."""

    def __init__(self) -> None:
        self._heaps: dict[QueueName, list[tuple[float, int, TierBlock]]] = {}
        self._valid: dict[QueueName, int] = {}
        self._names: dict[TierBlock, QueueName] = {}
        self._tickets = count(1)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, block: TierBlock) -> bool:
        return block in self._names

    def put(self, block: TierBlock, *, retained: bool, needed: bool) -> None:
        """Give a leaf its place, or another one."""
        self.take(block)
        name = QueueName(block.aged, retained, needed, block.section, block.queue)
        heap = self._heaps.setdefault(name, [])
        block.ticket = next(self._tickets)
        heapq.heappush(heap, (block.rank, block.ticket, block))
        self._names[block] = name
        self._valid[name] = self._valid.get(name, 0) + 1
        if len(heap) > 2 * self._valid[name] + PLACES_SPARE:
            heap[:] = [place for place in heap if place[1] == place[2].ticket]
            heapq.heapify(heap)

    def take(self, block: TierBlock) -> None:
        """Take a leaf's place from it, if it has one."""
        name = self._names.pop(block, None)
        block.ticket = 0
        if name is not None:
            self._valid[name] -= 1
            if not self._valid[name]:
                del self._valid[name], self._heaps[name]

    def firsts(self) -> Iterator[tuple[QueueName, TierBlock]]:
        """Yield every queue's name and first leaf."""
        for name, heap in self._heaps.items():
            while heap[0][1] != heap[0][2].ticket:
                heapq.heappop(heap)
            yield name, heap[0][2]

    def check_invariants(self) -> None:
        valid: dict[QueueName, int] = {}
        for name, heap in self._heaps.items():
            for rank, ticket, block in heap:
                if ticket == block.ticket:
                    assert rank == block.rank
                    assert self._names[block] == name
                    valid[name] = valid.get(name, 0) + 1
            assert len(heap) <= 2 * self._valid[name] + PLACES_SPARE
        assert valid == self._valid
        assert sum(valid.values()) == len(self._names)
