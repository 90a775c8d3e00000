"""Measures what this engine has to do: how many requests, how many tokens, how full its cache is.

Called a few times a second, on the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.sglang.scheduling.requests import Phase, Tracked
from ghostcacher_connector.publish.load import Work, held_blocks, load_report
from ghostcacher_connector.pull.forecast import Forecaster

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

WAITING_LOOKED_UP_MAX = 64
"""Waiting requests whose local prefix is looked up; those behind count in full."""


class LoadMeter:
    """Measures one engine. page_bytes: of one page on one rank."""

    def __init__(
        self, forecaster: Forecaster, holds: Callable[[BlockHash], bool], *, page_tokens: int, page_bytes: int
    ) -> None:
        self._forecaster = forecaster
        self._holds = holds
        self._page_tokens = page_tokens
        self._page_bytes = page_bytes

    def measure(self, scheduler: Scheduler, tracked: Collection[Tracked]) -> LoadReport:
        """Return the load of an engine with these requests. No requests: no page is in use, or will be in a moment."""
        waiting = {req.rid for req in scheduler.waiting_queue}
        running = looked_up = waiting_tokens = 0
        for one in tracked:
            if one.req.rid not in waiting:
                running += 1
                waiting_tokens += max(0, len(one.req.origin_input_ids) - one.req.kv.kv_committed_len)
                continue
            looked_up += 1
            at_hand = self._at_hand(one) if looked_up <= WAITING_LOOKED_UP_MAX else 0
            waiting_tokens += max(0, len(one.req.origin_input_ids) - at_hand)
        pool = scheduler.token_to_kv_pool_allocator
        total = pool.size // self._page_tokens
        free = (pool.available_size() + scheduler.tree_cache.evictable_size()) // self._page_tokens
        work = Work(
            running=running,
            waiting=len(tracked) - running,
            waiting_tokens=waiting_tokens,
            kv_blocks_used=max(0, total - free) if tracked else 0,
            kv_blocks_total=total,
        )
        return load_report(work, self._forecaster, block_tokens=self._page_tokens, block_bytes=self._page_bytes)

    def _at_hand(self, tracked: Tracked) -> int:
        """Return how many prompt tokens of a waiting request need no computing, near enough."""
        if tracked.phase is Phase.PLANNED and tracked.plan is not None:
            return (tracked.plan.first_block + tracked.plan.block_count) * self._page_tokens
        return held_blocks(tracked.chain, tracked.pullable, self._holds) * self._page_tokens
