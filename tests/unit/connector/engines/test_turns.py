"""Whose turn it is to pull a prefix that several want at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import PrefixHit
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.engines.vllm.scheduling.turns import LOOK_S_MAX, PULL_S_MIN, Turns
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from tests.support.index_parts import FakeClock

COUNT = 10
BLOCK_TOKENS = 16


class Bench:
    """A request that wants ten blocks, whose pull takes a second and their computation `compute_s`."""

    def __init__(self, *ahead: str, pull_s: float = 1.0, compute_s: float = 100.0, **settings: Any) -> None:
        self.clock, self.recorder = FakeClock(), Recorder()
        forecaster = Forecaster(COUNT * BLOCK_TOKENS / compute_s, self.clock)
        chosen = Settings(pull_timeout_s=60.0, **settings)
        self.turns = Turns(chosen, forecaster, self.recorder, block_tokens=BLOCK_TOKENS, clock=self.clock)
        request: Any = SimpleNamespace(request_id="r")
        self.tracked = Tracked(request, plan=PullPlan(0, COUNT, (), pull_s), ahead=ahead, asked_at=self.clock())
        self.hold("first")

    def hold(self, *workers: str, length: int = COUNT) -> None:
        self.tracked.hits = [PrefixHit(worker, b"i", length, ()) for worker in workers]

    def awaits(self) -> bool:
        return self.turns.awaits(self.tracked)

    def waits_s(self) -> float:
        """Return for how long it waits while nothing changes, in tenths of a second."""
        for tenths in range(1_000):
            if not self.awaits():
                return tenths / 10
            self.clock.advance(0.1)
        raise AssertionError("without end")


def test_pull_waits_while_more_are_ahead_than_hold_it() -> None:
    """Those that have become holders are ahead no longer, and give to others themselves."""
    bench = Bench("a", "b", "c")
    assert bench.awaits()
    bench.hold("first", "a")
    assert bench.awaits()
    bench.hold("first", "a", "b")
    assert not bench.awaits()
    assert bench.tracked.contended
    assert bench.recorder.drain()["gc_pull_turns_total"] == {"": 1.0}


def test_holder_of_less_is_no_holder() -> None:
    bench = Bench("a")
    bench.tracked.hits.append(PrefixHit("a", b"i", COUNT - 1, ()))
    assert bench.awaits()


@pytest.mark.parametrize("ahead", [(), ("first",)])
def test_pull_that_nobody_competes_for_does_not_wait(ahead: tuple[str, ...]) -> None:
    """Nor are its copies worth more than others'."""
    bench = Bench(*ahead)
    assert not bench.awaits()
    assert not bench.tracked.contended


@pytest.mark.parametrize(("pull_s", "contended"), [(14.9, False), (15.1, True)])
def test_pulls_that_take_much_of_the_holders_links_make_copies_worth_keeping(pull_s: float, contended: bool) -> None:
    """One after the other: nobody waits. Three holders have given it to three readers within a minute."""
    bench = Bench("a", "b", pull_s=pull_s)
    bench.hold("first", "a", "b")
    assert not bench.awaits()
    assert bench.tracked.contended is contended


def test_reader_that_is_the_only_one_makes_no_copy_worth_more() -> None:
    """However slow the link is."""
    bench = Bench(pull_s=60.0)
    assert not bench.awaits()
    assert not bench.tracked.contended


def test_short_pull_does_not_wait_though_its_copies_are_wanted() -> None:
    bench = Bench("a", "b", pull_s=PULL_S_MIN / 2)
    assert not bench.awaits()
    assert bench.tracked.contended
    assert bench.recorder.drain() == {}


@pytest.mark.parametrize(
    ("ahead", "compute_s", "pull", "waits_s"),
    [
        (3, 100.0, "auto", 3.0),
        (3, 2.5, "auto", 1.5),
        (3, 0.5, "auto", 0.0),
        (3, 0.5, "always", 3.0),
        (64, 1e6, "auto", 60),
    ],
)
def test_wait_is_bounded(ahead: int, compute_s: float, pull: str, waits_s: float) -> None:
    """By what those ahead take, by when computing would be faster, and by the bound of a pull."""
    bench = Bench(*[f"w{number}" for number in range(ahead)], compute_s=compute_s, pull=pull)
    assert bench.waits_s() == pytest.approx(waits_s, abs=0.11)
    assert not bench.awaits(), "once and for all"


def test_request_that_waits_looks_again_now_and_then() -> None:
    """Four times a second at least, and no more often than is of use."""
    bench = Bench("a", pull_s=1e3)
    assert not bench.turns.looks_again(bench.tracked)
    bench.clock.advance(LOOK_S_MAX)
    assert bench.turns.looks_again(bench.tracked)
