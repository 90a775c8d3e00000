"""What vLLM's own block pool hands out next, seen by walking its free list in steps."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.block_pool import BlockPool

from ghostcacher_connector.engines.vllm.capabilities import free_list_faults
from ghostcacher_connector.engines.vllm.scheduling import eviction_window
from ghostcacher_connector.engines.vllm.scheduling.eviction_window import EvictionWindow

pytestmark = pytest.mark.engine


def new_pool(blocks: int = 101) -> BlockPool:
    return BlockPool(num_gpu_blocks=blocks, enable_caching=True, hash_block_size=16)


def upcoming(pool: BlockPool, count: int) -> list[int]:
    """Hand out so many blocks of a copy of the pool's order."""
    return [block.block_id for block in pool.free_block_queue.get_all_free_blocks()[:count]]


def walk_all(window: EvictionWindow, wanted: set[int]) -> list[int]:
    """Walk until the window's end has been reached."""
    met = window.walk(wanted, 0)
    while not window.complete:
        met += window.walk(wanted, 0)
    return met


@pytest.mark.parametrize("visits", [1, 7, 64])
def test_walk_meets_what_is_handed_out_next(monkeypatch: pytest.MonkeyPatch, visits: int) -> None:
    """In that order, whatever the length of a step's walk; and nothing beyond the window."""
    monkeypatch.setattr(eviction_window, "VISITS", visits)
    pool = new_pool()
    taken = pool.get_new_blocks(50)
    pool.free_blocks(taken[25:] + taken[:25])
    window = EvictionWindow(pool, 0.2)
    assert window.length == 21
    assert walk_all(window, set(range(101))) == upcoming(pool, 21)
    wanted = set(upcoming(pool, 30)[::3])
    assert walk_all(window, wanted) == [slot for slot in upcoming(pool, 21) if slot in wanted]


def test_window_is_as_long_as_the_largest_recent_prompt() -> None:
    """A prompt that is pulled takes all of its blocks at once."""
    pool = new_pool()
    window = EvictionWindow(pool, 0.01)
    window.arrived(40)
    window.arrived(3)
    assert walk_all(window, set(range(101))) == upcoming(pool, 40)
    for _ in range(eviction_window.PROMPTS):
        window.arrived(3)
    assert walk_all(window, set(range(101))) == upcoming(pool, 3)


def test_step_that_hands_out_many_blocks_is_followed_further() -> None:
    """A long chunk of a prompt takes more than a plain step looks at."""
    pool = new_pool(1001)
    window = EvictionWindow(pool, 1.0)
    assert len(window.walk(set(range(1001)), 100)) == eviction_window.VISITS + 200


def test_walk_begins_anew_when_it_has_lost_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block at which it stopped is in use, or was freed again at the list's other end."""
    monkeypatch.setattr(eviction_window, "VISITS", 5)
    pool = new_pool()
    window = EvictionWindow(pool, 0.3)
    window.walk(set(), 0)
    taken = pool.get_new_blocks(8)
    assert window.walk(set(range(101)), 0) == upcoming(pool, 5)
    pool.free_blocks(taken)
    pool.get_new_blocks(20)
    assert window.walk(set(range(101)), 0) == upcoming(pool, 5)


def test_empty_list_is_walked_to_its_end() -> None:
    """All blocks are in use."""
    pool = new_pool()
    pool.get_new_blocks(100)
    window = EvictionWindow(pool, 1.0)
    assert window.walk(set(range(101)), 0) == []
    assert window.complete


def test_pool_whose_list_is_another_is_named() -> None:
    """As a later version may have it: a host tier is refused at start then, and says why."""

    class Backwards(BlockPool):
        def get_new_blocks(self, num_blocks: int) -> list[Any]:
            return list(reversed(super().get_new_blocks(num_blocks)))

    class Elsewhere(BlockPool):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            del self.free_block_queue

    assert list(free_list_faults(new_pool())) == []
    options: dict[str, Any] = {"num_gpu_blocks": 8, "enable_caching": True, "hash_block_size": 16}
    (fault,) = free_list_faults(Backwards(**options))
    assert "in the order of their use, [3, 2, 1], found [1, 2, 3]" in fault
    missing = Elsewhere.__new__(Elsewhere)
    (fault,) = free_list_faults(missing)
    assert "expected a list to walk, found AttributeError" in fault
