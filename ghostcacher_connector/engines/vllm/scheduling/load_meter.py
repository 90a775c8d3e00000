"""Measures what this engine has to do: how many requests, how many tokens, how full its cache is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.engines.common.work_meter import Occupancy, Progress, WorkMeter
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.load import held_prefix_length
from ghostcacher_connector.pull.cache_groups import ONE_GROUP, CacheGroups
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.tiers.host_tier import HostTier

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool


class LoadMeter(WorkMeter):
    """Measures one engine. Called on the scheduler's thread."""

    def __init__(
        self,
        pool: BlockPool,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        block_tokens: int,
        block_bytes: int,
        groups: CacheGroups = ONE_GROUP,
        tier: HostTier | None = None,
    ) -> None:
        """See `WorkMeter`. groups: each takes blocks of its own, so that the pool holds as many times fewer tokens."""
        super().__init__(forecaster, recorder, block_tokens=block_tokens, block_bytes=block_bytes, tier=tier)
        self._pool = pool
        self._groups = groups

    def measure(self, tracked: Collection[Tracked]) -> LoadReport:
        """Return the load of an engine with these requests."""
        total = self._pool.num_gpu_blocks - 1  # vLLM keeps one block for padding
        shares = len(self._groups.numbers)
        occupancy = Occupancy((total - self._pool.get_num_free_blocks()) // shares, total // shares)
        return self._report(tracked, _progress, self._cached_blocks, occupancy)

    def _cached_blocks(self, tracked: Tracked) -> int:
        """Search for the end of the prefix in this engine's cache. A gap makes it an upper bound."""
        request = tracked.request
        end = max(0, request.num_prompt_tokens - 1) // self._block_tokens
        return held_prefix_length(
            request.block_hashes,
            end,
            lambda block: self._pool.get_cached_block(block, [self._groups.first]) is not None,
        )


def _progress(tracked: Tracked) -> Progress:
    request = tracked.request
    running = request.status == RequestStatus.RUNNING
    computed = request.num_computed_tokens
    # vLLM gives blocks their hashes when it schedules them, before they are computed. So what looks cached of a prompt
    # whose first step begins now, is what that step is to compute.
    return Progress(running, request.num_prompt_tokens, computed if running or computed else None)
