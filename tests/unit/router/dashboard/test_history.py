"""How the router fared, interval by interval."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_router.admin.dashboard.history import POINTS_MAX, HistoryKeeper
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import FIRST_TOKENS_MAX, RouterMetrics
from ghostcacher_router.types import Endpoint, WorkerState
from tests.support.coordination_parts import make_load
from tests.support.index_parts import FakeClock, make_record


class Subject:
    """A keeper, and what it watches."""

    def __init__(self) -> None:
        self.metrics, self.clock, self.wall = RouterMetrics(), FakeClock(), FakeClock()
        self.workers: dict[str, Worker] = {}
        self.keeper = HistoryKeeper(
            "r", self.metrics, self.workers, lambda _: 2, clock=self.clock, wall_clock=self.wall
        )

    def pass_time(self, seconds: float = 5.0) -> Any:
        """Let time pass; return the new point."""
        self.clock.advance(seconds)
        self.wall.advance(seconds)
        self.keeper.sample()
        return self.keeper.since(None).points[-1]

    def report(self, name: str, hits: int, misses: tuple[int, ...], *, incarnation: bytes = b"i" * 16) -> None:
        record = make_record(name, incarnation=incarnation)
        worker = Worker(name, Endpoint("h", 1, False, ""), record, 0.0)
        worker.load = StampedLoad(0.0, replace(make_load(), hit_blocks=hits, missed_blocks=misses))
        self.workers[name] = worker


def test_point_is_what_came_in_the_interval_alone() -> None:
    """Counters are differences; percentiles are of the interval's own answers; our own paths do not count."""
    subject = Subject()
    subject.metrics.answered("/v1/completions", 200)
    subject.metrics.first_token(10.0, 10.0)
    subject.pass_time()
    for status in (200, 200, 503, 404):
        subject.metrics.answered("/v1/chat/completions", status)
    subject.metrics.answered("/gc/stats", 200)
    subject.metrics.observed(100, 60, 12.0)
    for _ in range(10):
        subject.metrics.first_token(4000.0, 2000.0)
    point = subject.pass_time(6.0)
    assert (point.at, point.seconds) == (1011.0, 6.0)
    assert (point.requests, point.failed) == (4.0, 1.0)
    assert (point.prompt_tokens, point.hit_tokens, point.saved_ttft_ms) == (100.0, 60.0, 12.0)
    assert point.ttft_ms.count == 10
    assert 3000.0 <= point.ttft_ms.p50 <= point.ttft_ms.p99 <= 4000.0
    assert point.forecast_ratio.p50 == pytest.approx(2.0, abs=0.5)
    quiet = subject.pass_time()
    assert (quiet.requests, quiet.ttft_ms.count, quiet.ttft_ms.p50) == (0.0, 0, None)


def test_misses_are_differences_by_worker_and_incarnation() -> None:
    """What a worker had counted before it was known is not new; after its restart it counts from zero."""
    subject = Subject()
    subject.report("a", 100, (50, 0, 7))
    point = subject.pass_time()
    assert (point.hit_blocks, point.missed_blocks) == (0, {})
    subject.report("a", 110, (50, 0, 9))
    subject.report("b", 5, (1,))
    point = subject.pass_time()
    assert (point.hit_blocks, point.missed_blocks) == (10, {"lookup_deadline": 2})
    subject.report("a", 3, (4,), incarnation=b"n" * 16)
    subject.report("b", 5, (1,) + (0,) * 20 + (6,))
    point = subject.pass_time()
    assert (point.hit_blocks, point.missed_blocks) == (3, {"not_indexed": 4, "unknown": 6})
    del subject.workers["a"]
    assert subject.pass_time().missed_blocks == {}


def test_workers_that_are_ready_and_requests_at_them() -> None:
    subject = Subject()
    subject.report("a", 0, ())
    subject.report("b", 0, ())
    subject.workers["a"].state = WorkerState.READY
    point = subject.pass_time()
    assert (point.ready, point.in_flight) == (1, 4)


def test_history_is_bounded_and_asked_from_a_time_on() -> None:
    """An hour of points, a few hundred answers; who has seen a point does not get it again."""
    subject = Subject()
    for number in range(POINTS_MAX + 3):
        subject.metrics.first_token(float(number), 5.0)
        subject.pass_time()
    history = subject.keeper.since(None)
    assert (len(history.points), history.router, history.now) == (POINTS_MAX, "r", subject.wall.now)
    assert history.points[0].at == 1000.0 + 4 * 5.0
    assert len(history.first_tokens.forecast_ms) == len(history.first_tokens.observed_ms) == FIRST_TOKENS_MAX
    assert history.first_tokens.observed_ms[-1] == POINTS_MAX + 2
    last = history.points[-1].at
    assert [point.at for point in subject.keeper.since(last - 5.0).points] == [last]
    assert subject.keeper.since(last).points == ()
