"""Queues as columns: at every moment they say of each worker what its own estimate says."""

from __future__ import annotations

from math import inf
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.signals import queue_columns, queue_estimate
from ghostcacher_router.signals.queue_columns import NO_PULL, QueueColumns, QueueList, QueueView
from ghostcacher_router.signals.queue_estimate import QUEUES_SPARE, QueueEstimator
from ghostcacher_router.signals.reservation import Reservation
from tests.support.index_parts import FakeClock
from tests.unit.router.signals.test_queue_estimate import make_worker, plain_worker, report

WORKERS = 3


def view_of(queues: QueueEstimator, workers: list[Worker], now: float) -> QueueView:
    with mock.patch.object(queue_estimate, "FEW", 0), mock.patch.object(queue_columns, "RECENT_AT_MAX_S", 2.0):
        found = queues.at(workers, now)
    assert isinstance(found, QueueView)
    return found


def check(queues: QueueEstimator, workers: list[Worker], now: float, *, few_first: bool = False) -> None:
    """Assert that the columns of a list of workers, and their list, say what their estimates say, asked first or last.

    few_first: whether the list is asked before the columns: whoever is asked first has to notice what has changed.
    """
    view = None if few_first else view_of(queues, workers, now)
    few = queues.at(workers, now)
    assert isinstance(few, QueueList)
    listed = [(one.queue_ms, one.link_ms, one.prefilling, one.engine, one.reported) for one in few.estimates]
    view = view or view_of(queues, workers, now)
    estimates = [queues.estimate(worker, now) for worker in workers]
    assert listed == [(one.queue_ms, one.link_ms, one.prefilling, one.engine, one.reported) for one in estimates]
    assert view.queue_ms.tolist() == [found.queue_ms for found in estimates]
    assert np.broadcast_to(view.link_ms, len(workers)).tolist() == [found.link_ms for found in estimates]
    assert view.prefilling.tolist() == [found.prefilling for found in estimates]
    assert (view.reported, view.delayed, view.capacity_min) == (few.reported, few.delayed, few.capacity_min)
    assert list(view.capacities()) == list(few.capacities())
    assert view.capacity_min == min(view.capacities())
    for place in range(len(workers)):
        found_few, found = few.share_prices(now, place), view.share_prices(now, place)
        if found_few is None or found is None:
            # But for rounding, both have none.
            found_few, found = found_few or [0.0] * len(workers), np.zeros(len(workers)) if found is None else found
            assert found_few[place] == pytest.approx(found[place], abs=1e-6)
        else:
            assert found.tolist() == pytest.approx(found_few, abs=1e-6)
    for place, found in enumerate(estimates):
        name, *numbers = found.engine
        assert view.listed.places[name] == place
        assert [inf if one == NO_PULL else one for one in (float(column[place]) for column in view.engines)] == [
            inf if one is None else one for one in numbers
        ]
        assert view.estimate_at(place) is found


class ColumnsMachine(RuleBasedStateMachine):
    """All that can happen to queues, in any order; one worker is plain. Sometimes one of several lists is asked for."""

    @initialize()
    def begin(self) -> None:
        self.queues, self.clock = QueueEstimator(), FakeClock()
        self.workers = [*(make_worker(f"w{number}") for number in range(WORKERS)), plain_worker()]
        self.lists = [self.workers[:WORKERS], self.workers[::-1], self.workers[1:2]]
        self.reservations: list[Reservation] = []
        self.foreign: list[Reservation] = []
        self.gone = self.looks = 0

    @rule(worker=st.integers(0, WORKERS), computed=st.integers(0, 5000), pull_ms=st.sampled_from([0.0, 0.3, 400.0]))
    def reserve(self, worker: int, computed: int, pull_ms: float) -> None:
        name = self.workers[worker].name
        placed = self.queues.reserve(name, computed + 7, computed, self.clock(), pull_ms=pull_ms)
        self.reservations.append(placed)

    @rule(worker=st.integers(0, WORKERS - 1), ends=st.booleans())
    def tell_of_others(self, worker: int, ends: bool) -> None:
        if ends and self.foreign:
            self.queues.foreign_computed(self.foreign.pop())
        else:
            self.foreign.append(self.queues.reserve_foreign(f"w{worker}", 900, 800, self.clock()))

    @rule(number=st.integers(0, 99), step=st.sampled_from(["sent", "answer_began", "ended", "failed"]))
    def happen(self, number: int, step: str) -> None:
        if self.reservations:
            reservation = self.reservations[number % len(self.reservations)]
            if step in ("ended", "failed"):
                self.reservations.remove(reservation)
            if step == "ended":
                self.queues.ended(reservation)
            else:
                getattr(self.queues, step)(reservation, self.clock())

    @rule(
        worker=st.integers(0, WORKERS - 1),
        waiting=st.integers(0, 10_000),
        rate=st.sampled_from([0.0, 500.0, 1e3]),
        ago_s=st.sampled_from([0.0, 1.5]),
    )
    def report(self, worker: int, waiting: int, rate: float, ago_s: float) -> None:
        """Also one that has been on its way for long, while another one was not."""
        told, blocks = self.workers[worker], 500 * (1 + waiting % 3)
        report(told, self.clock() - ago_s, waiting, running=waiting % 5, rate=rate, blocks=blocks)
        self.queues.take_reports(self.workers, self.clock())

    @rule(worker=st.integers(0, WORKERS - 1))
    def live_anew(self, worker: int) -> None:
        """Another worker of the same name takes its place: in other lists, as the fleet makes them."""
        self.workers[worker] = make_worker(f"w{worker}")
        self.lists = [self.workers[:WORKERS], self.workers[::-1], self.workers[1:2]]

    @rule()
    def others_come_and_go(self) -> None:
        """Queues of workers that are gone are dropped, and their slots taken by others."""
        for _ in range(QUEUES_SPARE + 1):
            self.gone += 1
            self.queues.ended(self.queues.reserve(f"gone{self.gone}", 1, 1, self.clock()))
        self.queues.keep_only({worker.name for worker in self.workers[1:]})

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.2, 2.5, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "queues"):
            self.looks += 1
            listed = self.lists[self.looks % len(self.lists)]
            check(self.queues, listed, self.clock(), few_first=self.looks % 2 == 0)
            self.queues.check_invariants()


ColumnsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_columns_machine = ColumnsMachine.TestCase


@pytest.mark.parametrize("number", [0, 1])
def test_requests_of_late_fade(number: int) -> None:
    """A worker that was sent far more has a price, which goes as time passes, also at one that reports nothing."""
    queues, workers = QueueEstimator(), [plain_worker(), make_worker("w1")]
    for _ in range(40):
        queues.ended(queues.reserve(workers[number].name, 10, 10, 5000.0))

    def price(now: float) -> float:
        check(queues, workers, now)
        found = queues.at(workers, now).share_prices(now, number)
        return 0.0 if found is None else found[number]

    assert price(5000.0) > price(5060.0) > 0.0 == price(5600.0)


def test_few_workers_are_estimated_one_by_one() -> None:
    """Beyond that all at once."""
    queues, workers = QueueEstimator(), [make_worker(f"w{number}") for number in range(queue_estimate.FEW + 1)]
    assert isinstance(queues.at(workers[1:], 1.0), QueueList)
    assert isinstance(queues.at(workers, 1.0), QueueView)


def test_slots_of_queues_that_are_gone_are_used_again() -> None:
    """Names that come and go do not fill the columns."""
    columns = QueueColumns()
    slots = [columns.add() for _ in range(40)]
    assert slots == list(range(40))
    columns.drop([3, 5])
    assert {columns.add(), columns.add()} == {3, 5}
    assert columns.add() == 40


def test_list_that_stays_while_others_come_sees_what_changes() -> None:
    """The columns grow for queues that are not in it."""
    queues, workers = QueueEstimator(), [make_worker("w0"), make_worker("w1")]
    for worker in workers:
        report(worker, 10.0)
    check(queues, workers, 10.0)
    for number in range(40):
        queues.reserve(f"other{number}", 100, 100, 10.0)
    queues.reserve("w1", 100, 100, 10.0)
    check(queues, workers, 10.0)


def test_pulls_wait_for_those_ahead() -> None:
    """Until they should be done, and no longer than those that are still there take."""
    queues, worker = QueueEstimator(), make_worker("w0")
    report(worker, 10.0)
    first, second = (queues.reserve("w0", 1000, 100, 10.0, pull_ms=400.0) for _ in range(2))

    def link_ms(now: float) -> float:
        check(queues, [worker], now)
        return queues.estimate(worker, now).link_ms

    assert link_ms(10.0) == pytest.approx(800.0)
    assert link_ms(10.3) == pytest.approx(500.0)
    queues.first_byte(first)
    assert link_ms(10.3) == pytest.approx(400.0)
    assert link_ms(11.0) == 0.0
    queues.reserve("w0", 1000, 100, 11.0, pull_ms=50.0)
    assert link_ms(11.0) == pytest.approx(50.0)
    queues.ended(second)
    assert link_ms(11.0) == pytest.approx(50.0)


def test_failed_requests_count_until_their_time_is_over() -> None:
    """Also where nothing else has happened since the look before."""
    queues, worker = QueueEstimator(), make_worker("w0")
    report(worker, 10.0)
    queues.failed(queues.reserve("w0", 1000, 900, 10.0), 10.0)
    for now in (10.0, 10.3, 10.6, 12.0):
        check(queues, [worker], now, few_first=True)


def test_many_reports_at_once_are_all_taken_in() -> None:
    """Slots that are written at once each have what their own worker says."""
    queues, workers = QueueEstimator(), [make_worker(f"w{number}") for number in range(12)]
    with mock.patch.object(queue_columns, "FEW", 2):
        for turn in (1, 2):
            for number, worker in enumerate(workers):
                report(worker, 10.0 + turn, 100 * number * turn, running=number, rate=1000.0 + number)
            queues.take_reports(workers, 10.0 + turn)
            check(queues, workers, 10.1 + turn)


@pytest.mark.interpreted
def test_reports_are_taken_in_before_a_request_comes() -> None:
    """It finds all columns written but those of queues that have changed since."""
    queues, workers = QueueEstimator(), [make_worker(f"w{number}") for number in range(queue_estimate.FEW + 2)]
    queues.at(workers, 10.0)
    for worker in workers:
        report(worker, 10.0, 100, rate=1000.0)
    queues.take_reports(workers, 10.0)
    queues.reserve("w3", 10, 10, 10.0)
    with mock.patch.object(QueueColumns, "write", autospec=True, side_effect=QueueColumns.write) as write:
        queues.at(workers, 10.0)
    ((_, written),) = [call.args for call in write.call_args_list]
    assert [queue.worker.name for queue in written if queue.worker is not None] == ["w3"]


def test_report_that_was_long_on_its_way_is_old() -> None:
    """Though the one before it was not."""
    queues, workers = QueueEstimator(), [make_worker("w0"), make_worker("w1")]
    for at in (10.0, 8.5):
        for worker in workers:
            report(worker, at)
        queues.take_reports(workers, 10.0)
        check(queues, workers, 10.0)
    assert not view_of(queues, workers, 11.0).reported
    check(queues, workers, 11.0)


def test_report_grows_old_while_nothing_else_happens() -> None:
    """Also where each of a few workers is looked at by itself."""
    queues, workers = QueueEstimator(), [make_worker("w0"), make_worker("w1")]
    for number, worker in enumerate(workers):
        report(worker, 10.0 + number)
    for now, counts in ((11.0, [True, True]), (12.5, [False, True]), (13.5, [False, False])):
        found = queues.at(workers, now)
        assert isinstance(found, QueueList)
        assert [one.reported for one in found.estimates] == counts
        assert found.reported is any(counts)


def test_shares_follow_what_workers_report_of_their_speed() -> None:
    """A worker that was taken for nine times as fast as the other one, and is not, has had too much."""
    queues, workers = QueueEstimator(), [make_worker("w0"), make_worker("w1")]
    for _ in range(20):
        queues.ended(queues.reserve("w0", 10, 10, 10.0))
    for rate, has_price in ((9000.0, False), (1000.0, True)):
        for worker, tokens_per_s in zip(workers, (rate, 1000.0), strict=True):
            report(worker, 10.0, rate=tokens_per_s)
        queues.take_reports(workers, 10.0)
        check(queues, workers, 10.0)
        assert (view_of(queues, workers, 10.0).share_prices(10.0, 0) is not None) is has_price
