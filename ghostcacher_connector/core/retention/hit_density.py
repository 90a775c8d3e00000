"""Evicts what is expected to be hit least for the place that it takes; the default.

1. A prompt's blocks are of a *kind*: their type, how often they were seen lately, and how far they lie from its end.
2. For each kind it is learned, on a sample, after how long its blocks are used again, and how many never are.
3. So a block of known kind and age has a *hit density*: how many hits a second its place brings, if it is given up at
   the best moment.
4. The leaf with the least goes, and a newcomer that has less than that one is not taken in.
5. What was seen is counted in a sketch, whether it is in the tier or not: a block that comes back is no stranger.
"""

from __future__ import annotations

from collections.abc import Mapping

from ghostcacher_connector.core.retention.base import BlockKey, BlockTraits, TierBlock
from ghostcacher_connector.core.retention.frequency_sketch import FrequencySketch
from ghostcacher_connector.core.retention.reuse_times import Kind, ReuseTimes
from ghostcacher_connector.core.types import SectionType

USES_MAX = 4
"""Blocks that were seen more often than so are of one kind."""


class HitDensity:
    """See the module's docstring. Until something was learned it is LRU."""

    def __init__(self, priorities: Mapping[SectionType, float], capacity_bytes: int) -> None:
        self._priorities = priorities
        self._capacity_bytes = capacity_bytes
        self._sketch: FrequencySketch | None = None
        self._times = ReuseTimes(0)

    def asked(self, key: BlockKey, traits: BlockTraits | None, now: float) -> None:
        if self._sketch is None:
            return
        seen = self._sketch.add(key)
        self._times.used(key, now)
        if traits is not None:
            self._times.wait(key, kind_of(traits, seen), now)

    def offered(self, block: TierBlock, now: float) -> float:
        if self._sketch is None:
            places = self._capacity_bytes // block.size_bytes + 1
            self._sketch = FrequencySketch(places)
            self._times = ReuseTimes(places)
        # It was counted when it was asked for.
        self._classify(block, max(self._sketch.count(block.key) - 1, 0), now)
        return self.worth(block, now) if self._times.ready else float("inf")

    def came(self, block: TierBlock, now: float) -> None:
        pass

    def used(self, block: TierBlock, now: float) -> None:
        assert self._sketch is not None, "a block was offered before"
        seen = self._sketch.add(block.key)
        self._times.used(block.key, now)
        self._classify(block, seen, now)

    def left(self, block: TierBlock, now: float) -> None:
        pass

    def worth(self, block: TierBlock, now: float) -> float:
        if not self._times.ready:
            return block.used_at - now
        assert isinstance(block.queue, Kind)
        return self._priorities[block.section] * self._times.density(block.queue, now - block.rank)

    def _classify(self, block: TierBlock, seen: int, now: float) -> None:
        kind = kind_of(block, seen)
        block.queue = kind
        block.rank = now
        self._times.wait(block.key, kind, now)


def kind_of(block: TierBlock | BlockTraits, seen: int) -> Kind:
    """Return the kind of a block seen so often before. How far it is to the prompt's end counts by magnitude."""
    to_end = 0 if block.prompt_blocks is None else max(block.prompt_blocks - block.depth - 1, 0)
    return Kind(min(seen, USES_MAX), (block.section, to_end.bit_length()))
