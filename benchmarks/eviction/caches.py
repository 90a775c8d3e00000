"""Caches of blocks to compare: the tiers' own policies, S3-FIFO and W-TinyLFU as published, and the bound."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Protocol

from benchmarks.eviction.loads import Load, Prompt
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.frequency_sketch import FrequencySketch
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

TYPE_FREE = {"session_ttl_s": None, "session_budget": 1.0}
"""Traces do not say what a block is part of: all are of one type, which may fill the tier and has no end."""
BLOCK_TOKENS = 512


class Cache(Protocol):
    def serve(self, prompt: Prompt) -> int:
        """Return how many leading blocks of a prompt are there, and use all of its blocks."""


class Tier:
    """A tier as workers have it."""

    def __init__(self, policy: str, capacity: int) -> None:
        self._now = 0.0
        settings = RetentionSettings(eviction_policy=policy, **TYPE_FREE)  # type: ignore[arg-type]
        self._tier = TierRetention(settings, capacity, clock=lambda: self._now)

    def serve(self, prompt: Prompt) -> int:
        self._now = prompt.at_s
        hits, parent, refused = 0, None, False
        for depth, block in enumerate(prompt.blocks):
            key = block.to_bytes(8, "little")
            traits = BlockTraits(SectionType.SESSION, depth, BLOCK_TOKENS, 1, prompt_blocks=len(prompt.blocks))
            if self._tier.touch(key, traits):
                hits += hits == depth
            elif not refused:
                refused = not self._tier.insert(key, parent, traits).admitted
            parent = key
        return hits


class PlainCache:
    """Base of caches that know blocks one by one."""

    def has(self, block: int) -> bool:
        raise NotImplementedError

    def use(self, block: int) -> None:
        raise NotImplementedError

    def serve(self, prompt: Prompt) -> int:
        hits = next((depth for depth, one in enumerate(prompt.blocks) if not self.has(one)), len(prompt.blocks))
        for block in prompt.blocks:
            self.use(block)
        return hits


class S3Fifo(PlainCache):
    """A small FIFO for newcomers, a main one for what was used there or comes back, a ghost of what left the first."""

    def __init__(self, capacity: int) -> None:
        self._small_max = max(1, capacity // 10)
        self._capacity = capacity
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}

    def has(self, block: int) -> bool:
        return block in self._uses

    def use(self, block: int) -> None:
        if block in self._uses:
            self._uses[block] = min(3, self._uses[block] + 1)
            return
        while len(self._uses) >= self._capacity:
            self._evict()
        known = block in self._ghost
        self._ghost.pop(block, None)
        (self._main if known else self._small).append(block)
        self._uses[block] = 0

    def _evict(self) -> None:
        if len(self._small) >= self._small_max or not self._main:
            block = self._small.popleft()
            if self._uses[block] > 1:
                self._uses[block] = 0
                self._main.append(block)
                return
            self._ghost[block] = None
            if len(self._ghost) > self._capacity - self._small_max:
                self._ghost.popitem(last=False)
        else:
            block = self._main.popleft()
            if self._uses[block]:
                self._uses[block] -= 1
                self._main.append(block)
                return
        del self._uses[block]


class WTinyLfu(PlainCache):
    """A window of 1 %, and a segmented LRU that takes what leaves it if it was seen more often than what would go."""

    def __init__(self, capacity: int) -> None:
        self._window_max = max(1, capacity // 100)
        self._main_max = capacity - self._window_max
        self._protected_max = self._main_max * 4 // 5
        self._window: OrderedDict[int, None] = OrderedDict()
        self._probation: OrderedDict[int, None] = OrderedDict()
        self._protected: OrderedDict[int, None] = OrderedDict()
        self._sketch = FrequencySketch(capacity)

    def has(self, block: int) -> bool:
        return block in self._window or block in self._probation or block in self._protected

    def use(self, block: int) -> None:
        self._sketch.add(block.to_bytes(8, "little"))
        if block in self._protected:
            self._protected.move_to_end(block)
        elif block in self._probation:
            del self._probation[block]
            self._protected[block] = None
            if len(self._protected) > self._protected_max:
                self._probation[self._protected.popitem(last=False)[0]] = None
        else:
            self._window[block] = None
            self._window.move_to_end(block)
            if len(self._window) > self._window_max:
                self._offer(self._window.popitem(last=False)[0])

    def _offer(self, block: int) -> None:
        if len(self._probation) + len(self._protected) >= self._main_max:
            victims = self._probation or self._protected
            victim = next(iter(victims))
            if self._seen(block) <= self._seen(victim):
                return
            del victims[victim]
        self._probation[block] = None

    def _seen(self, block: int) -> int:
        return self._sketch.count(block.to_bytes(8, "little"))


def hit_ratio(cache: Cache, load: Load) -> float:
    """Return the share of a load's blocks that were hits, with all blocks before them in their prompts."""
    return sum(map(cache.serve, load.prompts)) / load.block_count


def bound(load: Load, capacity: int) -> float:
    """Return the share of hits that no cache can exceed: Belady's, who knows the future, counted block by block."""
    uses = [block for prompt in load.prompts for block in prompt.blocks]
    next_uses = _next_uses(uses)
    held: dict[int, int] = {}
    latest: list[tuple[int, int]] = []
    hits = 0
    for block, next_use in zip(uses, next_uses, strict=True):
        if block in held:
            hits += 1
        elif len(held) >= capacity:
            while held.get(latest[0][1]) != -latest[0][0]:
                heapq.heappop(latest)
            if -latest[0][0] <= next_use:
                continue
            del held[heapq.heappop(latest)[1]]
        held[block] = next_use
        heapq.heappush(latest, (-next_use, block))
    return hits / len(uses)


def _next_uses(uses: Sequence[int]) -> list[int]:
    """Return for each use when its block is used next; one past the end if it is not."""
    following: dict[int, int] = {}
    found = [0] * len(uses)
    for place in reversed(range(len(uses))):
        found[place] = following.get(uses[place], len(uses))
        following[uses[place]] = place
    return found
