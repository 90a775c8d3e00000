"""Records what became of loads: metrics, the forecaster's measures, spans. An error here never ends a load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.accounting import record_outcome, record_transfer, report_of
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.pull.pull_spans import pull_span
from ghostcacher_connector.transfer.base import PullOutcome
from ghostcacher_connector.transfer.jobs import JobResult, PullJob, PullSource, unread_result

logger = logging.getLogger(__name__)


class LoadRecords:
    """One rank's: each records its own share of a pull, rank 0 what the request got of it."""

    def __init__(
        self,
        ranks: RankGroup,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        page_tokens: int,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """tracer: of requests that belong to a trace; None: none is traced."""
        self._ranks = ranks
        self._forecaster = forecaster
        self._recorder = recorder
        self._page_tokens = page_tokens
        self._tracer = tracer
        self._clock = clock

    def refused(self, tracked: Tracked, plan: PullPlan | None) -> None:
        """A request is computed without a pull.

        plan: what would have been pulled; None: the request's plan is of other pages by now.
        """
        first = tracked.plan.first_block if tracked.plan is not None else tracked.pullable
        logger.debug("request %s: nothing is pulled, computing it", tracked.request_id)
        self._count_misses(tracked, first, MissReason.CANCELLED if plan is None else MissReason.TIMEOUT)

    def late(self, result: JobResult, sources: tuple[PullSource, ...]) -> None:
        """A pull that nobody waits for any more has ended."""
        try:
            record_transfer(self._recorder, self._forecaster, report_of(result.job_id, sources, result))
        except Exception:
            logger.exception("a pull could not be recorded")

    def ended(
        self,
        tracked: Tracked,
        job_id: str,
        plan: PullPlan,
        result: JobResult | None,
        began: float,
        *,
        usable: int,
        wanted: bool = True,
    ) -> None:
        """Nobody waits for a load any more.

        result: of this rank's pull; None while it is not over. usable: pages that the request got. wanted: whether it
        would have used them.
        """
        try:
            ended = self._clock()
            self._record(job_id, plan, result, ended - began, usable=usable, wanted=wanted)
            self._trace(tracked, job_id, plan, result, began, ended, usable=usable)
            self._count_misses(tracked, plan.first_block + plan.block_count, MissReason.NOT_INDEXED)
        except Exception:
            logger.exception("a pull could not be recorded")

    def _record(
        self, job_id: str, plan: PullPlan, result: JobResult | None, seconds: float, *, usable: int, wanted: bool
    ) -> None:
        reason: MissReason | None = MissReason.TIMEOUT if wanted else MissReason.CANCELLED
        if result is not None:
            report = report_of(job_id, plan.sources, result)
            record_transfer(self._recorder, self._forecaster, report, tier=plan.tier_of(report.worker))
            seconds = report.seconds
            # Where this rank has all of it, another lacks some, or SGLang has lost what comes before it.
            reason = report.reason or MissReason.CANCELLED
        if self._ranks.rank == 0:
            record_outcome(
                self._recorder,
                self._forecaster,
                plan,
                block_tokens=self._page_tokens,
                usable=usable,
                seconds=seconds,
                reason=reason,
            )

    def _trace(
        self,
        tracked: Tracked,
        job_id: str,
        plan: PullPlan,
        result: JobResult | None,
        began: float,
        ended: float,
        *,
        usable: int,
    ) -> None:
        """Record the span of a pull: this rank's share, and what all of them have."""
        if self._tracer is None or not (headers := tracked.trace_headers):
            return
        if result is None:
            slots = np.arange(plan.block_count, dtype=np.int64)
            job = PullJob(job_id, slots, plan.sources, began)
            result = unread_result(job, PullOutcome.FAILED, MissReason.TIMEOUT)
        report = report_of(job_id, plan.sources, result)
        if usable < plan.block_count and report.outcome is PullOutcome.DONE:  # another rank has not got its share
            report = replace(report, outcome=PullOutcome.FAILED, blocks_usable=usable)
        pull_span(self._tracer, headers, began, ended, [report])

    def _count_misses(self, tracked: Tracked, first_block: int, reason: MissReason) -> None:
        """Count the pullable blocks from this one on as misses, once for all ranks."""
        missed = tracked.pullable - first_block if self._ranks.rank == 0 else 0
        if missed > 0:
            self._recorder.inc("gc_cache_misses_total", missed, reason=reason.value)
