"""Measures what this engine has to do: how many requests, how many tokens, how full its cache is.

Some microseconds and a fraction of one for each request; called a few times a second, on the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.engines.vllm.scheduling.matching import GROUPS
from ghostcacher_connector.engines.vllm.scheduling.requests import Phase, Tracked
from ghostcacher_connector.publish.load import Work, held_blocks, load_report
from ghostcacher_connector.pull.forecast import Forecaster

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.request import Request

WAITING_LOOKED_UP_MAX = 64
"""Waiting requests whose local prefix is looked up, some ten microseconds each; those behind count in full."""


class LoadMeter:
    """Measures one engine. block_bytes: of one block on one rank."""

    def __init__(self, pool: BlockPool, forecaster: Forecaster, *, block_tokens: int, block_bytes: int) -> None:
        self._pool = pool
        self._forecaster = forecaster
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes

    def measure(self, tracked: Collection[Tracked]) -> LoadReport:
        """Return the load of an engine with these requests. No requests: no block is in use, or will be in a moment."""
        running = waiting_tokens = looked_up = 0
        for one in tracked:
            request = one.request
            running += request.status == RequestStatus.RUNNING
            done = request.num_computed_tokens
            if done == 0 and looked_up < WAITING_LOOKED_UP_MAX:
                looked_up += 1
                done = self._at_hand(one)
            waiting_tokens += max(0, request.num_prompt_tokens - done)
        total = self._pool.num_gpu_blocks - 1  # vLLM keeps one block for padding
        work = Work(
            running=running,
            waiting=len(tracked) - running,
            waiting_tokens=waiting_tokens,
            kv_blocks_used=total - self._pool.get_num_free_blocks() if tracked else 0,
            kv_blocks_total=total,
        )
        return load_report(work, self._forecaster, block_tokens=self._block_tokens, block_bytes=self._block_bytes)

    def _at_hand(self, tracked: Tracked) -> int:
        """Return how many prompt tokens of a waiting request need no computing, near enough."""
        if tracked.phase is Phase.PLANNED and tracked.plan is not None:
            return (tracked.plan.first_block + tracked.plan.block_count) * self._block_tokens
        return self._cached_blocks(tracked.request) * self._block_tokens

    def _cached_blocks(self, request: Request) -> int:
        """Search for the end of the prefix in this engine's cache. A gap makes it an upper bound."""
        end = max(0, request.num_prompt_tokens - 1) // self._block_tokens
        return held_blocks(
            request.block_hashes, end, lambda block: self._pool.get_cached_block(block, GROUPS) is not None
        )
