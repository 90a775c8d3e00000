"""Whether one more pull leaves those that were pulled for the room that they need to run.

vLLM takes no slot back from a request whose pull is over and that does not run yet. So it begins a load only where
there is room for what all of them still need. But in a group with a window it takes the blocks that the window has left
for blocks that are held, and counts none of those that are needed next: two requests could hold all slots, and neither
of them ever run.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.pull.cache_groups import CacheGroups

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool


class LoadRoom:
    """The room of one engine with several KV cache groups."""

    def __init__(self, pool: BlockPool, groups: CacheGroups, *, block_tokens: int, step_tokens: int) -> None:
        """step_tokens: that one step computes at most."""
        self._pool, self._groups, self._block_tokens = pool, groups, block_tokens
        self._step_blocks = -(-step_tokens // block_tokens) + 1

    def suffices(
        self, tracked: Tracked, first_block: int, end_block: int, others: Iterable[tuple[Tracked, int]]
    ) -> bool:
        """Say whether there is room for a pull of blocks ``[first_block, end_block)``, and for what comes behind it.

        others: requests that are being pulled for, each with the block before which its pull ends.
        """
        spans = (group.span(first_block, end_block) for group in self._groups.others)
        loaded = end_block - first_block + sum(len(span) for span in spans)
        rest = self._rest(tracked, end_block) + sum(self._rest(other, end) for other, end in others)
        return loaded + rest <= int(self._pool.get_num_free_blocks())

    def _rest(self, tracked: Tracked, end_block: int) -> int:
        """Return how many slots a request needs at the same time behind so many blocks, beside those that it holds."""
        blocks: int = -(-tracked.request.num_tokens // self._block_tokens) - end_block
        windows = (group.window_blocks for group in self._groups.others)
        return blocks + sum(blocks if size is None else min(blocks, size + self._step_blocks) for size in windows)
