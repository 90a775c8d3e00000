"""Who holds which slot since when: the scheduler's half of *bump happens-before overwrite*.

vLLM's block pool calls back when a block is allocated again: `BlockPool.unpin_blocks(..., on_reuse)`. A block in use is
touched and unpinned in one go, which leaves its reference count and its place in the free queue as they were, and
leaves the callback behind. When it is called, in the midst of `schedule()`, the block has not been written yet: its new
generation travels with that very step's metadata and every rank applies it at the start of the step, before any
forward pass, copy or pull of that step.

    unwatched --watch--> watched --mark--> computed --publish--> published
        ^                   |                 |                      |
        '-------------------+--- the pool hands the slot out --------'

A slot is watched before a step fills it, so that its generation names the very contents that the step leaves, whatever
becomes of the request meanwhile. A slot that is not watched has no entry that could be stale, and is not marked.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ghostcacher_connector.slots import Generations, Slots, first_generations

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

NO_BUMPS = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64))
"""Most steps reuse no slot that is watched."""


class SlotWatch:
    """Generations of all slots, and what is known of the contents of each."""

    def __init__(self, pool: BlockPool, on_withdraw: Callable[[int], None]) -> None:
        """on_withdraw: called with each published slot that is about to be reused."""
        self._pool = pool
        self._on_withdraw = on_withdraw
        # Ranks begin at 0, and get these with the first step.
        self._generations: list[int] = first_generations(pool.num_gpu_blocks).tolist()
        self._watched: set[int] = set()
        self._computed: dict[int, bytes] = {}
        self._published: set[int] = set()
        self._distrusted: set[int] = set()
        self._bumped: dict[int, int] = dict(enumerate(self._generations))

    def __repr__(self) -> str:
        return (
            f"SlotWatch(watched={len(self._watched)}, computed={len(self._computed)}, "
            f"published={len(self._published)}, bumps waiting={len(self._bumped)})"
        )

    def watch(self, block: KVCacheBlock) -> int:
        """Watch a block in use from now on, if that is not so already; return its generation."""
        slot: int = block.block_id
        if slot not in self._watched:
            assert block.ref_cnt > 0, f"block {slot} is watched while it is free"
            self._pool.touch((block,))
            self._pool.unpin_blocks((block,), self._reused)
            self._watched.add(slot)
        return self._generations[slot]

    def is_watched(self, slot: int) -> bool:
        return slot in self._watched

    def mark(self, slot: int, generation: int, computed_by: bytes) -> bool:
        """Note that a watched slot holds what was computed for this generation.

        computed_by: the digest of a LoRA adapter (adapters.py).
        Returns whether it does: false when the slot has been handed out since, or is not trusted.
        """
        if slot not in self._watched or self._generations[slot] != generation or slot in self._distrusted:
            return False
        self._computed[slot] = computed_by
        return True

    def distrust(self, slots: Iterable[int]) -> None:
        """Never mark these slots again: what another connector gave up to read into them may still arrive."""
        self._distrusted.update(slots)

    def is_computed(self, slot: int, computed_by: bytes) -> bool:
        return self._computed.get(slot) == computed_by

    def is_published(self, slot: int) -> bool:
        return slot in self._published

    def publish(self, slot: int) -> int:
        """Return the generation to publish a computed slot with."""
        assert slot in self._computed, f"slot {slot} is published, and nothing proves its contents"
        self._published.add(slot)
        return self._generations[slot]

    def forget(self, slots: Iterable[int]) -> None:
        """Do the same as `forget_all` for some slots."""
        for slot in slots:
            self._computed.pop(slot, None)
            if slot in self._published:
                self._bump(slot)

    def forget_all(self) -> None:
        """Withdraw whatever is published, and unmark whatever is computed."""
        self._computed.clear()
        for slot in list(self._published):
            self._bump(slot)

    def send_all(self) -> None:
        """Send every generation with the next step: a rank may have missed some."""
        self._bumped = dict(enumerate(self._generations))

    def take_bumps(self) -> tuple[Slots, Generations]:
        """Return the slots reused since the last call with their new generations, shape (n,) each."""
        if not self._bumped:
            return NO_BUMPS
        bumped, self._bumped = self._bumped, {}
        slots = np.fromiter(bumped.keys(), dtype=np.int64, count=len(bumped))
        return slots, np.fromiter(bumped.values(), dtype=np.uint64, count=len(bumped))

    def _reused(self, block: KVCacheBlock) -> None:
        slot = block.block_id
        self._watched.discard(slot)
        self._computed.pop(slot, None)
        self._bump(slot)

    def _bump(self, slot: int) -> None:
        self._generations[slot] += 1
        self._bumped[slot] = self._generations[slot]
        if slot in self._published:
            self._published.remove(slot)
            self._on_withdraw(slot)
