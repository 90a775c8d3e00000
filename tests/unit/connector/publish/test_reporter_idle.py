"""What the reporter does while its engine is idle: it rests, and is back at once."""

from __future__ import annotations

import pytest

from ghostcacher_connector.publish.reporter import IDLE_INTERVAL_S
from tests.support.coordination_parts import make_load
from tests.unit.connector.publish.test_reporter import INTERVAL_S, Bench


@pytest.fixture
def bench() -> Bench:
    """A reporter to which a router listens, with an idle engine whose load is published."""
    bench = Bench()
    bench.listen()
    bench.reporter.submit_load(make_load(0))
    bench.run(2 * INTERVAL_S)
    assert bench.published() == 0
    return bench


def test_idle_engine_is_reported_less_often(bench: Bench) -> None:
    """Nothing changes while it is idle; the load must only not grow stale for routers, which it does in 2 s."""
    seconds = 30.0
    assert bench.run(seconds) <= seconds / IDLE_INTERVAL_S + 1
    assert IDLE_INTERVAL_S < 2.0


def test_engine_that_begins_is_asked_and_reported_within_the_interval(bench: Bench) -> None:
    """However long it was idle: its first step finds the wish, and the report does not wait for the rest's end."""
    for idle_s in (0.01, 0.33, 4.9):
        bench.run(INTERVAL_S)
        bench.clock.advance(idle_s)
        bench.reporter.step()
        bench.clock.advance(INTERVAL_S)
        assert bench.reporter.load_wanted
        bench.reporter.submit_load(make_load(3))
        bench.reporter.step()
        assert bench.published() == 3
        bench.reporter.submit_load(make_load(0))
        bench.run(2 * INTERVAL_S)
        assert bench.published() == 0


def test_load_wakes_a_reporter_that_rests_and_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its thread sleeps until the report is due, and the engine's thread has no part in that."""
    woken: list[int] = []
    monkeypatch.setattr(bench.reporter._thread, "wake", lambda: woken.append(1))
    bench.reporter.submit_load(make_load(3))
    assert len(woken) == 1
    bench.run(2 * INTERVAL_S)
    bench.reporter.submit_load(make_load(2))
    assert len(woken) == 1


def test_busy_engine_costs_one_step_a_report(bench: Bench) -> None:
    """The thread wakes to publish, and not to ask: every wake-up of it takes the interpreter from the engine."""
    seconds, asked = 10.0, 0
    until, steps = bench.clock.now + seconds, 0
    bench.reporter.submit_load(make_load(1))
    while bench.clock.now < until:
        wake_at = bench.clock.now + max(0.001, bench.reporter.step())
        steps += 1
        while bench.clock.now < wake_at:
            bench.clock.advance(0.005)
            if bench.reporter.load_wanted:
                bench.reporter.submit_load(make_load(1))
                asked += 1
    reports = seconds / INTERVAL_S
    assert steps == pytest.approx(reports, abs=2)
    assert asked == pytest.approx(reports, abs=2)
