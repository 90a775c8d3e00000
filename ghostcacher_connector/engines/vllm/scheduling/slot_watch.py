"""Who holds which slot since when: the scheduler's half of *bump happens-before overwrite*.

vLLM's block pool calls back when a block is allocated again: `BlockPool.unpin_blocks(..., on_reuse)`. A block in use is
touched and unpinned in one go, which leaves its reference count and its place in the free queue as they were, and
leaves the callback behind. When it is called, in the midst of `schedule()`, the block has not been written yet: its new
generation travels with that very step's metadata and every rank applies it at the start of the step, before any
forward pass, copy or pull of that step.

Only published slots are watched. A slot that nobody published has no entry that could be stale.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ghostcacher_connector.slots import Generations, Slots, first_generations

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


class SlotWatch:
    """Generations of all slots, and the published ones among them."""

    def __init__(self, pool: BlockPool, on_withdraw: Callable[[int], None]) -> None:
        """on_withdraw: called with each published slot that is about to be reused."""
        self._pool = pool
        self._on_withdraw = on_withdraw
        # Ranks begin at 0, and get these with the first step.
        self._generations: list[int] = first_generations(pool.num_gpu_blocks).tolist()
        self._published: set[int] = set()
        self._bumped: dict[int, int] = dict(enumerate(self._generations))

    def __repr__(self) -> str:
        return f"SlotWatch(published={len(self._published)}, bumps waiting={len(self._bumped)})"

    def is_published(self, slot: int) -> bool:
        return slot in self._published

    def publish(self, block: KVCacheBlock) -> int:
        """Watch a block in use from now on; return the generation to publish it with."""
        assert block.ref_cnt > 0, f"block {block.block_id} is published while it is free"
        self._pool.touch((block,))
        self._pool.unpin_blocks((block,), self._reused)
        self._published.add(block.block_id)
        slot: int = block.block_id
        return self._generations[slot]

    def take_bumps(self) -> tuple[Slots, Generations]:
        """Return the slots reused since the last call with their new generations, shape (n,) each."""
        bumped, self._bumped = self._bumped, {}
        slots = np.fromiter(bumped.keys(), dtype=np.int64, count=len(bumped))
        return slots, np.fromiter(bumped.values(), dtype=np.uint64, count=len(bumped))

    def _reused(self, block: KVCacheBlock) -> None:
        slot = block.block_id
        self._generations[slot] += 1
        self._bumped[slot] = self._generations[slot]
        self._published.discard(slot)
        self._on_withdraw(slot)
