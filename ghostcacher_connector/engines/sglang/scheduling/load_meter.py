"""Measures what this engine has to do: how many requests, how many tokens, how full its cache is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.work_meter import Occupancy, Progress, WorkMeter
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.load import held_prefix_length
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.tiers.host_tier import HostTier

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler


class LoadMeter(WorkMeter):
    """Measures one engine. Called on the scheduler's thread."""

    def __init__(
        self,
        forecaster: Forecaster,
        recorder: Recorder,
        holds: Callable[[BlockHash], bool],
        *,
        page_tokens: int,
        page_bytes: int,
        tier: HostTier | None = None,
    ) -> None:
        """holds: says whether this engine has a block. page_bytes: bytes of one page on one rank. See `WorkMeter`."""
        super().__init__(forecaster, recorder, block_tokens=page_tokens, block_bytes=page_bytes, tier=tier)
        self._holds = holds

    def measure(self, scheduler: Scheduler, tracked: Collection[Tracked]) -> LoadReport:
        """Return the load of an engine with these requests."""
        waiting = {req.rid for req in scheduler.waiting_queue}

        def progress_of(one: Tracked) -> Progress:
            prompt_tokens = len(one.req.origin_input_ids)
            if one.req.rid in waiting:
                return Progress(False, prompt_tokens, None)
            return Progress(True, prompt_tokens, one.req.kv.kv_committed_len)

        pool = scheduler.token_to_kv_pool_allocator
        total = pool.size // self._block_tokens
        free = (pool.available_size() + scheduler.tree_cache.evictable_size()) // self._block_tokens
        return self._report(tracked, progress_of, self._cached_pages, Occupancy(max(0, total - free), total))

    def _cached_pages(self, tracked: Tracked) -> int:
        return held_prefix_length(tracked.chain, tracked.pullable, self._holds)
