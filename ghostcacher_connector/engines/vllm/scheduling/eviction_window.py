"""The blocks that vLLM's pool hands out next: what is worth a copy in a lower tier before it is gone.

vLLM keeps free blocks in a list, those that it will hand out first at its head; of one request's blocks the last ones
come first. The window is a length of that list from its head: a share of the pool, and at least what the largest of the
recent prompts needs, since a prompt whose blocks are pulled takes all of them at once.

The list changes all the time, and may be long. So each step walks on from where the last one stopped, over a bounded
number of blocks, and begins again at the head when it has reached the window's end, or when the block at which it
stopped is no longer free. New blocks come into the window at its end, so little is missed meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

PROMPTS = 64
"""Recent prompts of which the largest one counts."""

VISITS = 64
"""Blocks that a step looks at, beside twice as many as it may hand out: some 5 us."""


class EvictionWindow:
    """See the module's docstring."""

    def __init__(self, pool: BlockPool, share: float) -> None:
        """share: of the pool's blocks, in the window at least."""
        self._queue = pool.free_block_queue
        self._least = math.ceil(share * pool.num_gpu_blocks)
        self._prompts: deque[int] = deque(maxlen=PROMPTS)
        self._cursor: KVCacheBlock | None = None
        self._at = 0
        self.length = self._least

    def __repr__(self) -> str:
        return f"EvictionWindow(length={self.length}, at={self._at})"

    @property
    def complete(self) -> bool:
        """Whether the last walk has reached the window's end."""
        return self._cursor is None

    def arrived(self, block_count: int) -> None:
        """Note the size of a prompt."""
        self._prompts.append(block_count)
        self.length = max(self._least, *self._prompts)

    def walk(self, wanted: Collection[int], step_blocks: int) -> list[int]:
        """Return the ids of those wanted blocks that this walk meets, in the order in which vLLM hands them out.

        step_blocks: how many blocks a step like the present one fills.
        """
        node = self._cursor
        if node is None or node.ref_cnt or node.next_free_block is None:
            node, self._at = self._queue.fake_free_list_head, 0
        self._cursor = None
        met: list[int] = []
        for _ in range(min(VISITS + 2 * step_blocks, self.length - self._at)):
            node = node.next_free_block
            if node is None or node.next_free_block is None:  # the list's end
                return met
            if node.block_id in wanted:
                met.append(node.block_id)
            self._at += 1
        if self._at < self.length:
            self._cursor = node
        return met
