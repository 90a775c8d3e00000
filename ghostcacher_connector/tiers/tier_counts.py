"""What a tier has given up and not taken in since its beginning, by type and reason."""

from __future__ import annotations

from collections import Counter

from ghostcacher_connector.core.retention.base import EvictionReason, Refusal
from ghostcacher_connector.core.types import SectionType
from ghostcacher_connector.metrics import Recorder

_Evictions = Counter[tuple[SectionType, EvictionReason]]
_Refusals = Counter[tuple[SectionType, Refusal]]


class TierCounts:
    """Counts where things happen; `record` adds what is new to the metrics."""

    def __init__(self) -> None:
        self._evicted = _Evictions()
        self._refused = _Refusals()
        self._recorded = (_Evictions(), _Refusals())

    @property
    def evicted(self) -> int:
        """Blocks that made room for others, or whose time was over."""
        return sum(count for (_, reason), count in self._evicted.items() if reason is not EvictionReason.FLUSHED)

    @property
    def refused(self) -> int:
        """Blocks that were not worth what would have had to go; those of a type that never comes here do not count."""
        return sum(count for (_, reason), count in self._refused.items() if reason is not Refusal.TYPE)

    def evict(self, section: SectionType, reason: EvictionReason, count: int = 1) -> None:
        """Count blocks that are held no more."""
        self._evicted[section, reason] += count

    def refuse(self, section: SectionType, reason: Refusal) -> None:
        """Count a block that is not taken in."""
        self._refused[section, reason] += 1

    def record(self, recorder: Recorder, tier: str) -> None:
        """Record what was counted since the last call. tier: its name in metrics."""
        evicted, refused = self._recorded
        self._recorded = (self._evicted.copy(), self._refused.copy())
        for (section, why), count in (self._evicted - evicted).items():
            recorder.inc("gc_tier_evicted_blocks_total", count, tier=tier, type=section.name.lower(), reason=why.value)
        for (section, reason), count in (self._refused - refused).items():
            recorder.inc(
                "gc_tier_refused_blocks_total", count, tier=tier, type=section.name.lower(), reason=reason.value
            )
