"""Finds out what of a prompt is worth pulling: asks the index, weighs, and orders the pull.

The index is asked when the request arrives. vLLM asks us when it wants to schedule the request; until the answer is
there we say "ask again" (it does, a few milliseconds later), and after the deadline we go on without.

Requests that need the same blocks share one pull: a request whose blocks another one is loading waits for that one, and
then finds them in vLLM's own cache (`_Flight`). vLLM enters what was pulled there when it takes the loader out of
WAITING_FOR_REMOTE_KVS, which it does before it looks at requests that wait. If the pull fails, or its request is
aborted, whoever is asked first pulls, and the others wait for that one.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from vllm.v1.request import RequestStatus

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.common.prefix_matcher import PrefixMatcher
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.engines.vllm.kv_groups import NULL_BLOCK
from ghostcacher_connector.engines.vllm.messages import PullOrder
from ghostcacher_connector.engines.vllm.scheduling.fetching import ObjectFetcher
from ghostcacher_connector.engines.vllm.scheduling.load_room import LoadRoom
from ghostcacher_connector.engines.vllm.scheduling.loaded_first import LoadedFirst
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, pull_wanted, shareable
from ghostcacher_connector.engines.vllm.scheduling.turns import Turns
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.accounting import PullReport, record_outcome, record_transfer
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import PENDING, LookupService
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.pull.pull_spans import pull_span
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.tiers.host_tier import HostTier

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

logger = logging.getLogger(__name__)

JOIN_SHARE = 0.5
"""A request joins another one's pull when they have at least so much of the larger of both in common: else it would
wait for bytes that it does not need, or save few."""

LOOKUP_SHARE = 0.1
"""A lookup may take this share of what computing the tokens in question is forecast to take, however short the deadline
of the settings: a tenth of the time that a hit would save."""

LOOKUP_WAIT_MAX_S = 2.0
"""But never longer than this, unless the settings say so."""

ALONE_WAIT_S = 0.005
"""How long an engine with nothing else to do waits for the index in one step. An empty step costs it milliseconds, and
an engine of several ranks spins meanwhile: on a machine with few cores that starved the very thread that asks."""


class _Flight(NamedTuple):
    """Blocks ``[first_block, end_block)`` of a request, which are being pulled."""

    tracked: Tracked
    first_block: int
    end_block: int
    joinable_until: float
    """By then the pull should be over; nobody waits for it any longer."""

    @property
    def under_way(self) -> bool:
        """Whether vLLM has not taken note of the pull's end yet."""
        return bool(self.tracked.request.status == RequestStatus.WAITING_FOR_REMOTE_KVS)


class Matcher(PrefixMatcher):
    """Decides, request by request, what to pull from whom."""

    room: LoadRoom | None = None
    """Of an engine with several KV cache groups: says whether a pull has to wait for others."""

    def __init__(
        self,
        settings: Settings,
        lookups: LookupService,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        block_tokens: int,
        block_bytes: int,
        tier: HostTier | None = None,
        fetcher: ObjectFetcher | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `PrefixMatcher`. fetcher: of this worker's object tier, if there is one."""
        super().__init__(
            settings,
            lookups,
            forecaster,
            recorder,
            block_tokens=block_tokens,
            block_bytes=block_bytes,
            tier=tier,
            tracer=tracer,
            clock=clock,
        )
        self._forecaster = forecaster
        self._groups = lookups.groups
        self._turns = Turns(settings, forecaster, recorder, block_tokens=block_tokens, clock=clock)
        self._fetcher = fetcher
        self._block_bytes = block_bytes
        self._orders: list[PullOrder] = []
        self._flights: dict[str, _Flight] = {}
        self._loaded_first = LoadedFirst()
        self._reports: dict[str, list[PullReport]] = {}

    def ask(self, tracked: Tracked, pool: BlockPool | None) -> None:
        """Start the lookup for a request that has just arrived, unless there is nothing to look up."""
        request, blocks = tracked.request, tracked.blocks
        found = min(len(blocks), max(0, request.num_tokens - 1) // self._block_tokens)
        tracked.pullable = max(0, found - self.held_back)
        # What a client wants told of each token of its prompt, vLLM computes for each of them.
        if shareable(tracked) and pull_wanted(request) and not request.skip_reading_prefix_cache:
            self._start_lookup(
                tracked,
                blocks[:found] if tracked.pullable else (),
                lambda index: (
                    pool is not None
                    and pool.get_cached_block(request.block_hashes[index], [self._groups.first]) is not None
                ),
            )

    def forget(self, tracked: PullState) -> None:
        super().forget(tracked)
        if self._fetcher is not None:
            assert isinstance(tracked, Tracked)
            self._fetcher.end(tracked)
        self._flights.pop(tracked.request_id, None)
        self._loaded_first.forget(tracked.request_id)

    def match(self, tracked: Tracked, local_tokens: int, *, alone: bool = False) -> int | None:
        """Return how many tokens beyond the local ones to pull, or None for "ask again".

        alone: the engine has no other request, so that nobody else waits when we do.
        """
        if self._loaded_first.passes(tracked.request_id):
            return None
        if not shareable(tracked) and tracked.phase is not Phase.SETTLED:
            self.forget(tracked)  # its adapter is no longer known by one content
            tracked.phase = Phase.SETTLED
        first_block = local_tokens // self._block_tokens
        count: int | None = 0
        self._note_preemption(tracked, first_block)
        if self._fetcher is not None:
            if self._fetcher.waits(tracked):
                return None
            waited, otherwise = self._fetcher.end(tracked)
            if waited:
                self._decide(tracked, first_block, otherwise=otherwise)
        if tracked.phase is Phase.HELD and first_block < tracked.pullable:
            self._not_all_held(tracked, self._looked_up(tracked), first_block)
            if tracked.phase is Phase.HELD:
                return None  # it waits for a fetch
        if tracked.phase is Phase.ASKED:
            count = self._answered(tracked, first_block, wait_s=ALONE_WAIT_S if alone else 0.0)
        elif tracked.phase is Phase.PLANNED:
            count = self._planned(tracked, first_block)
        if count is None or (count and (self._joins(tracked) or self._awaits_turn(tracked))):
            return None
        if count and (count := self._if_room(tracked, first_block, count)) is None:
            return None
        if self._groups.others:
            self._keep_window(tracked, first_block, first_block + count)
        return count * self._block_tokens

    def _keep_window(self, tracked: Tracked, first_block: int, end_block: int) -> None:
        """Have vLLM keep a request's window where others will want it, as if the fleet's cache was its own.

        By default vLLM keeps the windows at the ends of prompts, and where it finds a prompt to part from what it has
        (`shared_prefix_boundary`). Here it parts from what anybody has; and the end of what is pulled is no end of a
        prompt. first_block, end_block: what is pulled.
        """
        answer = self._lookups.poll(tracked.request_id)
        longest = min(tracked.pullable, answer.longest) if answer is not PENDING else 0
        if (end := max(end_block, longest)) > first_block:
            request = tracked.request
            request.shared_prefix_boundary = max(request.shared_prefix_boundary, end * self._block_tokens)

    def allocated(self, tracked: Tracked, tables: Sequence[Sequence[int]], token_count: int) -> None:
        """Order the pull into the slots that vLLM gave. tables: all slots of the request, of each KV cache group."""
        plan = tracked.plan
        assert tracked.phase is Phase.PLANNED
        assert plan is not None
        count = min(plan.block_count, token_count // self._block_tokens)
        local = self._local_slots(tables, plan.first_block, plan.first_block + count)
        sources = plan.sources_of(count)
        if local is None or (plan.window_blocks is not None and count != plan.block_count):
            logger.error("request %s: vLLM waits for other blocks than are pulled: it is computed", tracked.request_id)
            local, sources = np.zeros(1, dtype=np.int64), plan.sources_of(0)
        timeout_s, adapter = self._settings.pull_timeout_s, tracked.adapter_order
        order = PullOrder(tracked.request_id, local, sources, timeout_s, adapter)
        self._orders.append(order)
        first = order.sources[0]
        tier = plan.tier_of(first.worker)
        self._forecaster.ordered(tracked.request_id, first.worker, count * self._block_bytes, tier)
        self._pin(tracked, plan, order)
        self._flights[tracked.request_id] = _Flight(
            tracked, plan.first_block, plan.first_block + count, self._clock() + self._settings.pull_timeout_s
        )
        tracked.phase, tracked.ordered_at = Phase.LOADING, self._clock()
        self._count_misses(tracked, plan.first_block + count, MissReason.NOT_INDEXED)

    def _local_slots(self, tables: Sequence[Sequence[int]], first_block: int, end_block: int) -> Slots | None:
        """Return the slots of blocks ``[first_block, end_block)``, group by group, as a plan has them.

        None where vLLM waits for more or fewer blocks of a group than a plan brings.
        """
        slots = list(tables[self._groups.first][first_block:end_block])
        for group in self._groups.others:
            table, span = tables[group.number], group.span(first_block, end_block)
            if [index for index in range(first_block, end_block) if table[index] != NULL_BLOCK] != list(span):
                return None
            slots += table[span.start : span.stop]
        return np.asarray(slots, dtype=np.int64)

    def _pin(self, tracked: Tracked, plan: PullPlan, order: PullOrder) -> None:
        """Keep in the tier what a pull reads there."""
        if self._tier is None:
            return
        own = next((source for source in order.sources if source.worker == self._tier.worker), None)
        if own is not None:
            blocks = tracked.blocks[plan.first_block : plan.first_block + len(own.remote_slots)]
            self._tier.ledger.pin(tracked.request_id, blocks, order.timeout_s)

    def take_orders(self) -> list[PullOrder]:
        """Return the pulls of the step that ends here."""
        self._loaded_first.next_step()
        orders, self._orders = self._orders, []
        return orders

    def reported(self, reports: list[PullReport]) -> None:
        """Take note of how the ranks' shares of pulls ended."""
        for report in reports:
            self._reports.setdefault(report.request_id, []).append(report)

    def has_reports(self, request_id: str) -> bool:
        """Say whether ranks have reported a pull of ours for a request, be that still there or not."""
        return request_id in self._reports

    def received(self, request_id: str, tracked: Tracked | None) -> int:
        """Settle a request whose pull has ended on every rank, well or not; None when it was aborted meanwhile.

        Returns how many of the blocks asked for are there on every rank, before the first one that is not.
        """
        reports = self._reports.pop(request_id, [])
        self._forecaster.ended(request_id)
        if self._tier is not None:
            self._tier.ledger.unpin(request_id)
        if tracked is None:
            for report in reports:
                record_transfer(self._recorder, self._forecaster, report, cancelled=True)
            return 0
        tracked.phase = Phase.SETTLED
        self._loaded_first.add(tracked)
        if self._tracer is not None and reports and (headers := tracked.trace_headers):
            pull_span(self._tracer, headers, tracked.ordered_at, self._clock(), reports)
        usable = min((report.blocks_usable for report in reports), default=0)
        if tracked.plan is not None and reports:
            usable = tracked.plan.usable(usable)
            self._account(tracked.plan, reports)
            if self._tier is not None and all(report.worker == self._tier.worker for report in reports):
                self._tier.loaded(usable)
        return usable

    def _fetches(
        self, tracked: PullState, first_block: int, plan: PullPlan | MissReason, otherwise: MissReason | None
    ) -> bool:
        if self._fetcher is None:
            return False
        assert isinstance(tracked, Tracked)
        covered = first_block + (0 if isinstance(plan, MissReason) else plan.block_count + self.held_back)
        return self._fetcher.begin(tracked, first_block, covered, otherwise)

    def _lookup_wait_s(self, token_count: int) -> float:
        """A long prompt is not computed because Redis took a moment longer: others are scheduled meanwhile."""
        least_s = super()._lookup_wait_s(token_count)
        return max(least_s, min(LOOKUP_WAIT_MAX_S, LOOKUP_SHARE * self._forecaster.compute_s(token_count)))

    def _note_preemption(self, tracked: Tracked, first_block: int) -> None:
        """Count what a preempted request computes again: it is pulled for once only."""
        if tracked.request.num_preemptions > tracked.preemptions:
            tracked.preemptions = tracked.request.num_preemptions
            if tracked.phase is Phase.SETTLED and tracked.plan is not None:
                self._count_misses(tracked, first_block, MissReason.PREEMPTED)

    def _joins(self, tracked: Tracked) -> bool:
        """Say whether a request is to wait for the pull of another one, instead of what it has planned."""
        plan, now = tracked.plan, self._clock()
        assert plan is not None
        self._flights = {name: flight for name, flight in self._flights.items() if flight.under_way}
        if now >= tracked.joins_until:
            return False
        for flight in self._flights.values():
            if now < flight.joinable_until and _alike(flight, tracked, plan):
                if tracked.joins_until == math.inf:
                    # Whichever pulls it waits for, one after the other: no longer than one may take.
                    tracked.joins_until = flight.joinable_until
                    self._recorder.inc("gc_joined_pulls_total", 1)
                return True
        return False

    def _awaits_turn(self, tracked: Tracked) -> bool:
        """Say whether a request is to wait until more workers have what it has planned to pull."""
        plan = tracked.plan
        assert plan is not None
        own = self._tier is not None and plan.sources[0].worker == self._tier.worker
        if own or not self._turns.awaits(tracked):
            return False
        if self._turns.looks_again(tracked):
            self._lookups.forget(tracked.request_id)
            self._ask_index(tracked, self._looked_up(tracked), held=None)
        return True

    def _if_room(self, tracked: Tracked, first_block: int, count: int) -> int | None:
        """Return how many blocks to pull beside what is being pulled: as planned, none, or None for "ask again"."""
        others = [(flight.tracked, flight.end_block) for flight in self._flights.values() if flight.under_way]
        if self.room is None or not others or self.room.suffices(tracked, first_block, first_block + count, others):
            return count
        if tracked.room_by is None:
            tracked.room_by = self._clock() + self._settings.pull_timeout_s
        if self._clock() < tracked.room_by:
            return None
        return self._settle(tracked, first_block, MissReason.TIMEOUT)

    def _account(self, plan: PullPlan, reports: list[PullReport]) -> None:
        for report in reports:
            tier = plan.tier_of(report.worker)
            record_transfer(self._recorder, self._forecaster, report, tier=tier)
        record_outcome(
            self._recorder,
            self._forecaster,
            plan,
            block_tokens=self._block_tokens,
            usable=plan.usable(min(report.blocks_usable for report in reports)),
            seconds=max(report.seconds for report in reports),
            reason=next((r.reason for r in reports if r.reason is not None), None),
        )


def _alike(flight: _Flight, tracked: Tracked, plan: PullPlan) -> bool:
    """Say whether a pull brings enough of what a plan wants, and not much more.

    A chain hash covers all before it, so blocks that two prompts share have the same numbers in both.
    """
    hashes, others = tracked.blocks, flight.tracked.blocks
    first, end = plan.first_block, min(plan.first_block + plan.block_count, flight.end_block)
    if not flight.first_block <= first < end or hashes[first] != others[first]:
        return False
    common = next((number for number in range(first, end) if hashes[number] != others[number]), end) - first
    if plan.window_blocks is not None and first + common != flight.end_block:
        return False  # its windows are those of its own end
    return common >= JOIN_SHARE * max(plan.block_count, flight.end_block - flight.first_block)
