"""The arithmetic of an engine's queue, as routers are told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.engines.common.work_meter import WAITING_LOOKED_UP_MAX, Occupancy, Progress, WorkMeter
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.tiers.host_tier import HostTier
from tests.support.ordering_tier import copy, new_tier, publish

BLOCK = 16
PROMPT = 100


@dataclass(slots=True)
class Asked(PullState):
    """A request of an engine that knows everything about it. cached: blocks in the engine's own cache."""

    running: bool = False
    computed: int | None = None
    cached: int = 0

    @property
    def request_id(self) -> str:
        return "r"

    @property
    def blocks(self) -> list[BlockHash]:
        return []

    def traits_of(self, index: int, block_tokens: int, block_bytes: int) -> BlockTraits:
        return BlockTraits(SectionType.DOC, index, block_tokens, block_bytes)


class Meter(WorkMeter):
    """Measures an engine whose pool has 50 blocks, 20 of them in use."""

    def __init__(self, tier: HostTier | None = None) -> None:
        super().__init__(Forecaster(1000.0), Recorder(), block_tokens=BLOCK, block_bytes=1024, tier=tier)
        self.lookups = 0

    def measure(self, *requests: Asked) -> LoadReport:
        def cached(request: Asked) -> int:
            self.lookups += 1
            return request.cached

        def progress(request: Asked) -> Progress:
            return Progress(request.running, PROMPT, request.computed)

        return self._report(requests, progress, cached, Occupancy(20, 50))


def plan(first_block: int, block_count: int) -> PullPlan:
    return PullPlan(first_block, block_count, (), 0.1)


@pytest.mark.parametrize(
    ("state", "waiting_tokens"),
    [
        ({}, PROMPT),
        ({"cached": 2}, PROMPT - 2 * BLOCK),
        ({"phase": Phase.PLANNED, "plan": plan(2, 3), "cached": 1}, PROMPT - 5 * BLOCK),
        ({"phase": Phase.SETTLED, "plan": plan(2, 3), "cached": 1}, PROMPT - BLOCK),
        ({"running": True, "computed": 40}, PROMPT - 40),
        ({"running": True, "computed": PROMPT + 5}, 0),
        ({"computed": 40, "cached": 6}, PROMPT - 40),
    ],
)
def test_tokens_to_compute_leave_out_what_is_at_hand(state: dict[str, Any], waiting_tokens: int) -> None:
    """What is computed, cached here, or about to be pulled; a request that decodes has nothing left."""
    report = Meter().measure(Asked(**state))
    assert report.waiting_tokens == waiting_tokens
    assert (report.running, report.waiting) == ((1, 0) if state.get("running") else (0, 1))


def test_requests_far_behind_count_in_full() -> None:
    """Looking up each of a thousand would cost the scheduler's thread milliseconds."""
    meter = Meter()
    report = meter.measure(*(Asked(cached=1) for _ in range(WAITING_LOOKED_UP_MAX + 3)))
    assert meter.lookups == WAITING_LOOKED_UP_MAX
    assert report.waiting_tokens == (WAITING_LOOKED_UP_MAX + 3) * PROMPT - WAITING_LOOKED_UP_MAX * BLOCK


def test_engine_without_requests_uses_no_block() -> None:
    """What its pool still counts as used is given back in a moment."""
    assert (Meter().measure().kv_blocks_used, Meter().measure().kv_blocks_total) == (0, 50)
    assert Meter().measure(Asked()).kv_blocks_used == 20


def test_load_tells_what_the_tier_holds() -> None:
    """On both engines; one without a tier has none to tell of."""
    tier, _ = new_tier()
    publish(tier, 1)
    copy(tier, 1)
    assert Meter(tier).measure().tiers == (tier.load(),)
    assert tier.load().blocks == 1
    assert Meter().measure().tiers == ()
