"""The way of a request to its pull, as far as it is the same for both engines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import BlockHash, Location, MissReason, PrefixHit, Tier
from ghostcacher_connector.engines.common.prefix_matcher import PrefixMatcher
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.metrics import Recorder, summary
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import PENDING, LookupAnswer
from tests.support.index_parts import FakeClock, chain

COUNT = 6
HIT = PrefixHit("peer", b"i" * 16, COUNT, tuple(Location(Tier.DEVICE, slot, 1) for slot in range(COUNT)))


class Lookups:
    """Notes what is asked, and answers what it is given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[BlockHash]]] = []
        self.forgotten: list[str] = []
        self.answer: Any = PENDING

    def start(self, request_id: str, blocks: list[BlockHash]) -> None:
        self.asked.append((request_id, blocks))

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


class Bench:
    """A matcher, with a lookup deadline of 50 ms."""

    def __init__(self, pull: str = "always") -> None:
        self.clock, self.lookups, self.recorder = FakeClock(), Lookups(), Recorder()
        found: Any = self.lookups
        self.matcher = PrefixMatcher(
            Settings(pull=pull),  # type: ignore[arg-type]
            found,
            Forecaster(1000.0),
            self.recorder,
            block_tokens=16,
            block_bytes=1024,
            clock=self.clock,
        )
        self.request = Asked(pullable=COUNT)

    def start(self, *, held: bool = False) -> None:
        self.matcher._start_lookup(self.request, chain(COUNT), lambda _: held)

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
    bench.matcher._ask_index(bench.request, chain(COUNT))
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
