"""What a matcher does alike for both engines: asks the index, gives up at the deadline, plans, and counts misses.

What this worker's own lower tiers hold is found without the index, and needs no answer of it: where they hold all that
the engine lacks, nobody is asked.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import OWN_INCARNATION, BlockHash, Location, MissReason
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService, take_answer
from ghostcacher_connector.pull.planner import Holding, PullPlan, PullPlanner
from ghostcacher_connector.pull.pull_spans import lookup_span
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.replicas import Replicas
from ghostcacher_connector.tiers.tool_changes import ToolChanges

logger = logging.getLogger(__name__)


class PrefixMatcher:
    """Decides, request by request, what to pull from whom. Driven by the scheduler's thread alone."""

    held_back = 0
    """How many blocks at the end of what is found are computed all the same."""

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
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for one engine's requests.

        block_bytes: bytes of one block on one rank; ranks pull side by side. tier: this worker's
        host tier, if there is one. tracer: of requests that belong to a trace; None: none is traced.
        """
        self._settings = settings
        self._lookups = lookups
        self._recorder = recorder
        self._planner = PullPlanner(settings, forecaster, block_tokens=block_tokens, block_bytes=block_bytes)
        self._block_tokens = block_tokens
        self._tier = tier
        self._tracer = tracer
        self._tool_changes = ToolChanges()
        self._replicas = Replicas(tier.worker, settings.replicas_min) if tier is not None else None
        self._clock = clock

    def close(self) -> None:
        """Send the last spans, if any are recorded, for a bounded time."""
        if self._tracer is not None:
            self._tracer.close()

    def forget(self, tracked: PullState) -> None:
        """Drop what is kept of a request that has ended."""
        self._lookups.forget(tracked.request_id)

    def _start_lookup(self, tracked: PullState, blocks: Sequence[BlockHash], holds: Callable[[int], bool]) -> None:
        """Ask the index for the pullable blocks of a request, unless there are none or all of them are here.

        holds: says whether this engine's own cache has the block of a number.
        """
        if not blocks or (self._settings.pull == "never" and self._tier is None):
            return
        if self._tier is not None:
            traits = [
                tracked.traits_of(index, self._block_tokens, self._tier.block_bytes) for index in range(len(blocks))
            ]
            self._tier.touch(blocks, traits)
            self._age_replaced_tools(tracked, self._tier)
            # As long as the index has not said otherwise.
            tracked.kept_from = self._replicas.kept_from(blocks[0], ()) if self._replicas is not None else None
        if self._settings.pull == "never" or self._is_here(blocks, holds):
            tracked.phase = Phase.HELD
            return
        self._ask_index(tracked, blocks, held=self._held(blocks, holds))

    def _held(self, blocks: Sequence[BlockHash], holds: Callable[[int], bool]) -> int:
        """Return how many leading blocks are here, about: the engine has those before the first one that it has not."""
        engine = bisect_left(range(len(blocks)), x=True, key=lambda index: not holds(index))
        return engine + (len(self._tier.ledger.prefix(blocks, engine)) if self._tier is not None else 0)

    def _age_replaced_tools(self, tracked: PullState, tier: HostTier) -> None:
        """Let what the tier has of prompts with a conversation's former tools go first."""
        session, tools = tracked.sections.session, tracked.tools
        if session is not None and tools is not None:
            replaced = self._tool_changes.replaced(session, tools)
            if replaced is not None:
                tier.age(replaced)

    def _note_holders(self, tracked: PullState) -> None:
        """Find out which of a prompt's blocks this worker is to keep, by who else has them as far as is known."""
        if self._tier is None or self._replicas is None:
            return
        tracked.kept_from = self._replicas.kept_from(tracked.blocks[0], tracked.hits)
        for index in range(min(tracked.pullable, tracked.sections.front)):
            self._tier.need(tracked.blocks[index], needed=tracked.needs(index))

    def _is_here(self, blocks: Sequence[BlockHash], holds: Callable[[int], bool]) -> bool:
        """Say whether the engine has the first of these blocks, and it or the tier the others, all to the end."""
        engine = len(blocks)
        if self._tier is not None:
            while engine and self._tier.ledger.holds(blocks[engine - 1]):
                engine -= 1
        return engine == 0 or holds(engine - 1)

    def _not_all_held(self, tracked: PullState, blocks: Sequence[BlockHash], first_block: int) -> None:
        """Decide what becomes of a request that is HELD and whose blocks from this one on the engine has not."""
        if self._settings.pull == "never" or first_block + len(self._own(tracked, first_block)) == tracked.pullable:
            self._decide(tracked, first_block)
        else:
            # It was all here when the request arrived, and some of it has been reused since.
            self._ask_index(tracked, blocks, held=first_block)

    def _ask_index(self, tracked: PullState, blocks: Sequence[BlockHash], *, held: int | None) -> None:
        tracked.phase = Phase.ASKED
        tracked.asked_at = self._clock()
        self._lookups.start(tracked.request_id, blocks, held=held)

    def _lookup_wait_s(self, token_count: int) -> float:  # noqa: ARG002 - an engine that waits without blocking uses it
        """Return how long to wait for the index before `token_count` tokens are computed without having asked it."""
        return self._settings.lookup_deadline_ms / 1e3

    def _answered(self, tracked: PullState, first_block: int, *, wait_s: float) -> int | None:
        """Decide once the index has answered; give the answer up at the deadline.

        first_block: the first one that this engine does not have. wait_s: how long the caller can wait here; never
        beyond the deadline.
        Returns how many blocks to pull, or None while the answer may still come in time.
        """
        lacking = max(0, tracked.pullable - first_block)
        if lacking and len(self._own(tracked, first_block)) == lacking:
            return self._decide(tracked, first_block)
        uncached = lacking * self._block_tokens
        left_s = tracked.asked_at + self._lookup_wait_s(uncached) - self._clock()
        answer = take_answer(self._lookups, self._recorder, tracked.request_id, left_s=left_s, wait_s=wait_s)
        if answer is None:
            return None
        if self._tracer is not None and (headers := tracked.trace_headers):
            found = answer if isinstance(answer, MissReason) else answer.hits
            lookup_span(self._tracer, headers, tracked.asked_at, self._clock(), asked=tracked.pullable, found=found)
        if isinstance(answer, MissReason):
            if answer is MissReason.NOT_INDEXED:
                self._note_held(tracked, 0)
                self._note_holders(tracked)
            return self._decide(tracked, first_block, otherwise=answer)
        tracked.hits, tracked.ahead = answer.hits, answer.ahead or tracked.ahead
        self._note_held(tracked, max((hit.length for hit in answer.hits), default=0))
        self._note_holders(tracked)
        return self._decide(tracked, first_block)

    def _note_held(self, tracked: PullState, count: int) -> None:
        """Have the tier know that peers hold a request's first `count` blocks, and no more."""
        if self._tier is not None:
            self._tier.still_lent(tracked.blocks[:count])
            self._tier.owned(tracked.blocks[count : tracked.pullable])

    def _decide(self, tracked: PullState, first_block: int, *, otherwise: MissReason | None = None) -> int | None:
        """Plan a pull by the index's answer and what is here; return how many blocks to pull.

        None: more is on its way here (`_fetches`).

        otherwise: why the index has no answer, which is why nothing is pulled where nothing is here.
        """
        end = self._end_of(tracked, first_block)
        own = self._own(tracked, first_block)[: end - first_block]
        holding = Holding(self._tier.worker, OWN_INCARNATION, own) if own and self._tier is not None else None
        plan = self._planner.plan(tracked.hits, first_block, end, holding)
        if self._fetches(tracked, first_block, plan, otherwise):
            return None
        if isinstance(plan, MissReason):
            return self._settle(tracked, first_block, plan if own or otherwise is None else otherwise)
        tracked.plan, tracked.phase = plan, Phase.PLANNED
        tracked.decided_at = self._tier_changes
        return plan.block_count

    def _planned(self, tracked: PullState, first_block: int) -> int | None:
        """Return what was decided for a request that is asked for again, for want of room; decide anew where that may
        have changed: the engine has more or less of it, or the tier holds other blocks."""
        plan = tracked.plan
        if plan is not None and plan.first_block == first_block and tracked.decided_at == self._tier_changes:
            return plan.block_count
        return self._decide(tracked, first_block)

    @property
    def _tier_changes(self) -> int:
        return self._tier.ledger.changes if self._tier is not None else 0

    def _fetches(
        self,
        tracked: PullState,  # noqa: ARG002 - for an adapter that fetches
        first_block: int,  # noqa: ARG002
        plan: PullPlan | MissReason,  # noqa: ARG002
        otherwise: MissReason | None,  # noqa: ARG002
    ) -> bool:
        """Say whether more than the plan brings is fetched to the host tier first."""
        return False

    def _own(self, tracked: PullState, first_block: int) -> Sequence[Location]:
        """Return where this worker's own tier has the request's pullable blocks, from this one on without a gap."""
        if self._tier is None:
            return ()
        return self._tier.ledger.prefix(self._looked_up(tracked), first_block)[: tracked.pullable - first_block]

    def _looked_up(self, tracked: PullState) -> Sequence[BlockHash]:
        """Return the blocks that the index is asked for: behind those that may be pulled come those held back."""
        return tracked.blocks[: tracked.pullable + self.held_back]

    def _end_of(self, tracked: PullState, first_block: int) -> int:
        """Return the block before which a pull ends: those held back come behind it, and were found, too."""
        if not self.held_back:
            return tracked.pullable
        found = max((hit.length for hit in tracked.hits), default=0)
        if self._tier is not None:
            found = max(found, first_block + len(self._tier.ledger.prefix(self._looked_up(tracked), first_block)))
        return max(first_block, min(tracked.pullable, found - self.held_back))

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
