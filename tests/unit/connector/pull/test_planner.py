"""Which holder a prompt is pulled from: the best one, and of equals the one that this reader asks first."""

from __future__ import annotations

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import Location, MissReason, PrefixHit, Tier
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan, PullPlanner

BLOCK_TOKENS, BLOCK_BYTES = 16, 1 << 20
RATE = 4e9


def hit(worker: str, blocks: int = 100) -> PrefixHit:
    return PrefixHit(worker, worker.encode() * 16, blocks, [Location(Tier.DEVICE, slot, 1) for slot in range(blocks)])


def sources(*hits: PrefixHit, rates: dict[str, float] | None = None, ordered: str | None = None) -> list[str]:
    """Return whom a planner would ask, the best one first.

    rates: measured of each holder, in bytes/s. ordered: a holder from which something is being pulled.
    """
    forecaster = Forecaster(1000.0, pull_threads=2)
    for worker, rate in (rates or {}).items():
        for _ in range(60):
            forecaster.observe_pull(worker, 1 << 30, (1 << 30) / rate)
    if ordered is not None:
        forecaster.ordered("pull", ordered, 1 << 30)
    planner = PullPlanner(Settings(), forecaster, block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES)
    plan = planner.plan(hits, 0, 100)
    assert isinstance(plan, PullPlan)
    return [source.worker for source in plan.sources]


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("faster", [1.0, 1.05])
def test_of_equal_holders_the_first_one_asked_is_read(order: str, faster: float) -> None:
    """Whose rate came out a little higher does not get all readers."""
    assert sources(*map(hit, order), rates={"a": RATE, "b": RATE * faster}) == list(order)


def test_holder_that_is_better_beyond_noise_is_read() -> None:
    """By its rate, by what it holds, and by what is being pulled from the other one."""
    assert sources(hit("a"), hit("b"), rates={"a": RATE, "b": 2 * RATE}) == ["b", "a"]
    assert sources(hit("a", 90), hit("b"), rates={"a": RATE, "b": RATE}) == ["b", "a"]
    assert sources(hit("a"), hit("b"), rates={"a": RATE, "b": RATE}, ordered="a") == ["b", "a"]


def in_host(found: PrefixHit, first: int = 0) -> PrefixHit:
    """Return a hit whose blocks lie in host slots from one of them on."""
    locations = [
        location._replace(tier=Tier.HOST) if number >= first else location
        for number, location in enumerate(found.locations)
    ]
    return found._replace(locations=locations)


def test_holders_are_weighed_by_the_tier_in_which_they_hold_the_blocks() -> None:
    """A peer's host memory has a rate of its own."""
    assert sources(in_host(hit("a")), hit("b"), rates={"a": 8 * RATE, "b": RATE}) == ["b", "a"]
    forecaster = Forecaster(1000.0)
    for _ in range(60):
        forecaster.observe_pull("a", 1 << 30, (1 << 30) / (8 * RATE), Tier.HOST)
    planner = PullPlanner(Settings(), forecaster, block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES)
    plan = planner.plan([hit("b"), in_host(hit("a"))], 0, 100)
    assert isinstance(plan, PullPlan)
    assert [source.worker for source in plan.sources] == ["a", "b"]
    assert plan.tiers == (Tier.HOST, Tier.DEVICE)
    assert (plan.tier_of("a"), plan.tier_of("b")) == (Tier.HOST, Tier.DEVICE)


def test_prefix_that_lies_in_two_tiers_is_pulled_as_one() -> None:
    """Its rate is that of the tier with most of it."""
    planner = PullPlanner(Settings(), Forecaster(1000.0), block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES)
    plan = planner.plan([in_host(hit("a"), first=40)], 10, 100)
    assert isinstance(plan, PullPlan)
    assert plan.sources[0].remote_slots.tolist() == list(range(10, 100))
    assert plan.tiers == (Tier.HOST,)


def test_blocks_in_a_tier_without_slots_end_what_can_be_pulled() -> None:
    """Whatever stands in the index: there is nothing to READ."""
    found = hit("a")
    locations = [at._replace(tier=Tier.OBJECT) if number >= 40 else at for number, at in enumerate(found.locations)]
    planner = PullPlanner(Settings(pull="always"), Forecaster(1000.0), block_tokens=BLOCK_TOKENS, block_bytes=1)
    plan = planner.plan([found._replace(locations=locations)], 0, 100)
    assert isinstance(plan, PullPlan)
    assert plan.block_count == 40
    assert planner.plan([found._replace(locations=locations[40:])], 0, 60) is MissReason.NOT_INDEXED
