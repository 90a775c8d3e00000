"""Which blocks a tier keeps, and in which order they go."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.retention.alarms import OUTDATED_SPARE, Alarms
from ghostcacher_connector.core.retention.base import EvictionReason, Refusal, TierBlock
from ghostcacher_connector.core.types import SectionType
from tests.support.lru_tier import Tier, names, traits_of

TOOLS, SYS, DOC, SESSION, USER = SectionType
GIB = 1 << 30


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


def test_child_that_came_first_holds_its_parent() -> None:
    """Engines give up the ends of prompts first, so children are copied down before their parents."""
    tier = Tier(2)
    tier.insert("ab")
    tier.insert("a")
    tier.touch("ab")
    assert tier.insert("x") == ["ab"]


def test_blocks_of_unknown_depth_follow_each_other() -> None:
    """SGLang does not say how deep a block lies."""
    tier = Tier(3)
    for name in ("a", "ab", "abc"):
        tier.insert(name, depth=0)
    tier.touch("abc")
    assert tier.insert("x") == ["abc"]
    assert names(tier.retention.flush(lambda block: block.key == b"a")) == ["ab", "a"]


def test_wrong_keys_make_no_circle() -> None:
    tier = Tier(4)
    tier.retention.insert(b"a", b"b", traits_of("aa", DOC))
    tier.retention.insert(b"b", b"a", traits_of("bb", DOC))
    tier.retention.check_invariants()
    assert len(tier.retention.flush(lambda _: True)) == 2


def test_newcomer_never_takes_its_parents_place() -> None:
    tier = Tier(1)
    tier.insert("a")
    assert tier.insert("ab") is Refusal.FULL
    assert tier.held == "a"


def test_user_messages_stay_in_the_engine() -> None:
    assert Tier(1).insert("a", USER) is Refusal.TYPE


def test_pinned_block_and_all_before_it_stay() -> None:
    tier = Tier(3)
    for name in ("a", "ab", "x"):
        tier.insert(name)
    tier.retention.pin(b"ab")
    assert tier.insert("y") == ["x"]
    tier.retention.pin(b"y")
    assert tier.insert("z") is Refusal.FULL
    tier.retention.unpin(b"ab")
    assert tier.insert("z") == ["ab"]


class TestTypes:
    @pytest.mark.parametrize(("section", "ttl_s"), [(DOC, 4 * 3_600.0), (SESSION, 3_600.0)])
    def test_type_ends_after_its_time(self, section: SectionType, ttl_s: float) -> None:
        tier = Tier(1)
        tier.insert("a", section)
        assert tier.at(ttl_s).expire() == []
        assert names(tier.at(1 + ttl_s).expire(), EvictionReason.TTL) == ["a"]

    @pytest.mark.parametrize("section", [TOOLS, SYS])
    def test_tools_and_system_prompts_have_no_end(self, section: SectionType) -> None:
        tier = Tier(1)
        tier.insert("a", section)
        assert tier.at(1e9).expire() == []

    def test_use_prolongs_sessions_and_no_documents(self) -> None:
        tier = Tier(2, doc_ttl_s=100.0, session_ttl_s=100.0)
        tier.insert("s", SESSION)
        tier.insert("d", DOC)
        tier.now = 60
        assert tier.touch("s")
        assert tier.touch("d")
        assert names(tier.at(150).expire()) == ["d"]
        assert names(tier.at(161).expire()) == ["s"]

    def test_parent_whose_time_is_over_goes_with_its_last_child(self) -> None:
        tier = Tier(3, doc_ttl_s=10.0, session_ttl_s=100.0)
        for name, section in (("a", DOC), ("ab", SESSION)):
            tier.insert(name, section)
        assert tier.at(50).expire() == []
        assert names(tier.at(102).expire()) == ["ab", "a"]

    def test_age_before_it_came_counts(self) -> None:
        tier = Tier(1)
        tier.insert("a", DOC, age_s=4 * 3_600.0 - 5)
        assert names(tier.at(6).expire()) == ["a"]

    def test_type_beyond_its_budget_goes_first(self) -> None:
        tier = Tier(4, doc_budget=0.5)
        tier.insert("s", SESSION)
        for name in ("a", "b", "c"):
            tier.insert(name)
        tier.touch("a")
        assert tier.insert("t", SESSION) == ["b"]

    def test_type_at_its_budget_takes_no_place_from_others(self) -> None:
        tier = Tier(4, doc_budget=0.5, session_budget=0.5)
        for name, section in (("s", SESSION), ("t", SESSION), ("a", DOC), ("b", DOC)):
            tier.insert(name, section)
        evicted = tier.retention.insert(b"c", None, traits_of("c", DOC)).evicted
        assert names(evicted, EvictionReason.BUDGET) == ["a"]


class TestRetention:
    def test_retained_block_goes_after_all_others(self) -> None:
        tier = Tier(3)
        tier.insert("a", retain_s=100)
        tier.insert("b")
        tier.insert("c")
        assert [tier.insert(name) for name in ("d", "e", "f")] == [["b"], ["c"], ["d"]]

    def test_only_a_retained_block_takes_the_place_of_one(self) -> None:
        tier = Tier(2, retained_share_max=1.0)
        tier.insert("a", retain_s=100)
        tier.insert("b", retain_s=100)
        assert tier.insert("c") is Refusal.FULL
        assert tier.insert("d", retain_s=100) == ["a"]

    def test_retention_ends(self) -> None:
        tier = Tier(2)
        tier.insert("a", retain_s=10)
        tier.insert("b")
        tier.now = 20
        assert tier.insert("c") == ["a"]

    def test_retention_can_be_prolonged(self) -> None:
        tier = Tier(2)
        tier.insert("a", retain_s=10)
        tier.touch("a", retain_s=100)
        tier.insert("b")
        tier.now = 20
        assert tier.insert("c") == ["b"]

    def test_touch_retains(self) -> None:
        tier = Tier(2)
        tier.insert("a")
        tier.insert("b")
        tier.touch("a", retain_s=100)
        tier.touch("b")
        assert tier.insert("c") == ["b"]

    def test_retention_outlasts_the_types_time(self) -> None:
        tier = Tier(1, doc_ttl_s=10.0, retained_share_max=1.0)
        tier.insert("a", retain_s=100)
        assert tier.at(50).expire() == []
        assert names(tier.at(102).expire()) == ["a"]

    def test_longest_retention_is_bounded(self) -> None:
        tier = Tier(1, retained_share_max=1.0, retain_s_max=50.0)
        tier.insert("a", retain_s=1e9)
        tier.now = 60
        assert tier.insert("b") == ["a"]

    def test_tenant_retains_no_more_than_its_quota(self) -> None:
        """What is beyond is a block like any other, and another tenant still has its own quota."""
        tier = Tier(8, quota_gib=1.0, retained_share_max=1.0)
        for name in ("a", "b"):
            tier.insert(name, retain_s=100, tenant=b"greedy")
        tier.insert("c", retain_s=100, tenant=b"other")
        assert tier.retention.retained_bytes == 2 * GIB
        assert tier.retention.quota_refused_bytes == GIB

    def test_all_tenants_together_retain_no_more_than_the_share(self) -> None:
        tier = Tier(4, retained_share_max=0.5)
        for name in ("a", "b", "c"):
            tier.insert(name, retain_s=100, tenant=name.encode())
        assert tier.retention.retained_bytes == 2 * GIB


class TestFlush:
    def test_flush_takes_what_follows_and_what_is_kept(self) -> None:
        tier = Tier(8)
        for name in ("a", "ab", "abc", "x"):
            tier.insert(name, retain_s=100)
        tier.retention.pin(b"abc")
        flushed = tier.retention.flush(lambda block: block.key == b"ab")
        tier.retention.check_invariants()
        assert names(flushed, EvictionReason.FLUSHED) == ["abc", "ab"]
        tier.retention.unpin(b"abc")
        assert tier.held == "a x"

    def test_flush_by_type(self) -> None:
        tier = Tier(8)
        for name, section in (("t", TOOLS), ("s", SESSION), ("u", SESSION)):
            tier.insert(name, section)
        assert sorted(names(tier.retention.flush(lambda block: block.section is SESSION))) == ["s", "u"]


def test_evict_frees_as_much_as_asked_for() -> None:
    tier = Tier(4)
    for name in ("a", "b", "c"):
        tier.insert(name)
    assert names(tier.retention.evict(2 * GIB)) == ["a"]
    assert names(tier.retention.evict(4 * GIB)) == ["b", "c"]


def test_removed_block_leaves_its_children() -> None:
    tier = Tier(4)
    for name in ("a", "ab"):
        tier.insert(name)
    assert tier.retention.remove(b"a")
    assert not tier.retention.remove(b"a")
    tier.insert("a")
    tier.touch("ab")
    assert names(tier.retention.evict(3 * GIB)) == ["ab"]


def test_many_uses_leave_no_outdated_places() -> None:
    """Neither in the queues nor among the times: what is used all the time must not fill memory."""
    tier = Tier(2, session_budget=1.0)
    for name in ("a", "b"):
        tier.insert(name, SESSION)
    for _ in range(1_000):
        tier.touch("a")
    tier.retention.check_invariants()


def test_alarms_that_are_set_again_leave_no_outdated_ones() -> None:
    alarms = Alarms()
    block = TierBlock(b"a", None, traits_of("a", DOC), 0.0)
    for at in range(1_000):
        alarms.set(block, at)
    assert len(alarms._heap) <= 2 + OUTDATED_SPARE
    assert alarms.next_at() == 999
