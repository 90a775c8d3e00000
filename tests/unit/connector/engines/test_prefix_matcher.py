"""The way of a request to its pull, as far as it is the same for both engines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.sections import Hint, SectionEnd, block_sections
from ghostcacher_connector.core.types import BlockHash, Location, MissReason, PrefixHit, SectionType, Tier
from ghostcacher_connector.engines.common.prefix_matcher import PrefixMatcher
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.metrics import Recorder, summary
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import PENDING, LookupAnswer
from ghostcacher_connector.tiers.host_tier import LENT_S, HostTier
from ghostcacher_connector.tiers.replicas import Replicas
from tests.support.index_parts import FakeClock, chain
from tests.support.ordering_tier import copy, new_tier, publish_as

COUNT = 6
RETAINED = 2
"""Blocks that the request wants kept."""
HIT = PrefixHit("peer", b"i" * 16, COUNT, tuple(Location(Tier.DEVICE, slot, 1) for slot in range(COUNT)))


class Lookups:
    """Notes what is asked, and answers what it is given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[BlockHash]]] = []
        self.forgotten: list[str] = []
        self.answer: Any = PENDING
        self.held: int | None = None

    def start(self, request_id: str, blocks: list[BlockHash], *, held: int | None = None) -> None:
        self.asked.append((request_id, blocks))
        self.held = held

    def poll(self, *_: Any, **__: Any) -> Any:
        return self.answer

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


@dataclass(slots=True)
class Asked(PullState):
    """A request."""

    @property
    def request_id(self) -> str:
        return "r"

    @property
    def blocks(self) -> list[BlockHash]:
        return chain(COUNT)

    def traits_of(self, index: int, block_tokens: int, block_bytes: int) -> BlockTraits:
        return BlockTraits(
            SectionType.DOC, index, block_tokens, block_bytes, retain_s=60.0 if index < RETAINED else 0.0
        )


class Bench:
    """A matcher, with a lookup deadline of 50 ms."""

    def __init__(self, pull: str = "always", tier: HostTier | None = None) -> None:
        self.clock, self.lookups, self.recorder = FakeClock(), Lookups(), Recorder()
        found: Any = self.lookups
        self.matcher = PrefixMatcher(
            Settings(pull=pull),  # type: ignore[arg-type]
            found,
            Forecaster(1000.0),
            self.recorder,
            block_tokens=16,
            block_bytes=1024,
            tier=tier,
            clock=self.clock,
        )
        self.request = Asked(pullable=COUNT)

    def start(self, *, held: bool = False, engine: int = 0) -> None:
        """engine: how many leading blocks the engine has."""
        self.matcher._start_lookup(self.request, chain(COUNT), lambda index: held or index < engine)

    def not_all_held(self, first_block: int) -> None:
        self.matcher._not_all_held(self.request, chain(COUNT), first_block)

    @property
    def planned(self) -> list[tuple[str, Tier, int]]:
        """Whom the plan asks: name, tier, blocks."""
        plan = self.request.plan
        if plan is None:
            return []
        return [
            (source.worker, tier, len(source.remote_slots))
            for source, tier in zip(plan.sources, plan.tiers, strict=True)
        ]

    def answered(self, first_block: int = 0, wait_s: float = 0.0) -> int | None:
        return self.matcher._answered(self.request, first_block, wait_s=wait_s)

    def misses(self, reason: MissReason) -> float:
        return summary(self.recorder.drain()).get(f"gc_cache_misses_total{{reason={reason.value}}}", 0)


def test_answer_in_time_becomes_a_plan() -> None:
    """What this engine has already is left out of it."""
    bench = Bench()
    bench.start()
    assert bench.lookups.asked == [("r", chain(COUNT))]
    assert bench.answered() is None
    bench.lookups.answer = LookupAnswer([HIT], 0.001, None)
    assert bench.answered(first_block=2) == COUNT - 2
    assert bench.request.phase is Phase.PLANNED
    assert bench.request.plan is not None
    assert (bench.request.plan.first_block, bench.request.plan.block_count) == (2, COUNT - 2)


def test_answer_that_is_late_is_given_up() -> None:
    """Its blocks are misses, and the request is settled for good."""
    bench = Bench()
    bench.start()
    bench.clock.advance(0.049)
    assert bench.answered() is None
    bench.clock.advance(0.002)
    assert bench.answered(first_block=1) == 0
    assert bench.request.phase is Phase.SETTLED
    assert bench.misses(MissReason.LOOKUP_DEADLINE) == COUNT - 1


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (LookupAnswer([HIT._replace(length=2)], 0.001, None), 1),
        (LookupAnswer([], 0.001, MissReason.NOT_INDEXED), 0),
        (LookupAnswer([], 0.001, MissReason.INDEX_UNAVAILABLE), COUNT - 1),
        (LookupAnswer([HIT], 0.001, None), COUNT - 1),
    ],
)
def test_tier_learns_what_no_peer_holds_any_more(answer: LookupAnswer, kept: int) -> None:
    """What was lent makes room in a full tier as long as the index does not say that nobody else has it."""
    tier, _ = new_tier(slots=COUNT - 1)
    lent = dict(enumerate(chain(COUNT)[1:]))
    for slot, block in lent.items():
        publish_as(tier, slot, block)
    tier.lent(lent.values())
    copy(tier, *lent)
    for slot in lent:
        tier.engine_gives(slot)
    bench = Bench(tier=tier)
    bench.start()
    bench.lookups.answer = answer
    bench.answered()
    assert tier.ledger.spare == kept


def test_index_that_says_so_renews_the_belief_that_peers_hold_what_they_lent() -> None:
    clock = FakeClock()
    tier, _ = new_tier(slots=COUNT, clock=clock)
    publish_as(tier, 1, chain(COUNT)[1])
    publish_as(tier, 2, chain(COUNT)[2])
    tier.lent(chain(COUNT)[1:3])
    copy(tier, 1, 2)
    tier.engine_gives(1)
    tier.engine_gives(2)
    spare = tier.ledger.spare
    clock.advance(LENT_S - 1)
    bench = Bench(tier=tier)
    bench.start()
    bench.lookups.answer = LookupAnswer([HIT], 0.001, None)
    bench.answered()
    clock.advance(LENT_S - 1)
    tier.order([])
    assert tier.ledger.spare == spare
    clock.advance(1)
    tier.order([])
    assert tier.ledger.spare == spare - 2


def test_caller_that_waits_to_the_end_gets_a_decision() -> None:
    """SGLang cannot be asked to come again."""
    bench = Bench()
    bench.start()
    assert bench.answered(wait_s=math.inf) == 0


def test_miss_is_counted_by_its_reason() -> None:
    """Whether the index has nothing, or could not be asked."""
    bench = Bench()
    bench.start()
    bench.lookups.answer = LookupAnswer([], 0.001, MissReason.INDEX_UNAVAILABLE)
    assert bench.answered() == 0
    assert bench.misses(MissReason.INDEX_UNAVAILABLE) == COUNT


@pytest.mark.parametrize(("pull", "held", "phase"), [("never", False, Phase.SETTLED), ("always", True, Phase.HELD)])
def test_nothing_is_asked_when_nothing_can_be_pulled(pull: str, held: bool, phase: Phase) -> None:
    """Pulling is off, or this engine has all of it."""
    bench = Bench(pull)
    bench.start(held=held)
    assert bench.lookups.asked == []
    assert bench.request.phase is phase


def test_prompt_without_a_whole_block_is_not_asked_for() -> None:
    """There is no block to name."""
    bench = Bench()
    bench.matcher._start_lookup(bench.request, [], lambda _: False)
    assert bench.lookups.asked == []


def test_prompt_that_is_held_on_arrival_is_known_as_such() -> None:
    """Its blocks may be gone when it is its turn: an adapter then asks after all."""
    bench = Bench()
    bench.start(held=True)
    assert bench.request.phase is Phase.HELD
    bench.matcher._ask_index(bench.request, chain(COUNT), held=0)
    assert bench.lookups.asked == [("r", chain(COUNT))]
    assert bench.request.phase is Phase.ASKED


def test_miss_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    """At debug level, for each request."""
    bench = Bench()
    bench.start()
    bench.lookups.answer = LookupAnswer([], 0.001, MissReason.NOT_INDEXED)
    with caplog.at_level("DEBUG", logger="ghostcacher_connector"):
        assert bench.answered(first_block=1) == 0
    assert f"request r: {COUNT - 1} of {COUNT} blocks are not pulled: not_indexed" in caplog.text


def test_request_that_has_ended_is_forgotten() -> None:
    """Its answer would be kept for nobody."""
    bench = Bench()
    bench.matcher.forget(bench.request)
    assert bench.lookups.forgotten == ["r"]


def tier_with(*numbers: int) -> HostTier:
    """Return a tier that holds these blocks of the request."""
    tier, _ = new_tier(slots=COUNT)
    for number in numbers:
        publish_as(tier, number + 1, chain(COUNT)[number])
        copy(tier, number + 1)
    return tier


def test_prompt_that_engine_and_tier_have_together_is_not_looked_up() -> None:
    """It is loaded at once, whatever becomes of the index."""
    bench = Bench("auto", tier_with(2, 3, 4, 5))
    bench.start(engine=2)
    assert bench.request.phase is Phase.HELD
    bench.not_all_held(2)
    assert bench.lookups.asked == []
    assert bench.request.phase is Phase.PLANNED
    assert bench.planned == [("own", Tier.HOST, 4)]


def test_hit_has_the_tier_keep_what_the_request_wants_kept() -> None:
    """Also where the engine has all of it, and nothing is loaded."""
    tier = tier_with(0, 1, 2, 3, 4, 5)
    Bench("auto", tier).start(held=True)
    assert tier.ledger.retained_bytes == RETAINED * tier.block_bytes


def test_prompt_with_a_gap_between_engine_and_tier_is_looked_up() -> None:
    """What lies behind a block that neither has is of no use."""
    bench = Bench("auto", tier_with(3, 4, 5))
    bench.start(engine=2)
    assert bench.request.phase is Phase.ASKED


def test_tier_is_used_when_the_index_does_not_answer() -> None:
    """A part of the prompt is there, and nobody says who has more: after the deadline it is loaded."""
    bench = Bench("auto", tier_with(0, 1, 2))
    bench.start()
    assert bench.answered() is None
    bench.clock.advance(0.05)
    assert bench.answered() == 3
    assert bench.planned == [("own", Tier.HOST, 3)]


def test_index_that_is_away_leaves_what_is_here() -> None:
    bench = Bench("auto", tier_with(0, 1))
    bench.start()
    bench.lookups.answer = LookupAnswer([], 0.001, MissReason.INDEX_UNAVAILABLE)
    assert bench.answered() == 2
    assert bench.answered(first_block=2) == 0
    assert bench.misses(MissReason.INDEX_UNAVAILABLE) == COUNT - 2


def test_peer_that_holds_more_is_asked_first() -> None:
    """And this worker itself where the peer fails."""
    bench = Bench("auto", tier_with(0, 1))
    bench.start()
    bench.lookups.answer = LookupAnswer([HIT], 0.001, None)
    assert bench.answered() == COUNT
    assert bench.planned == [("peer", Tier.DEVICE, COUNT), ("own", Tier.HOST, 2)]


def test_own_tier_comes_before_a_peer_that_holds_the_same() -> None:
    """As long as the peer is not faster by more than noise."""
    bench = Bench("auto", tier_with(*range(COUNT - 1)))
    bench.start()
    bench.lookups.answer = LookupAnswer([HIT._replace(locations=HIT.locations[: COUNT - 1])], 0.001, None)
    assert bench.answered() == COUNT - 1
    assert bench.planned[0] == ("own", Tier.HOST, COUNT - 1)


def test_tier_that_comes_to_hold_the_rest_ends_the_wait_for_the_index() -> None:
    tier = tier_with(0, 1, 2, 3, 4)
    bench = Bench("auto", tier)
    bench.start()
    assert bench.answered() is None
    publish_as(tier, COUNT, chain(COUNT)[COUNT - 1])
    copy(tier, COUNT)
    assert bench.answered() == COUNT


def test_worker_that_pulls_from_nobody_loads_from_its_own_tier() -> None:
    """`pull` is about peers."""
    bench = Bench("never", tier_with(0, 1))
    bench.start()
    bench.not_all_held(0)
    assert bench.lookups.asked == []
    assert bench.planned == [("own", Tier.HOST, 2)]


@pytest.mark.parametrize(("engine", "tier", "held"), [(0, (), 0), (2, (), 2), (2, (2, 3), 4), (1, (2, 3), 1)])
def test_worker_lines_up_for_what_neither_engine_nor_tier_has(engine: int, tier: tuple[int, ...], held: int) -> None:
    """What they have together from the first block on, without a gap."""
    bench = Bench("auto", tier_with(*tier))
    bench.start(engine=engine)
    assert bench.lookups.held == held


@pytest.mark.parametrize("length", [0, 2, COUNT])
def test_answer_says_which_blocks_of_a_system_text_the_tier_is_to_keep(length: int) -> None:
    """Those that the peer has not, or all, as the order of their names wants it; none of the document behind it."""
    tier = tier_with(0, 1, 2, 3, 4, 5)
    bench = Bench("auto", tier)
    ends = (SectionEnd(SectionType.SYS, 4), SectionEnd(SectionType.DOC, COUNT))
    bench.request.sections = block_sections(Hint(ends), COUNT * 16, 16)
    bench.start()
    hits = [HIT._replace(length=length, locations=HIT.locations[:length])] if length else []
    bench.lookups.answer = LookupAnswer(hits, 0.001, None if hits else MissReason.NOT_INDEXED)
    tier.ledger.drop(lambda block: block == chain(COUNT)[COUNT - 1])
    bench.answered()
    kept_from = Replicas("own", 1).kept_from(chain(COUNT)[0], hits)
    assert kept_from is not None
    assert tier._retention.needed_blocks == 4 - min(4, kept_from)


def test_later_answer_keeps_who_was_ahead() -> None:
    """A request that looks again stands in its line already."""
    bench = Bench()
    bench.start()
    for ahead in (("first",), ()):
        bench.lookups.answer = LookupAnswer([HIT], 0.001, None, ahead=ahead)
        bench.answered()
        assert bench.request.ahead == ("first",)


def test_plan_that_waits_for_room_is_made_anew_only_when_something_has_changed() -> None:
    """An engine asks in each of its steps, and deciding takes a microsecond a block."""
    tier, _ = new_tier(slots=COUNT)
    bench = Bench(tier=tier)
    for number, block in enumerate(chain(COUNT)[:3]):
        publish_as(tier, number, block)
    copy(tier, 0)
    bench.start(engine=1)
    plans, plan = list[Any](), bench.matcher._planner.plan
    bench.matcher._planner.plan = lambda *asked: plans.append(plan(*asked)) or plans[-1]  # type: ignore[func-returns-value, method-assign]
    bench.lookups.answer = LookupAnswer([HIT], 0.001, None)
    assert bench.answered() == COUNT
    for _ in range(3):
        assert bench.matcher._planned(bench.request, 0) == COUNT
    assert len(plans) == 1
    assert bench.matcher._planned(bench.request, 1) == COUNT - 1
    assert len(plans) == 2
    copy(tier, 1)
    assert bench.matcher._planned(bench.request, 1) == COUNT - 1
    assert len(plans) == 3
    tier.ledger.drop(lambda _: True)
    assert bench.matcher._planned(bench.request, 1) == COUNT - 1
    assert len(plans) == 4
    tier.ledger.clear()
    assert bench.matcher._planned(bench.request, 1) == COUNT - 1
    assert len(plans) == 5
    assert bench.planned == [("peer", Tier.DEVICE, COUNT - 1)]
