"""What a matcher does alike for both engines: asks the index, gives up at the deadline, plans, and counts misses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import BlockHash, MissReason
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService, take_answer
from ghostcacher_connector.pull.planner import PullPlanner

logger = logging.getLogger(__name__)


class PrefixMatcher:
    """Decides, request by request, what to pull from whom. Driven by the scheduler's thread alone."""

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
        self._settings = settings
        self._lookups = lookups
        self._recorder = recorder
        self._planner = PullPlanner(settings, forecaster, block_tokens=block_tokens, block_bytes=block_bytes)
        self._block_tokens = block_tokens
        self._clock = clock

    def forget(self, tracked: PullState) -> None:
        """Drop what is kept of a request that has ended."""
        self._lookups.forget(tracked.request_id)

    def _start_lookup(
        self, tracked: PullState, blocks: Sequence[BlockHash], holds: Callable[[BlockHash], bool]
    ) -> None:
        """Ask the index for the pullable blocks of a request, unless there are none or all of them are here.

        holds: says whether this engine's own cache has a block.
        """
        if self._settings.pull == "never" or not blocks:
            return
        if holds(blocks[-1]):
            tracked.phase = Phase.HELD
            return
        self._ask_index(tracked, blocks)

    def _ask_index(self, tracked: PullState, blocks: Sequence[BlockHash]) -> None:
        tracked.phase = Phase.ASKED
        tracked.asked_at = self._clock()
        self._lookups.start(tracked.request_id, blocks)

    def _lookup_wait_s(self, token_count: int) -> float:  # noqa: ARG002 - an engine that waits without blocking uses it
        """Return how long to wait for the index before `token_count` tokens are computed without having asked it."""
        return self._settings.lookup_deadline_ms / 1e3

    def _answered(self, tracked: PullState, first_block: int, *, wait_s: float) -> int | None:
        """Decide once the index has answered; give the answer up at the deadline.

        first_block: the first one that this engine does not have. wait_s: how long the caller can wait here; never
        beyond the deadline.
        Returns how many blocks to pull, or None while the answer may still come in time.
        """
        uncached = max(0, tracked.pullable - first_block) * self._block_tokens
        left_s = tracked.asked_at + self._lookup_wait_s(uncached) - self._clock()
        answer = take_answer(self._lookups, self._recorder, tracked.request_id, left_s=left_s, wait_s=wait_s)
        if answer is None:
            return None
        if isinstance(answer, MissReason):
            return self._settle(tracked, first_block, answer)
        tracked.hits = answer
        return self._decide(tracked, first_block)

    def _decide(self, tracked: PullState, first_block: int) -> int:
        """Plan a pull by the index's answer; return how many blocks to pull."""
        plan = self._planner.plan(tracked.hits, first_block, tracked.pullable)
        if isinstance(plan, MissReason):
            return self._settle(tracked, first_block, plan)
        tracked.plan, tracked.phase = plan, Phase.PLANNED
        return plan.block_count

    def _settle(self, tracked: PullState, first_block: int, reason: MissReason) -> int:
        tracked.phase = Phase.SETTLED
        self._count_misses(tracked, first_block, reason)
        return 0

    def _count_misses(self, tracked: PullState, first_block: int, reason: MissReason) -> None:
        """Count the pullable blocks from this one on as misses."""
        missed = tracked.pullable - first_block
        if missed > 0:
            logger.debug(
                "request %s: %d of %d blocks are not pulled: %s (%d holders in the index)",
                tracked.request_id,
                missed,
                tracked.pullable,
                reason.value,
                len(tracked.hits),
            )
            self._recorder.inc("gc_cache_misses_total", missed, reason=reason.value)
