"""A tier of LRU for tests of what else decides."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_connector.core.retention.base import BlockTraits, Evicted, EvictionReason, Refusal
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

GIB = 1 << 30


class Tier:
    """A tier of LRU and blocks of one GiB each, at a time that the test sets."""

    def __init__(self, capacity: int, **settings: object) -> None:
        self.now = 0.0
        chosen = RetentionSettings(**{"eviction_policy": "lru", "doc_budget": 1.0, **settings})
        self.retention = TierRetention(chosen, capacity * GIB, clock=lambda: self.now)

    def insert(self, name: str, section: SectionType = SectionType.DOC, **traits: object) -> Refusal | list[str]:
        """Insert a block whose parent's name is one letter shorter; return what left, or why it was refused."""
        self.now += 1
        insertion = self.retention.insert(name.encode(), name[:-1].encode() or None, traits_of(name, section, **traits))
        self.retention.check_invariants()
        return insertion.refusal or names(insertion.evicted)

    def touch(self, name: str, **traits: object) -> bool:
        self.now += 1
        found = self.retention.touch(name.encode(), traits_of(name, SectionType.DOC, **traits))
        self.retention.check_invariants()
        return found

    def at(self, now: float) -> TierRetention:
        self.now = now
        return self.retention

    @property
    def held(self) -> str:
        return " ".join(sorted(key.decode() for key in self.retention))


def traits_of(name: str, section: SectionType, **traits: object) -> BlockTraits:
    return BlockTraits(section, len(name) - 1, 16, GIB)._replace(**traits)


def names(evicted: Sequence[Evicted], reason: EvictionReason | None = None) -> list[str]:
    return [one.key.decode() for one in evicted if reason in {None, one.reason}]
