"""Which blocks a tier keeps, and in which order they go."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_connector.core.retention.base import BlockTraits, Evicted, EvictionReason, Refusal
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

DOC = SectionType.DOC


class Tier:
    """A tier of blocks of one byte each, at a time that the test sets."""

    def __init__(self, capacity: int, **settings: object) -> None:
        self.now = 0.0
        self.retention = TierRetention(
            RetentionSettings(**{"eviction_policy": "lru", **settings}), capacity, clock=lambda: self.now
        )

    def insert(self, name: str, section: SectionType = DOC, **traits: object) -> Refusal | list[str] | None:
        """Insert a block whose parent's name is one letter shorter; return what left, or why it was refused."""
        self.now += 1
        made = BlockTraits(section, len(name) - 1, 16, 1, **traits)
        insertion = self.retention.insert(name.encode(), name[:-1].encode() or None, made)
        self.retention.check_invariants()
        return insertion.refusal or names(insertion.evicted)

    def touch(self, name: str, retain_s: float = 0.0) -> bool:
        self.now += 1
        found = self.retention.touch(name.encode(), retain_s=retain_s)
        self.retention.check_invariants()
        return found

    @property
    def held(self) -> set[str]:
        return {key.decode() for key in self.retention}


def names(evicted: Sequence[Evicted], reason: EvictionReason | None = None) -> list[str]:
    return [one.key.decode() for one in evicted if reason in {None, one.reason}]


def test_full_tier_evicts_the_leaf_used_longest_ago() -> None:
    tier = Tier(3)
    for name in ("a", "b", "c"):
        assert tier.insert(name) == []
    assert tier.touch("a")
    assert tier.insert("d") == ["b"]


def test_parent_stays_as_long_as_its_children() -> None:
    tier = Tier(3)
    for name in ("a", "ab", "abc"):
        tier.insert(name)
    tier.touch("abc")
    assert tier.insert("x") == ["abc"]
    assert tier.insert("y") == ["ab"]
