"""What the policies prefer, in a tier."""

from __future__ import annotations

import random

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

DOC, SESSION, SYS = SectionType.DOC, SectionType.SESSION, SectionType.SYS


class Load:
    """Prompts of a few blocks each against a tier of blocks of one byte."""

    def __init__(self, policy: str, capacity: int, **settings: object) -> None:
        self.now = 0.0
        chosen = RetentionSettings(
            **{"eviction_policy": policy, "doc_ttl_s": None, "session_ttl_s": None, "doc_budget": 1.0, **settings}
        )
        self.tier = TierRetention(chosen, capacity, clock=lambda: self.now)

    def prompt(self, name: str, blocks: int = 4, section: SectionType = DOC) -> int:
        """Return how many leading blocks of a prompt were there; insert the others."""
        self.now += 1
        hits = 0
        for depth in range(blocks):
            key = f"{name}{depth}".encode()
            traits = BlockTraits(section, depth, 16, 1, prompt_blocks=blocks)
            if self.tier.touch(key, traits):
                hits += hits == depth
            else:
                self.tier.insert(key, f"{name}{depth - 1}".encode() if depth else None, traits)
        return hits


def mixed(policy: str) -> int:
    """Return the hits of 20 documents that come back every 20 prompts among twice as many prompts that never do."""
    load = Load(policy, 120)
    hits = 0
    for turn in range(1_500):
        hits += load.prompt(f"document {turn % 20} ")
        load.prompt(f"once {turn} a ")
        load.prompt(f"once {turn} b ")
    return hits


def test_hit_density_keeps_what_comes_back_from_what_does_not() -> None:
    """The documents fit, and LRU loses them to the others before they are used again."""
    assert mixed("lru") == 0
    assert mixed("hit-density") > 0.8 * 4 * 1_500


def test_hit_density_keeps_a_part_of_a_round_that_does_not_fit() -> None:
    """LRU gives up each document just before its turn."""
    results = {}
    for policy in ("hit-density", "lru"):
        load = Load(policy, 40)
        results[policy] = sum(load.prompt(f"document {turn % 20} ") for turn in range(1_500))
    assert results["lru"] == 0
    assert results["hit-density"] > 0.3 * 4 * 1_500


def test_hit_density_loses_no_more_than_a_little_where_lru_is_right() -> None:
    """Each session is used ten times in a row and then never again."""
    results = {}
    for policy in ("hit-density", "lru"):
        load = Load(policy, 40)
        results[policy] = sum(load.prompt(f"session {turn // 10} ") for turn in range(2_000))
    assert results["hit-density"] >= 0.97 * results["lru"]


def test_hit_density_follows_a_load_that_changes() -> None:
    """Documents of one half of the time are not kept through the other."""
    load = Load("hit-density", 120)
    for turn in range(1_000):
        load.prompt(f"old {turn % 20} ")
        load.prompt(f"once {turn} ")
    hits = 0
    for turn in range(1_000):
        hits += load.prompt(f"new {turn % 20} ")
        load.prompt(f"again {turn} ")
    assert hits > 0.6 * 4 * 1_000


def test_hit_density_heeds_priorities() -> None:
    """Of two types that are used alike the one whose hits are worth more has the tier."""
    load = Load("hit-density", 80, session_priority=10.0, session_budget=1.0)
    for turn in range(1_000):
        load.prompt(f"document {turn % 20} ", 4, DOC)
        load.prompt(f"session {turn % 20} ", 4, SESSION)
    assert sum(key.startswith(b"session") for key in load.tier) > 70


def test_seed_score_prefers_uses_to_recency() -> None:
    load = Load("seed-score", 2)
    load.prompt("often", 1)
    for _ in range(3):
        load.prompt("often", 1)
    load.prompt("once", 1)
    load.now += 1
    load.prompt("new", 1)
    assert {key.decode() for key in load.tier} == {"often0", "new0"}


def test_seed_score_falls_with_age() -> None:
    """Four uses in an hour are worth less than two in the last minute."""
    load = Load("seed-score", 2)
    for _ in range(4):
        load.prompt("old", 1)
    load.now += 3_600
    for _ in range(2):
        load.prompt("young", 1)
    load.now += 60
    load.prompt("new", 1)
    assert {key.decode() for key in load.tier} == {"young0", "new0"}


def test_seed_score_takes_the_older_of_equals() -> None:
    load = Load("seed-score", 2)
    for name in ("old", "young", "new"):
        load.prompt(name, 1)
    assert {key.decode() for key in load.tier} == {"young0", "new0"}


def test_priority_of_a_type_weighs() -> None:
    for name, kept in (("sys_priority", "system0"), ("doc_priority", "document0")):
        load = Load("seed-score", 2, **{"sys_priority": 1.0, "sys_budget": 1.0, name: 10.0})
        load.prompt("system", 1, SYS)
        load.prompt("document", 1, DOC)
        load.now += 10
        load.prompt("new", 1, SESSION)
        assert kept.encode() in load.tier


def test_random_keys_do_not_depend_on_the_process() -> None:
    """Two tiers that saw the same are the same: nothing is drawn at random."""
    held = []
    for _ in range(2):
        load = Load("hit-density", 40)
        chance = random.Random(7)
        for _ in range(600):
            load.prompt(f"document {chance.randrange(40)} ")
        held.append(set(load.tier))
    assert held[0] == held[1]
