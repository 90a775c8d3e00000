"""When an order to flush is carried out, and on which thread; driven step by step over a store in memory."""

from __future__ import annotations

import logging
import threading

import pytest

from ghostcacher_connector.core.coordination.flushes import (
    ERROR_CHARS_MAX,
    ORDER_BYTES,
    FlushOrder,
    FlushReport,
    TierDropped,
)
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.types import Tier
from ghostcacher_connector.publish.flush_desk import BACKOFF_MAX_S, BUSY_S, IDLE_S, POLL_S, Engine, FlushDesk
from tests.support.index_parts import FakeClock, wait_until

REPORT = FlushReport((TierDropped(Tier.DEVICE, 1, 10),))


def order(number: int) -> FlushOrder:
    return FlushOrder(number.to_bytes(ORDER_BYTES, "little"), "all", (), b"", "router-1")


class Bench:
    """A desk whose thread the test is, and an engine that notes what it drops."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryCoordinationStore(clock=self.clock)
        self.desk = FlushDesk(self.store, "w1", clock=self.clock)
        self.dropped: list[FlushOrder] = []
        self.has_requests = False
        self.desk._engine = Engine(self.drop, lambda: self.has_requests)
        self.desk.step()

    def drop(self, wanted: FlushOrder) -> FlushReport:
        self.dropped.append(wanted)
        return REPORT

    def answered(self, number: int) -> bool:
        return self.store.flush_reports(order(number).order, ["w1"]) == [REPORT]


def test_busy_engine_drops_on_its_own_thread_before_it_uses_blocks() -> None:
    """However long its step takes; then the router is answered."""
    bench = Bench()
    bench.has_requests = True
    bench.store.append_flush(order(1))
    bench.clock.advance(10 * IDLE_S)
    assert bench.desk.step() == BUSY_S
    assert not bench.dropped
    bench.desk.settle()
    assert bench.dropped == [order(1)]
    assert not bench.answered(1)
    assert bench.desk.step() == POLL_S
    assert bench.answered(1)
    bench.desk.settle()
    assert len(bench.dropped) == 1


def test_idle_engine_is_stood_in_for_when_it_is_surely_idle() -> None:
    """It has no requests, and has not called for a second: the end of its last request counts as a call."""
    bench = Bench()
    bench.desk.settle()
    bench.clock.advance(IDLE_S)
    bench.desk.touch()
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S - 0.01)
    bench.desk.step()
    assert not bench.dropped
    bench.clock.advance(0.01)
    bench.desk.step()
    assert bench.dropped == [order(1)]
    assert bench.answered(1)


def test_engine_that_begins_waits_for_who_stands_in() -> None:
    """A request that arrives meanwhile finds nothing half dropped."""
    bench = Bench()
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def drop(wanted: FlushOrder) -> FlushReport:
        inside.set()
        assert leave.wait(60)
        return bench.drop(wanted)

    bench.desk._engine = Engine(drop, lambda: False)
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S)
    standing_in = threading.Thread(target=bench.desk.step)
    standing_in.start()
    assert inside.wait(60)
    engine = threading.Thread(target=lambda: (bench.desk.settle(), done.set()))
    engine.start()
    assert not done.is_set()
    leave.set()
    assert done.wait(60)
    standing_in.join(60)
    engine.join(60)
    assert bench.dropped == [order(1)]


def test_store_that_is_away_loses_no_answer() -> None:
    """It is asked again after pauses that grow, and gets the answer when it is there."""
    bench = Bench()
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S - 0.5)
    bench.desk.step()
    bench.desk.settle()
    bench.store.reachable = False
    pauses = [bench.desk.step() for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= BACKOFF_MAX_S
    bench.store.reachable = True
    bench.desk.step()
    assert bench.answered(1)


def test_order_that_fails_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in one scope does not end the desk; the router sees that this worker has not answered."""
    bench = Bench()

    def drop(wanted: FlushOrder) -> FlushReport:
        if wanted == order(1):
            raise RuntimeError("a bug")
        return bench.drop(wanted)

    bench.desk._engine = Engine(drop, lambda: False)
    for number in (1, 2):
        bench.store.append_flush(order(number))
    bench.clock.advance(IDLE_S)
    with caplog.at_level(logging.ERROR):
        bench.desk.step()
    assert (bench.answered(1), bench.answered(2)) == (False, True)
    assert "a bug" in caplog.text


def test_thread_asks_by_itself() -> None:
    """Started, it takes orders and answers them until it is stopped."""
    store = MemoryCoordinationStore()
    desk = FlushDesk(store, "w1")
    dropped: list[FlushOrder] = []

    def drop(wanted: FlushOrder) -> FlushReport:
        dropped.append(wanted)
        return REPORT

    desk.start(Engine(drop, lambda: False))
    wait_until(lambda: desk._cursor is not None, what="the desk has begun")
    store.append_flush(order(1))
    wait_until(lambda: store.flush_reports(order(1).order, ["w1"]) == [REPORT], what="the answer")
    desk.stop(5)
    assert dropped == [order(1)]


OBJECTS = TierDropped(Tier.OBJECT, 0, 0, complete=False)
EARLY = FlushReport((*REPORT.dropped, OBJECTS))


def test_answer_is_given_once_more_when_it_is_known_what_became_of_a_tier() -> None:
    """The other tiers stay as they were told; an order that was never carried out is not answered."""
    bench = Bench()
    bench.desk._engine = Engine(lambda _: EARLY, lambda: False)
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S)
    bench.desk.step()
    assert bench.store.flush_reports(order(1).order, ["w1"]) == [EARLY]
    done = TierDropped(Tier.OBJECT, 4, 40)
    bench.desk.amend(order(1), done)
    bench.desk.amend(order(2), done)
    bench.desk.step()
    assert bench.store.flush_reports(order(1).order, ["w1"]) == [FlushReport((*REPORT.dropped, done))]
    assert bench.store.flush_reports(order(2).order, ["w1"]) == [None]


def test_what_becomes_of_a_tier_may_be_known_before_the_order_is_answered() -> None:
    """The thread that says it waits for the one that carries the order out."""
    bench = Bench()
    done = TierDropped(Tier.OBJECT, 4, 40)
    amending: list[threading.Thread] = []

    def drop(wanted: FlushOrder) -> FlushReport:
        amending.append(threading.Thread(target=bench.desk.amend, args=(wanted, done)))
        amending[0].start()
        return EARLY

    bench.desk._engine = Engine(drop, lambda: False)
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S)
    bench.desk.step()
    amending[0].join(60)
    bench.desk.step()
    assert bench.store.flush_reports(order(1).order, ["w1"]) == [FlushReport((*REPORT.dropped, done))]


def test_long_error_is_cut_so_that_the_answer_is_believed() -> None:
    bench = Bench()
    bench.desk._engine = Engine(lambda _: EARLY, lambda: False)
    bench.store.append_flush(order(1))
    bench.clock.advance(IDLE_S)
    bench.desk.step()
    bench.desk.amend(order(1), TierDropped(Tier.OBJECT, 0, 0, error="x" * 10_000))
    bench.desk.step()
    (report,) = bench.store.flush_reports(order(1).order, ["w1"])
    assert report is not None
    assert report.dropped[-1].error == "x" * ERROR_CHARS_MAX
