"""Held blocks: what this worker holds, and what the index must be told."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_connector.core.index.base import Drop, Entry
from ghostcacher_connector.core.types import Location, Tier
from ghostcacher_connector.publish import held_blocks
from ghostcacher_connector.publish.held_blocks import Batch, HeldBlocks
from tests.support.index_parts import FakeClock

PARTITIONS = 3
ENGINE_SLOTS = 100


def partition_of(root: bytes) -> int:
    return root[0] % PARTITIONS


def new_held(dirty_max: int = 100, clock: FakeClock | None = None) -> HeldBlocks:
    return HeldBlocks(
        partitions=PARTITIONS,
        partition_of=partition_of,
        engine_slots=ENGINE_SLOTS,
        dirty_max=dirty_max,
        clock=clock or FakeClock(),
    )


def entry(block: bytes, slot: int, generation: int) -> Entry:
    return Entry(block, block, Location(tier_of(slot), slot, generation))


def tier_of(slot: int) -> Tier:
    return Tier.DEVICE if slot < ENGINE_SLOTS else Tier.HOST


def test_published_block_is_taken_once() -> None:
    """A block is sent with its slot and generation, and not again."""
    held = new_held()
    held.publish(4, b"a", b"a", 9)
    assert held.take(10).entries == [entry(b"a", 4, 9)]
    assert not held.take(10)
    assert held.expected(partition_of(b"a")) == 1


def test_block_withdrawn_before_it_was_taken_costs_nothing() -> None:
    """What comes and goes between two batches is never sent."""
    held = new_held()
    held.publish(4, b"a", b"a", 9)
    held.withdraw(4)
    assert not held.take(10)


def test_withdrawn_block_is_dropped() -> None:
    """A block that was sent and is gone is dropped, once."""
    held = new_held()
    held.publish(4, b"a", b"a", 9)
    held.take(10)
    held.withdraw(4)
    held.withdraw(4)
    assert held.take(10) == Batch([], [Drop(b"a", b"a")], 1000.0)
    assert held.expected(partition_of(b"a")) == 0


def test_block_in_two_slots_survives_loss_of_one() -> None:
    """When the advertised slot of a block goes, another that holds it takes its place."""
    held = new_held()
    held.publish(1, b"a", b"a", 5)
    held.publish(2, b"a", b"a", 6)
    assert held.take(10).entries == [entry(b"a", 1, 5)]
    held.withdraw(1)
    assert held.take(10).entries == [entry(b"a", 2, 6)]
    held.withdraw(2)
    assert held.take(10).drops == [Drop(b"a", b"a")]


def test_engine_slot_of_a_block_is_advertised_before_its_host_slot() -> None:
    """Whichever came first. The host slot takes its place when the engine has evicted the block, and gives it back."""
    held = new_held()
    host, engine, other = ENGINE_SLOTS, 1, 2
    held.publish(host, b"a", b"a", 5)
    assert held.take(10).entries == [entry(b"a", host, 5)]
    held.publish(engine, b"a", b"a", 6)
    assert held.take(10).entries == [entry(b"a", engine, 6)]
    held.publish(host + 1, b"a", b"a", 7)
    held.publish(other, b"a", b"a", 8)
    assert not held.take(10)
    held.withdraw(engine)
    assert held.take(10).entries == [entry(b"a", other, 8)]
    held.withdraw(other)
    assert held.take(10).entries[0].location.tier is Tier.HOST
    held.withdraw(host)
    held.withdraw(host + 1)
    assert held.take(10).drops == [Drop(b"a", b"a")]


def test_slot_reused_without_withdrawal_drops_what_it_held() -> None:
    """Publishing into a slot says that its former block is gone."""
    held = new_held()
    held.publish(1, b"a", b"a", 5)
    held.take(10)
    held.publish(1, b"b", b"b", 6)
    batch = held.take(10)
    assert (batch.entries, batch.drops) == ([entry(b"b", 1, 6)], [Drop(b"a", b"a")])


def test_batch_is_bounded_and_oldest_first() -> None:
    """`take` gives what is oldest, up to the limit, with the age of the oldest."""
    clock = FakeClock()
    held = new_held(clock=clock)
    for number in range(100):
        held.publish(number, bytes([number]), bytes([number]), 1)
        clock.advance(1.0)
    first = held.take(70)
    assert [found.location.slot for found in first.entries] == list(range(70))
    assert first.oldest_since == 1000.0
    assert [found.location.slot for found in held.take(70).entries] == list(range(70, 100))


def test_overflow_forgets_changes_and_asks_for_resync() -> None:
    """More changes than the bound are forgotten and counted; after the resync everything is sent."""
    held = new_held(dirty_max=5)
    for number in range(8):
        held.publish(number, bytes([number]), bytes([number]), 1)
    assert (held.resync, held.dropped) == (True, 6)
    assert not held.take(10)
    held.mark_all_dirty()
    assert not held.resync
    assert {found.block for found in held.take(10).entries} == {bytes([number]) for number in range(8)}


def test_partition_marked_dirty_is_sent_again_and_no_other() -> None:
    """Only blocks of the marked partition are sent again, though gone ones are not."""
    held = new_held()
    for number in range(9):
        held.publish(number, bytes([number]), bytes([number]), 1)
    held.take(100)
    held.mark_all_dirty(1)
    held.withdraw(4)
    assert held.expected(1) == 0
    batch = held.take(100)
    assert {found.location.slot for found in batch.entries} == {1, 7}
    assert batch.drops == []


SLOTS = st.integers(0, 5) | st.integers(ENGINE_SLOTS, ENGINE_SLOTS + 5)
"""Of either tier."""


class HeldBlocksMachine(RuleBasedStateMachine):
    """Any sequence of calls: an index that applies every batch ends up with what is held, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.held = new_held(dirty_max=6)
        self.slots: dict[int, tuple[bytes, int]] = {}
        self.index: dict[bytes, Location] = {}
        self.generation = 0

    @rule(slot=SLOTS, block=st.integers(0, 7))
    def publish(self, slot: int, block: int) -> None:
        self.generation += 1
        name = bytes([block])
        self.held.publish(slot, name, name, self.generation)
        self.slots[slot] = (name, self.generation)

    @rule(slot=SLOTS)
    def withdraw(self, slot: int) -> None:
        self.held.withdraw(slot)
        self.slots.pop(slot, None)

    @rule(first_slot=SLOTS)
    def withdraw_from(self, first_slot: int) -> None:
        """As of many slots, whatever their number."""
        with pytest.MonkeyPatch.context() as few:
            few.setattr(held_blocks, "SINGLY_MAX", 1)
            self.held.withdraw_from(first_slot)
        self.slots = {slot: held for slot, held in self.slots.items() if slot < first_slot}

    @precondition(lambda self: not self.held.resync)
    @rule(limit=st.integers(1, 12))
    def apply_batch(self, limit: int) -> None:
        batch = self.held.take(limit)
        assert len(batch.entries) + len(batch.drops) <= limit
        for drop in batch.drops:
            del self.index[drop.block]
        for found in batch.entries:
            self.index[found.block] = found.location

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def lose_partition(self, partition: int) -> None:
        self.index = {block: found for block, found in self.index.items() if partition_of(block) != partition}
        self.held.mark_all_dirty(partition)

    @precondition(lambda self: self.held.resync)
    @rule()
    def resync(self) -> None:
        self.index.clear()
        self.held.mark_all_dirty()

    @rule()
    def settle(self) -> None:
        """Send all there is: the index is then exact."""
        if self.held.resync:
            self.resync()
        while self.held.pending:
            self.apply_batch(4)
        assert self.index.keys() == {block for block, _ in self.slots.values()}
        for block, location in self.index.items():
            assert self.slots[location.slot] == (block, location.generation)
            assert location.tier == min(tier_of(slot) for slot, (held, _) in self.slots.items() if held == block)
            assert location.tier is tier_of(location.slot)

    @invariant()
    def holds(self) -> None:
        self.held.check_invariants()
        if not self.held.resync:
            counts = [sum(partition_of(block) == number for block in self.index) for number in range(PARTITIONS)]
            assert counts == [self.held.expected(number) for number in range(PARTITIONS)]


TestHeldBlocksMachine = HeldBlocksMachine.TestCase
TestHeldBlocksMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
