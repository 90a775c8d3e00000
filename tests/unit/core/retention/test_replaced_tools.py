"""What becomes of blocks of prompts whose tools were replaced."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import Refusal
from ghostcacher_connector.core.retention.tool_sets import OVER_MAX
from tests.support.lru_tier import Tier


def test_what_belongs_to_them_goes_before_all_others() -> None:
    """Also what a request wants kept; by what the last prompt says that used a block, wherever the tools lie."""
    tier = Tier(5, retained_share_max=0.5)
    for name in ("a", "t", "tu", "tv", "b"):
        tier.insert(name, tools=b"t" if name[0] == "t" else None, retain_s=100 if name == "tu" else 0)
    tier.touch("t", tools=b"n")
    assert tier.retention.age(b"t") == 2
    tier.retention.check_invariants()
    assert tier.retention.retained_bytes == 0
    assert [tier.insert(name) for name in ("c", "d", "e")] == [["tu"], ["tv"], ["a"]]


def test_use_ends_it_for_the_block_and_for_what_comes() -> None:
    tier = Tier(3)
    for name in ("a", "t", "tu"):
        tier.insert(name, tools=b"t" if name[0] == "t" else None)
    tier.retention.age(b"t")
    tier.touch("t", tools=b"t")
    tier.touch("tu", tools=b"t")
    assert tier.insert("x", tools=b"t") == ["a"]
    assert tier.insert("y") == ["tu"]


def test_prompt_without_a_block_here_brings_them_back() -> None:
    """The engine has it all, say: what comes down is worth as much as anything."""
    tier = Tier(1)
    tier.insert("a")
    tier.retention.age(b"t")
    tier.touch("elsewhere", tools=b"t")
    assert tier.insert("t", tools=b"t") == ["a"]


def test_what_comes_is_taken_in_only_where_there_is_room() -> None:
    """It goes first, and makes nothing else go."""
    tier = Tier(2)
    tier.insert("a")
    tier.retention.age(b"t")
    assert tier.insert("t", tools=b"t") == []
    assert tier.insert("u", tools=b"t") is Refusal.WORTH
    assert tier.insert("b") == ["t"]
    tier.retention.check_invariants()


def test_sets_that_are_over_are_remembered_within_bounds() -> None:
    tier = Tier(1)
    tier.insert("a")
    for number in range(OVER_MAX + 1):
        tier.retention.age(b"%d" % number)
    tier.retention.check_invariants()
    assert tier.insert("last", tools=b"%d" % OVER_MAX) is Refusal.WORTH
    assert tier.insert("first", tools=b"0") == ["a"]
