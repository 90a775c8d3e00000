"""The host tier of a simulated worker: slots, generations, what is kept while it is read."""

from __future__ import annotations

from ghostcacher_simulator.machines.workers import HostTier
from ghostcacher_simulator.replay.host_blocks import HostBlocks
from tests.unit.simulator.replay.support import load

FIRST, SECOND = load((0, "a"), (1, "b"), blocks=2).requests


def tier(blocks: int, in_engine: set[bytes] | None = None) -> HostBlocks:
    made = HostBlocks(HostTier(blocks, 1e9, "lru"), lambda: 0.0, (in_engine or set()).__contains__)
    for request in (FIRST, SECOND):
        made.asked(request)
    return made


def test_slot_that_is_used_again_has_another_generation_and_content() -> None:
    """What a reader has looked up before does not fit any more."""
    host = tier(1)
    old, _ = host.take(FIRST.prompt.blocks[0])
    new, gone = host.take(SECOND.prompt.blocks[0])
    assert old is not None
    assert new is not None
    assert (old.slot, gone) == (new.slot, [FIRST.prompt.blocks[0]])
    assert host.generation(new.slot) == new.generation == old.generation + 1
    assert host.content(new.slot) == SECOND.prompt.blocks[0]
    host.check_invariants()


def test_block_that_is_read_stays() -> None:
    host = tier(1)
    host.take(FIRST.prompt.blocks[0])
    pinned = host.pin(FIRST.prompt.blocks)
    assert pinned == [FIRST.prompt.blocks[0]]
    assert host.take(SECOND.prompt.blocks[0]) == (None, [])
    host.unpin(pinned)
    host.asked(SECOND)
    assert host.take(SECOND.prompt.blocks[0])[0] is not None


def test_block_that_is_in_both_is_taken_again_after_the_tier_has_given_it_up() -> None:
    """What is known of a block is kept as long as the engine or the tier has it."""
    first, second = FIRST.prompt.blocks[0], SECOND.prompt.blocks[0]
    host = tier(1, {first})
    host.take(first)
    host.take(second)
    assert first not in host
    assert host.take(first)[0] is not None


def test_prefix_is_of_both_caches_together() -> None:
    host = tier(4, {FIRST.prompt.blocks[0]})
    assert host.prefix(FIRST.prompt.blocks) == 1
    host.take(FIRST.prompt.blocks[1])
    assert host.prefix(FIRST.prompt.blocks) == 2
    assert host.prefix(SECOND.prompt.blocks) == 0
