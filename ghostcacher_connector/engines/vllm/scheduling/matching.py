"""Finds out what of a prompt is worth pulling: asks the index, weighs, and orders the pull.

The index is asked when the request arrives. vLLM asks us when it wants to schedule the request; until the answer is
there we say "ask again" (it does, a few milliseconds later), and after the deadline we go on without.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.common.prefix_matcher import PrefixMatcher
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.vllm.messages import PullOrder
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, pull_wanted, shareable
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.accounting import PullReport, record_outcome, record_transfer
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.pull.planner import PullPlan

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

GROUPS = [0]
"""The only KV cache group (support.py refuses others)."""

ALONE_WAIT_S = 0.005
"""How long an engine with nothing else to do waits for the index in one step. An empty step costs it milliseconds, and
an engine of several ranks spins meanwhile: on a machine with few cores that starved the very thread that asks."""


class Matcher(PrefixMatcher):
    """Decides, request by request, what to pull from whom."""

    def __init__(
        self,
        settings: Settings,
        lookups: LookupService,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        block_tokens: int,
        block_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """block_bytes: bytes of one block on one rank; ranks pull side by side."""
        super().__init__(
            settings, lookups, forecaster, recorder, block_tokens=block_tokens, block_bytes=block_bytes, clock=clock
        )
        self._forecaster = forecaster
        self._block_tokens = block_tokens
        self._orders: list[PullOrder] = []
        self._reports: dict[str, list[PullReport]] = {}

    def ask(self, tracked: Tracked, pool: BlockPool | None) -> None:
        """Start the lookup for a request that has just arrived, unless there is nothing to look up."""
        request = tracked.request
        tracked.pullable = min(len(request.block_hashes), max(0, request.num_tokens - 1) // self._block_tokens)
        if shareable(request) and pull_wanted(request):
            self._start_lookup(
                tracked,
                request.block_hashes[: tracked.pullable],
                lambda block: pool is not None and pool.get_cached_block(block, GROUPS) is not None,
            )

    def match(self, tracked: Tracked, local_tokens: int, *, alone: bool = False) -> int | None:
        """Return how many tokens beyond the local ones to pull, or None for "ask again".

        alone: the engine has no other request, so that nobody else waits when we do.
        """
        first_block = local_tokens // self._block_tokens
        count: int | None = 0
        if tracked.phase is Phase.ASKED:
            count = self._answered(tracked, first_block, wait_s=ALONE_WAIT_S if alone else 0.0)
        elif tracked.phase is Phase.PLANNED:
            # Asked again: there was no room. The local cache may hold more or less of the prompt by now.
            if tracked.plan is not None and tracked.plan.first_block == first_block:
                count = tracked.plan.block_count
            else:
                count = self._decide(tracked, first_block)
        return None if count is None else count * self._block_tokens

    def allocated(self, tracked: Tracked, slots: list[int], token_count: int) -> None:
        """Order the pull into the slots that vLLM gave. slots: of all the request's blocks, in order."""
        plan = tracked.plan
        assert tracked.phase is Phase.PLANNED
        assert plan is not None
        count = min(plan.block_count, token_count // self._block_tokens)
        local = np.asarray(slots[plan.first_block : plan.first_block + count], dtype=np.int64)
        order = PullOrder(tracked.request_id, local, plan.sources_of(count), self._settings.pull_timeout_s)
        self._orders.append(order)
        tracked.phase = Phase.LOADING
        self._count_misses(tracked, plan.first_block + count, MissReason.NOT_INDEXED)

    def take_orders(self) -> list[PullOrder]:
        orders, self._orders = self._orders, []
        return orders

    def reported(self, reports: list[PullReport]) -> None:
        """Take note of how the ranks' shares of pulls ended."""
        for report in reports:
            self._reports.setdefault(report.request_id, []).append(report)

    def received(self, request_id: str, tracked: Tracked | None) -> int:
        """Settle a request whose pull has ended on every rank, well or not; None when it was aborted meanwhile.

        Returns how many of the blocks asked for are there on every rank, before the first one that is not.
        """
        reports = self._reports.pop(request_id, [])
        if tracked is None:
            return 0
        tracked.phase = Phase.SETTLED
        if tracked.plan is not None and reports:
            self._account(tracked.plan, reports)
        return min((report.blocks_usable for report in reports), default=0)

    def _account(self, plan: PullPlan, reports: list[PullReport]) -> None:
        for report in reports:
            record_transfer(self._recorder, self._forecaster, report)
        record_outcome(
            self._recorder,
            self._forecaster,
            plan,
            block_tokens=self._block_tokens,
            usable=min(report.blocks_usable for report in reports),
            seconds=max(report.seconds for report in reports),
            reason=next((r.reason for r in reports if r.reason is not None), None),
        )
