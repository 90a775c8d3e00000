"""Pulls pages into the pool while SGLang waits, and says the same on every rank.

SGLang's `load` must say at once whether the pages will hold what they should: a load that fails later fails its
request. So the pull is carried out inside the call, on the puller's threads, and waited for. `pull=auto` waits no
longer than computing the same tokens would have taken. All loads of one pass of the scheduler together never wait for
longer than `pull_timeout_s`, since nobody gets a token meanwhile; while READs that hang hold every thread, none waits.

Life of a load: SGLang allocates pages -> every rank pulls its share -> the ranks agree (`Verdict`) -> True: the pages
are the request's prefix; False: SGLang frees them and computes. A pull that was not over at its deadline may still
write to its pages: every rank then *holds* the pages of this load (page_guard.py) until no READ of any rank can land.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.matching import common_pages
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.accounting import record_outcome, record_transfer, report_of
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.pull.pull_spans import pull_span
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.base import PullOutcome
from ghostcacher_connector.transfer.jobs import JobResult, PullJob, PullSource, unread_result
from ghostcacher_connector.transfer.puller import Puller

logger = logging.getLogger(__name__)

WAIT_MIN_S = 0.05
"""A pull may take this long however fast computing is forecast to be: forecasts of milliseconds are guesses."""


class Verdict(IntEnum):
    """How a load ended on a rank. The ranks agree on the least."""

    IN_FLIGHT = 0
    """Given up, and still able to write to its pages."""
    FAILED = 1
    LANDED = 2
    """Every page holds its block."""


class Loader:
    """Carries out SGLang's loads on one rank."""

    def __init__(
        self,
        puller: Puller,
        guard: PageGuard,
        ranks: RankGroup,
        settings: Settings,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        page_tokens: int,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for one rank's loads. tracer: of requests that belong to a trace; None: none is traced."""
        self._tracer = tracer
        self._puller = puller
        self._guard = guard
        self._ranks = ranks
        self._settings = settings
        self._forecaster = forecaster
        self._recorder = recorder
        self._page_tokens = page_tokens
        self._clock = clock
        self._number = 0
        self._holding = False
        self._submitted: dict[str, tuple[PullSource, ...]] = {}
        self._waited_s = 0.0

    def __repr__(self) -> str:
        return f"Loader({self._number} loads, {len(self._submitted)} not over)"

    def load(
        self, tracked: Tracked | None, keys: Sequence[str], token_indexes: torch.Tensor, events: Sequence[Any]
    ) -> bool:
        """Fill pages of the pool; return whether all of them hold their blocks, the same on every rank.

        keys: the hash of each page. token_indexes: places of all tokens of the pages in the pool. events: over when
        nothing else writes to the pages any more.
        """
        self._number += 1
        pages = (token_indexes[:: self._page_tokens].cpu() // self._page_tokens).numpy().astype(np.int64, copy=False)
        job_id = f"load-{self._number}"
        plan, result, own = None, None, Verdict.FAILED
        began = self._clock()
        try:
            plan = self._plan(tracked, keys)
            if plan is not None:
                result = self._pull(job_id, plan, pages, events)
                own = self._verdict(result)
        except Exception:
            # The other ranks wait for this one's word.
            logger.exception("unexpected error in a pull")
            own = Verdict.IN_FLIGHT if job_id in self._submitted else Verdict.FAILED
        seconds = self._clock() - began
        self._waited_s += seconds
        verdict = self._ranks.least(own)
        if verdict == Verdict.IN_FLIGHT:
            logger.warning("a pull of %d pages was given up; they are held until its READ is over", len(pages))
            self._guard.hold(pages)
            self._holding = True
        if tracked is not None:
            tracked.phase = Phase.SETTLED
        if plan is not None:
            self._account(job_id, plan, result, seconds, landed=verdict == Verdict.LANDED)
            if tracked is not None:
                self._trace(tracked, job_id, plan, result, began, landed=verdict == Verdict.LANDED)
            self._count_misses(tracked, plan.first_block + plan.block_count, MissReason.NOT_INDEXED)
        elif tracked is not None and tracked.plan is not None:
            logger.debug("request %s: its plan is of other pages by now, computing it", tracked.request_id)
            self._count_misses(tracked, tracked.plan.first_block, MissReason.CANCELLED)
        return verdict == Verdict.LANDED

    def begin_pass(self) -> None:
        """A pass of the scheduler begins: its loads may wait anew. To be called by every rank."""
        self._waited_s = 0.0
        self.settle()

    def settle(self) -> None:
        """Give held pages back once no rank's READ can land in them. To be called in every pass, by every rank."""
        if not self._holding:
            return
        self._take("", wait_s=0.0)
        if self._ranks.least(0 if self._submitted else 1):
            self._guard.let_go()
            self._holding = False

    def _plan(self, tracked: Tracked | None, keys: Sequence[str]) -> PullPlan | None:
        """Return the plan, cut to what SGLang made room for; None when it is of other pages by now."""
        plan = tracked.plan if tracked is not None else None
        count = len(keys)
        if tracked is None or plan is None or count > plan.block_count:
            return None
        if common_pages(tracked, plan.first_block, keys) < count:
            return None
        return replace(plan, block_count=count, sources=plan.sources_of(count))

    def _pull(self, job_id: str, plan: PullPlan, pages: Slots, events: Sequence[Any]) -> JobResult | None:
        """Pull, and wait until it is over or the deadline has passed (None)."""
        self._take("", wait_s=0.0)
        wait_budget_s = self._wait_budget_s(plan)
        job = PullJob(job_id, pages, plan.sources, self._clock() + wait_budget_s)
        busy = len(self._submitted) - self._puller.quarantined_count
        if wait_budget_s <= 0 or busy >= self._settings.pull_threads:
            return unread_result(job, PullOutcome.FAILED, MissReason.TIMEOUT)
        for event in events:
            event.synchronize()
        deadline = job.deadline
        self._submitted[job_id] = plan.sources
        self._puller.submit(job)
        while True:
            left_s = deadline - self._clock()
            if (result := self._take(job_id, wait_s=max(0.0, left_s))) is not None:
                return result
            # At the deadline, one that no thread has taken yet ends here and now; one that runs goes on without us.
            if left_s <= 0 and not self._puller.cancel(job_id):
                return None

    def _take(self, job_id: str, *, wait_s: float) -> JobResult | None:
        """Take the results of jobs that have ended, late ones included; return this job's if it is among them."""
        found: JobResult | None = None
        for result in self._puller.poll(wait_s=wait_s):
            sources = self._submitted.pop(result.job_id)
            if result.job_id == job_id:
                found = result
            else:
                self._note_late(result, sources)
        return found

    def _note_late(self, result: JobResult, sources: tuple[PullSource, ...]) -> None:
        try:
            record_transfer(self._recorder, self._forecaster, report_of(result.job_id, sources, result))
        except Exception:
            logger.exception("a pull could not be recorded")

    def _wait_budget_s(self, plan: PullPlan) -> float:
        """Return how long the scheduler may wait for this pull; 0 or less when the pass has waited enough."""
        left_s = self._settings.pull_timeout_s - self._waited_s
        if self._settings.pull == "always":
            return left_s
        compute_s = self._forecaster.compute_s(plan.block_count * self._page_tokens)
        return min(left_s, max(WAIT_MIN_S, compute_s))

    def _verdict(self, result: JobResult | None) -> Verdict:
        if result is None:
            return Verdict.IN_FLIGHT
        return Verdict.LANDED if bool(result.valid.all()) else Verdict.FAILED

    def _count_misses(self, tracked: Tracked | None, first_block: int, reason: MissReason) -> None:
        """Count the pullable blocks from this one on as misses, once for all ranks."""
        missed = tracked.pullable - first_block if tracked is not None and self._ranks.rank == 0 else 0
        if missed > 0:
            self._recorder.inc("gc_cache_misses_total", missed, reason=reason.value)

    def _account(self, job_id: str, plan: PullPlan, result: JobResult | None, seconds: float, *, landed: bool) -> None:
        """Record a pull: each rank its own share, once it is over, rank 0 what the request got of it. Never raises."""
        try:
            self._record(job_id, plan, result, seconds, landed=landed)
        except Exception:
            logger.exception("a pull could not be recorded")

    def _trace(
        self, tracked: Tracked, job_id: str, plan: PullPlan, result: JobResult | None, began_at: float, *, landed: bool
    ) -> None:
        """Record the span of a pull: this rank's share, and whether all of them were there. Never raises."""
        if self._tracer is None:
            return
        try:
            if not (headers := tracked.trace_headers):
                return
            if result is None:
                slots = np.arange(plan.block_count, dtype=np.int64)
                job = PullJob(job_id, slots, plan.sources, began_at)
                result = unread_result(job, PullOutcome.FAILED, MissReason.TIMEOUT)
            report = report_of(job_id, plan.sources, result)
            if not landed and report.outcome is PullOutcome.DONE:  # another rank has not got its share
                report = replace(report, outcome=PullOutcome.FAILED, blocks_usable=0)
            pull_span(self._tracer, headers, began_at, self._clock(), [report])
        except Exception:
            logger.exception("the span of a pull could not be recorded")

    def _record(self, job_id: str, plan: PullPlan, result: JobResult | None, seconds: float, *, landed: bool) -> None:
        reason: MissReason | None = MissReason.TIMEOUT
        if result is not None:
            report = report_of(job_id, plan.sources, result)
            record_transfer(self._recorder, self._forecaster, report, tier=plan.tier_of(report.worker))
            reason, seconds = report.reason, report.seconds
        if self._ranks.rank == 0:
            record_outcome(
                self._recorder,
                self._forecaster,
                plan,
                block_tokens=self._page_tokens,
                usable=plan.block_count if landed else 0,
                seconds=seconds,
                reason=reason,
            )
