"""The KV pool of a simulated engine: references, eviction, generations."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_simulator.pool import KvPool
from tests.support.index_parts import chain

ONE, TWO = chain(4, seed=1), chain(4, seed=2)


def hold(pool: KvPool, blocks: list[bytes]) -> None:
    """Let a request come, be computed and go."""
    pool.reserve(blocks)
    pool.fill(blocks)
    pool.release(blocks)


def test_prefix_is_found_when_it_is_filled() -> None:
    """A reserved block is not found before its KV is there, and stays when its request is gone."""
    pool = KvPool(8)
    pool.reserve(ONE)
    assert pool.match(ONE) == 0
    pool.fill(ONE[:2])
    assert pool.match(ONE) == 2
    pool.release(ONE)
    assert pool.match(ONE) == 2
    assert len(pool) == 2


def test_end_of_the_oldest_prompt_is_evicted_first() -> None:
    """Of two cached prompts the one that was used last stays whole."""
    pool = KvPool(8)
    hold(pool, ONE)
    hold(pool, TWO)
    evicted = pool.reserve(chain(2, seed=3))
    assert [held.block for held in evicted] == [ONE[3], ONE[2]]
    assert (pool.match(ONE), pool.match(TWO)) == (2, 4)


def test_reused_slot_has_another_generation() -> None:
    """What was where a block is now is not taken for it."""
    pool = KvPool(1)
    pool.reserve(ONE[:1])
    (old,) = pool.fill(ONE[:1])
    pool.release(ONE[:1])
    pool.reserve(TWO[:1])
    (new,) = pool.fill(TWO[:1])
    assert (old.slot, new.slot) == (0, 0)
    assert new.generation > old.generation
    assert pool.holds(new)
    assert not pool.holds(old)


def test_blocks_of_running_requests_are_not_evicted() -> None:
    """A prompt that has no room beside them does not fit."""
    pool = KvPool(5)
    pool.reserve(ONE)
    pool.fill(ONE)
    assert not pool.fits(TWO[:2])
    assert pool.fits([*ONE, TWO[0]])
    pool.release(ONE)
    assert pool.fits(TWO)


def test_no_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="slot_count: expected 1 or more, got 0"):
        KvPool(0)


class PoolMachine(RuleBasedStateMachine):
    """Requests come and go at random; slots are never shared, references never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = KvPool(6)
        self.running: list[list[bytes]] = []
        self.seen: dict[int, int] = {}

    @rule(seed=st.integers(0, 3), length=st.integers(1, 6))
    def come(self, seed: int, length: int) -> None:
        blocks = chain(length, seed=seed)
        if not self.pool.fits(blocks):
            return
        for held in self.pool.reserve(blocks):
            assert not any(held.block in one for one in self.running)
        for held in self.pool.fill(blocks):
            assert held.generation >= self.seen.get(held.slot, 0)
            self.seen[held.slot] = held.generation
        self.running.append(blocks)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100))
    def go(self, which: int) -> None:
        self.pool.release(self.running.pop(which % len(self.running)))

    @rule()
    def clear(self) -> None:
        self.pool.clear()

    @invariant()
    def whole(self) -> None:
        assert len(self.pool) <= self.pool.slot_count
        slots = [held.slot for held in self.pool._blocks.values()]
        assert len(set(slots)) == len(slots)
        for blocks in self.running:
            assert self.pool.match(blocks) == len(blocks)


TestPoolMachine = PoolMachine.TestCase
