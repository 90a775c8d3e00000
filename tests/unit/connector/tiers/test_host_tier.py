"""The host tier between an engine and the index: what is ordered, what is published, what is taken back."""

from __future__ import annotations

import numpy as np

from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.types import SectionType
from ghostcacher_connector.metrics import Delta, Recorder
from ghostcacher_connector.metrics.catalog import METRICS
from ghostcacher_connector.tiers.candidates import Candidate
from ghostcacher_connector.tiers.host_tier import ORDER_BYTES, ORDERS_MAX, RECORD_INTERVAL_S
from tests.support.index_parts import FakeClock
from tests.support.ordering_tier import FIRST, ROOT, copy, name, new_tier, publish, publish_as, touch, traits_in


def test_order_names_the_slots_and_the_generation_that_was_published() -> None:
    """So that a rank sees whether the slot was reused meanwhile."""
    tier, sink = new_tier()
    publish(tier, 1, 2)
    (order,) = tier.order([2, 1])
    assert order.engine_slots.tolist() == [2, 1]
    assert order.generations.tolist() == [1002, 1001]
    assert order.generations.dtype == np.uint64
    assert len(set(order.host_slots.tolist())) == 2
    assert sink.slots == {}
    tier.reported(order.copy_id, [True, False])
    assert sink.slots == {order.host_slots[0]: name(2)}


def test_block_is_ordered_once() -> None:
    """Neither while it is copied, nor when it is there, nor from another slot that holds the same."""
    tier, _ = new_tier()
    publish(tier, 1)
    (order,) = tier.order([1])
    assert tier.wanted == set()
    publish_as(tier, 2, name(1))
    assert tier.order([2]) == []
    tier.reported(order.copy_id, [True])
    publish_as(tier, 3, name(1))
    assert tier.order([3]) == []


def test_same_block_in_two_slots_is_ordered_once() -> None:
    """Requests that computed it side by side both give it up."""
    tier, _ = new_tier()
    publish_as(tier, 1, name(1))
    publish_as(tier, 2, name(1))
    (order,) = tier.order([1, 2])
    assert order.engine_slots.tolist() == [1]


def test_orders_are_small_and_few() -> None:
    """What does not fit is still wanted, and comes with a later step."""
    tier, _ = new_tier(slots=4 * ORDERS_MAX)
    count = 2 * ORDERS_MAX + 3
    publish(tier, *range(count))
    orders = tier.order(range(count))
    assert len(orders) == ORDERS_MAX
    assert {len(order.engine_slots) for order in orders} == {2}
    assert tier.wanted == set(range(count - 3, count))
    tier.reported(orders[0].copy_id, [True, True])
    assert len(tier.order(sorted(tier.wanted))) == 1


def test_block_larger_than_an_order_is_an_order() -> None:
    """Large blocks are copied one by one."""
    tier, _ = new_tier(block_bytes=3 * ORDER_BYTES)
    publish(tier, 1, 2)
    assert [order.engine_slots.tolist() for order in tier.order([1, 2])] == [[1], [2]]


def test_slot_that_was_reused_is_not_wanted() -> None:
    """Nothing is copied of what the engine has given away."""
    tier, _ = new_tier()
    publish(tier, 1)
    tier.engine_gives(1)
    assert tier.wanted == set()


def test_evicted_block_that_the_engine_still_has_is_wanted_again() -> None:
    """It goes first, as it is in both tiers, and comes back before the engine gives it up."""
    tier, sink = new_tier(slots=1)
    publish(tier, 1, 2)
    copy(tier, 1)
    touch(tier, 1)
    copy(tier, 2)
    assert sink.slots[FIRST] == name(2)
    assert tier.wanted == {1}


def test_block_soon_to_be_given_up_by_the_engine_does_not_make_room_first() -> None:
    """The engine's copy is about to go: then this one is the only one."""
    tier, sink = new_tier(slots=2)
    publish(tier, 1, 2, 3)
    copy(tier, 1, 2)
    touch(tier, 2)
    assert tier.wanted == {2, 3}
    tier.order([2])
    copy(tier, 3)
    assert sorted(sink.slots.values()) == [name(2), name(3)]


def test_clear_withdraws_all_and_drops_copies_under_way() -> None:
    """Weights have changed: nothing of before is found, and nothing comes back."""
    tier, sink = new_tier()
    publish(tier, 1, 2)
    copy(tier, 1)
    (order,) = tier.order([2])
    for slot in (1, 2):
        tier.engine_gives(slot)
    tier.clear()
    assert sink.slots == {}
    tier.reported(order.copy_id, [True])
    assert sink.slots == {}
    assert tier.ledger.prefix([name(1)], 0) == []
    assert not tier.busy


def test_no_only_copy_goes_while_a_load_is_about_to_make_room() -> None:
    """Once it has ended, the engine has what it reads, too; what was not copied until then is copied in its place."""
    tier, sink = new_tier(slots=3)
    publish(tier, 1, 2, 3)
    copy(tier, 1, 2)
    tier.engine_gives(1)
    tier.engine_gives(2)
    tier.ledger.pin("load", [name(1)], 5.0)
    publish(tier, 4)
    assert [order.engine_slots.tolist() for order in copy(tier, 3, 4)] == [[3]]
    assert tier.wanted == {4}
    tier.ledger.unpin("load")
    publish(tier, 1)
    copy(tier, 4)
    assert sorted(sink.slots.values()) == [name(2), name(3), name(4)]


def test_metrics_say_what_left_and_what_was_refused_and_why() -> None:
    """By type and reason, each once. All that is there is documents, which may fill three quarters when others come."""
    recorder, clock = Recorder(), FakeClock()
    tier, _ = new_tier(slots=3, recorder=recorder, clock=clock)
    publish(tier, 1, 2, 3, 4, 5)
    tier.engine_holds(6, Candidate(name(6), ROOT, None, traits_in(tier)._replace(section=SectionType.USER)), 7)
    copy(tier, 1, 2, 3)
    touch(tier, 1)
    copy(tier, 4, 5, 6)
    tier.ledger.drop(lambda block: block == name(5))
    for slot in range(1, 6):
        tier.engine_gives(slot)
    clock.advance(RetentionSettings().doc_ttl_s or 0.0)
    tier.order([])
    tier.record_metrics()
    delta = recorder.drain()
    assert labelled(delta, "gc_tier_evicted_blocks_total") == {
        ("host", "doc", "duplicate"): 1,
        ("host", "doc", "budget"): 1,
        ("host", "doc", "flushed"): 1,
        ("host", "doc", "ttl"): 2,
    }
    assert labelled(delta, "gc_tier_refused_blocks_total") == {("host", "user", "type"): 1}
    assert (tier.load().evicted_blocks, tier.load().refused_blocks) == (4, 0)
    state = {"gc_tier_blocks", "gc_tier_retained_bytes", "gc_tier_needed_blocks"}
    assert recorder.drain().keys() == state | {"gc_tier_quota_refused_bytes_total"}


def test_metrics_say_what_is_retained_and_what_the_quota_refused() -> None:
    """Half of the tier may be retained."""
    recorder = Recorder()
    tier, _ = new_tier(slots=4, recorder=recorder)
    publish(tier, 1, 2, 3)
    copy(tier, 1, 2, 3)
    tier.touch([name(slot) for slot in (1, 2, 3)], [traits_in(tier)._replace(retain_s=60.0)] * 3)
    tier.record_metrics()
    delta = recorder.drain()
    assert labelled(delta, "gc_tier_retained_bytes") == {("host",): 2 * tier.block_bytes}
    assert labelled(delta, "gc_tier_quota_refused_bytes_total") == {("host",): tier.block_bytes}


def test_block_that_only_the_engine_has_is_kept_from_its_copy_on() -> None:
    """Whoever asks for it to be kept while it is there may not come again."""
    tier, _ = new_tier()
    publish(tier, 1, 2)
    for retain_s in (60.0, 0.0):
        tier.touch([name(1)], [traits_in(tier)._replace(retain_s=retain_s)])
    copy(tier, 1, 2)
    assert tier.ledger.retained_bytes == tier.block_bytes


def test_metrics_are_recorded_once_a_second_at_most() -> None:
    """However many steps the engine takes."""
    recorder, clock = Recorder(), FakeClock()
    tier, _ = new_tier(recorder=recorder, clock=clock)
    tier.record_metrics()
    assert recorder.drain()
    tier.record_metrics()
    assert not recorder.drain()
    clock.advance(RECORD_INTERVAL_S)
    tier.record_metrics()
    assert recorder.drain()


def labelled(delta: Delta, metric: str) -> dict[tuple[str, ...], object]:
    """Return a metric's increases by the values of its labels."""
    return {METRICS[metric].values_of(key): value for key, value in delta.get(metric, {}).items() if value}


def test_what_the_engine_has_of_replaced_tools_comes_down_only_where_there_is_room() -> None:
    """By the tools of the last prompt that used a block: it may be one that both sets begin with."""
    tier, sink = new_tier(2)
    publish(tier, 1, 2, 3, 4)
    old, new = (traits_in(tier)._replace(tools=tools) for tools in (b"old", b"new"))
    tier.touch([name(1), name(2), name(3)], [old] * 3)
    tier.touch([name(3)], [new])
    copy(tier, 1)
    tier.age(b"old")
    copy(tier, 3, 2)
    assert set(sink.slots.values()) == {name(1), name(3)}
    copy(tier, 4)
    assert set(sink.slots.values()) == {name(3), name(4)}
    tier.ledger.check_invariants()


def test_needed_block_of_the_engine_comes_down_though_the_tier_is_full() -> None:
    """It is told after it was published, and as long as the engine has it."""
    tier, sink = new_tier(2, recorder=(recorder := Recorder()), clock=(clock := FakeClock()), doc_budget=1.0)
    publish(tier, 1, 2, 3)
    tier.need(name(3), needed=True)
    tier.need(name(9), needed=True)
    copy(tier, 1, 2)
    tier.need(name(2), needed=True)
    copy(tier, 3)
    assert set(sink.slots.values()) == {name(2), name(3)}
    tier.need(name(2), needed=False)
    clock.advance(RECORD_INTERVAL_S)
    tier.record_metrics()
    assert recorder.drain()["gc_tier_needed_blocks"] == {"host": 1.0}
    publish(tier, 4)
    copy(tier, 4)
    assert set(sink.slots.values()) == {name(3), name(4)}
