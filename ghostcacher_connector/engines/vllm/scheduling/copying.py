"""Has the ranks copy to the host tier what vLLM's pool hands out next. Driven by the scheduler's thread alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ghostcacher_connector.engines.vllm.scheduling.eviction_window import EvictionWindow
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import NO_BUMPS, SlotWatch
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.object_orders import Fetched, ObjectOrders
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import SchedulerOutput

IDLE_STEP_BLOCKS = 1 << 20
"""An engine with nothing else to do looks at the whole window in one step."""

IDLE_STEPS_S = 5.0
"""How long an engine that has no request takes steps for the sake of copies. They take a fraction of a second."""


class CopyDown:
    """Chooses the blocks, and follows their copies."""

    def __init__(
        self,
        tier: HostTier,
        pool: BlockPool,
        *,
        threshold: float,
        block_tokens: int,
        objects: ObjectOrders | None = None,
        on_fetched: Callable[[Fetched], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """objects: told of the ranks' reports, if there is an object tier. on_fetched: told how each fetch went.

        threshold: share of the pool beyond which blocks are copied: the others are not handed out soon."""
        self.tier = tier
        self._window = EvictionWindow(pool, 1.0 - threshold)
        self._block_tokens = block_tokens
        self._clock = clock
        self.objects, self._on_fetched = objects, on_fetched
        self._idle_since: float | None = None
        self._ordered = False

    def arrived(self, tracked: Tracked) -> None:
        """Note a request that has just arrived."""
        self._window.arrived(-(-tracked.request.num_tokens // self._block_tokens))
        self._idle_since = None

    def pulled(self, tracked: Tracked, plan: PullPlan, count: int) -> None:
        """Note that the first `count` blocks of a plan have come."""
        if plan.sources[0].worker != self.tier.worker and not tracked.contended:
            came = range(plan.first_block, plan.first_block + count)
            self.tier.lent(tracked.blocks[index] for index in came if not tracked.needs(index))

    def orders(self, output: SchedulerOutput) -> list[CopyJob]:
        """Return what the ranks are to copy with a step that has just been scheduled."""
        if not self.tier.wanted:
            self._ordered = False
            return []
        tokens = output.total_num_scheduled_tokens
        step_blocks = -(-tokens // self._block_tokens) if tokens else IDLE_STEP_BLOCKS
        orders = self.tier.order(self._window.walk(self.tier.wanted, step_blocks))
        self._ordered = bool(orders)
        return orders

    def reported(self, results: list[CopyResult]) -> None:
        """Take note of how the ranks' shares of copies ended."""
        for result in results:
            self.tier.reported(result.copy_id, result.valid.tolist())
            if self.objects is not None and (fetched := self.objects.reported(result)) is not None:
                self._on_fetched(fetched)

    def unfinished(self) -> bool:
        """Say whether an engine without requests should take another step: copies have yet to be reported, or ordered.

        Bounded in time from the first such question after a request has arrived.
        """
        storing = self.objects is not None and self.objects.waiting
        if not (self.tier.busy or self._ordered or storing or not self._window.complete):
            return False
        now = self._clock()
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since < IDLE_STEPS_S


def take_bumps(watch: SlotWatch | None, copying: CopyDown | None) -> tuple[Slots, Generations]:
    """Return the slots of all tiers that were given away since the last step, with their new generations."""
    slots, generations = watch.take_bumps() if watch is not None else NO_BUMPS
    if copying is None or not copying.tier.ledger.bumps_waiting:
        return slots, generations
    of_tier = copying.tier.ledger.take_bumps()
    return np.concatenate((slots, of_tier[0])), np.concatenate((generations, of_tier[1]))
