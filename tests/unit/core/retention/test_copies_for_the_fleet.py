"""What the fleet's need of copies does to the order in which blocks go."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import Refusal
from ghostcacher_connector.core.retention.tier_retention import NEEDED_S
from ghostcacher_connector.core.retention.victims import Newcomer, Victim
from ghostcacher_connector.core.types import SectionType
from tests.support.lru_tier import GIB, Tier

TOOLS, SYS, DOC, SESSION, USER = SectionType


def test_needed_block_goes_only_for_one_that_is_needed_or_retained() -> None:
    """Whatever the policy says; a newcomer that is neither is refused."""
    tier = Tier(2, sys_budget=1.0)
    assert tier.insert("s", SYS, needed=True) == []
    tier.insert("a")
    assert tier.insert("b") == ["a"]
    tier.retention.need(b"b", needed=True)
    assert tier.insert("c") is Refusal.FULL
    assert tier.retention.evict(GIB) == []
    assert tier.insert("sx", SYS, needed=True) == ["b"]
    assert tier.insert("d", retain_s=10) == ["sx"]
    assert tier.held == "d s"


def test_needed_newcomer_comes_though_it_is_worth_less() -> None:
    """Hit density may have seen that nobody asks for it here."""
    tier = Tier(1, sys_budget=1.0)
    tier.insert("a")
    block = tier.retention.look(b"a")
    assert block is not None
    worthless = Newcomer(block, -1.0, retained=False, needed=True)
    victim = Victim(False, False, True, True, 5.0, block)
    assert worthless.outweighs(victim)
    assert not worthless._replace(needed=False).outweighs(victim)
    assert not worthless.outweighs(victim._replace(needed=True))


def test_budget_of_the_type_bounds_it() -> None:
    """Half of this tier; what is beyond goes first, as ever."""
    tier = Tier(4, sys_budget=0.5)
    for name in ("s", "t", "u", "v"):
        tier.insert(name, SYS, needed=True)
    assert [tier.insert(name) for name in ("a", "b")] == [["s"], ["t"]]
    assert tier.insert("c") == ["a"], "the others are within their budget"
    assert tier.insert("w", SYS, needed=True) == ["b"], "as any other block: it is beyond the budget"
    assert tier.insert("d") == ["u"]
    assert tier.held == "c d v w"


def test_block_of_its_type_that_is_not_needed_replaces_none_that_is() -> None:
    """Also where the type has just what it may have."""
    tier = Tier(2, sys_budget=1.0)
    for name in ("s", "t"):
        tier.insert(name, SYS, needed=True)
    assert tier.insert("u", SYS) is Refusal.FULL
    assert tier.insert("v", SYS, needed=True) is Refusal.FULL, "beyond the budget it is as any other"
    assert tier.held == "s t"


def test_it_ends_when_nobody_uses_it_or_others_keep_it() -> None:
    tier = Tier(2, sys_budget=1.0)
    for name in ("s", "t"):
        tier.insert(name, SYS, needed=True)
    assert tier.retention.needed_blocks == 2
    tier.retention.need(b"s", needed=False)
    tier.retention.need(b"gone", needed=True)
    assert tier.insert("a") == ["s"]
    tier.at(NEEDED_S)
    tier.touch("t")
    tier.touch("a")
    tier.at(2 * NEEDED_S - 1)
    assert tier.insert("b") == ["a"]
    tier.at(2 * NEEDED_S + 2)
    assert tier.insert("c") == ["t"]
    assert tier.retention.needed_blocks == 0


def test_replaced_tools_are_not_needed() -> None:
    tier = Tier(2, tools_budget=1.0)
    tier.insert("t", TOOLS, needed=True, tools=b"t")
    tier.insert("a")
    tier.retention.age(b"t")
    assert tier.insert("b") == ["t"]
    assert tier.retention.needed_blocks == 0


def test_nothing_is_needed_any_more_after_all_was_forgotten() -> None:
    """Nor of any tools: what was is neither kept nor counted."""
    tier = Tier(2, sys_budget=1.0)
    tier.insert("s", SYS, needed=True, tools=b"t")
    tier.retention.clear()
    tier.retention.check_invariants()
    assert tier.retention.needed_blocks == 0
    assert tier.retention.age(b"t") == 0
    assert tier.insert("s", SYS) == []
