"""The thread that runs a step again and again: driven on the test's own thread, over a clock and waits of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ghostcacher_connector.core.periodic import ERROR_PAUSE_S, Periodic
from tests.support.index_parts import FakeClock

GATHER_S = 0.5


class Step(NamedTuple):
    """One step of a script: what it returns, how long it takes, and what happens during it and during its pause."""

    pause_s: float = 10.0
    takes_s: float = 0.0
    during: Callable[[Bench], object] = lambda _: None
    in_pause: Callable[[Bench], object] | None = None
    in_pause_after_s: float = 4.0
    raises: Exception | None = None


class Bench:
    """A thread whose steps follow a script and whose waits only move the clock. It is stopped after the last step.

    at: when each step began, since the start of the test.
    """

    def __init__(self, *steps: Step, gather_s: float = GATHER_S) -> None:
        self.clock = FakeClock()
        self._began = self.clock.now
        self._script = list(steps)
        self._pausing: Step | None = None
        self.at: list[float] = []
        self.ended = 0
        self.thread = Periodic(
            "gc-test", self._step, gather_s=gather_s, at_end=self._at_end, clock=self.clock, wait=self._wait
        )

    def run(self) -> list[float]:
        self.thread.run()
        return self.at

    def _step(self) -> float:
        self.at.append(self.clock.now - self._began)
        step = self._script.pop(0)
        self.clock.advance(step.takes_s)
        step.during(self)
        self._pausing = step
        if not self._script:
            self.thread.stop(0)
        if step.raises is not None:
            raise step.raises
        return step.pause_s

    def _at_end(self) -> None:
        self.ended += 1

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        step, self._pausing = self._pausing, None
        if step is not None and step.in_pause is not None and not event.is_set():
            self.clock.advance(step.in_pause_after_s)
            step.in_pause(self)
            seconds -= step.in_pause_after_s
        if not event.is_set():
            self.clock.advance(seconds)
        return event.is_set()


def wake(bench: Bench) -> None:
    bench.thread.wake()


def stop(bench: Bench) -> None:
    bench.thread.stop(0)


def test_step_that_failed_is_not_cut_short_by_what_came_meanwhile() -> None:
    """What arrives during a step that forgets wakes waits for the whole pause; the end does not."""
    steps, waits = [], []

    def step() -> float:
        thread.wake()
        thread.forget_wakes()
        steps.append(None)
        if len(steps) == 2:
            thread.stop(0)
            thread.forget_wakes()
        return 7.0

    def wait(event: threading.Event, pause_s: float) -> bool:
        waits.append((event.is_set(), pause_s))
        return event.is_set()

    thread = Periodic("t", step, wait=wait)
    thread.run()
    assert waits == [(False, 7.0), (True, 7.0)]


def test_steps_follow_each_other_after_the_pause_that_each_asks_for() -> None:
    """The pause counts from the end of a step."""
    assert Bench(Step(1.0), Step(2.0, takes_s=3.0), Step()).run() == [0.0, 1.0, 6.0]


def test_wake_cuts_the_pause_and_gathers() -> None:
    """A woken step runs a little after the first wake, so that what follows it comes along."""
    bench = Bench(Step(10.0, in_pause=wake), Step())
    assert bench.run() == [0.0, 4.0 + GATHER_S]


def test_wake_during_a_step_is_not_lost() -> None:
    """What arrives while a step runs is handled by the next one, which comes soon."""
    bench = Bench(Step(10.0, during=wake), Step(7.0), Step())
    assert bench.run() == [0.0, GATHER_S, GATHER_S + 7.0]


def test_second_wake_does_not_put_the_step_off() -> None:
    """Gathering counts from the first wake: a stream of changes cannot hold a step up for ever."""

    def twice(bench: Bench) -> None:
        bench.thread.wake()
        bench.clock.advance(GATHER_S / 2)
        bench.thread.wake()

    bench = Bench(Step(10.0, during=twice), Step())
    assert bench.run() == [0.0, GATHER_S]


def test_wake_without_gathering_runs_the_step_at_once() -> None:
    bench = Bench(Step(10.0, in_pause=wake), Step(), gather_s=0.0)
    assert bench.run() == [0.0, 4.0]


def test_unexpected_error_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """After a pause that no wake cuts short; the error is in the log with the name of the thread."""
    bench = Bench(Step(raises=RuntimeError("a bug"), during=wake), Step())
    with caplog.at_level(logging.ERROR):
        assert bench.run() == [0.0, ERROR_PAUSE_S]
    (record,) = caplog.records
    assert record.getMessage() == f"gc-test: unexpected error, going on in {ERROR_PAUSE_S:g} s"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a bug"


def test_stop_cuts_the_pause_and_ends_with_at_end() -> None:
    """A stop in the middle of a pause ends the thread then, without another step; what is to come last runs once."""
    bench = Bench(Step(10.0, in_pause=stop), Step())
    assert bench.run() == [0.0]
    assert (bench.clock.now - bench._began, bench.ended) == (4.0, 1)


def test_stop_during_a_step_is_seen_by_the_step() -> None:
    seen: list[bool] = []

    def stop_it(bench: Bench) -> None:
        seen.append(bench.thread.stopping)
        bench.thread.stop(0)
        seen.append(bench.thread.stopping)

    bench = Bench(Step(during=stop_it), Step())
    assert bench.run() == [0.0]
    assert seen == [False, True]


def test_thread_runs_until_it_is_stopped() -> None:
    """As a thread: it steps by itself; `stop` returns when it has ended, and may be called again."""
    stepped = threading.Event()

    def step() -> float:
        stepped.set()
        return 60.0

    thread = Periodic("gc-test", step)
    assert repr(thread) == "Periodic(gc-test, not running)"
    thread.start()
    assert stepped.wait(60)
    assert repr(thread) == "Periodic(gc-test, running)"
    thread.stop(10)
    thread.stop(10)
    assert not thread.alive


def test_stop_does_not_wait_for_a_step_that_hangs() -> None:
    """`stop` returns within its bound though the step is still under way."""
    entered, release = threading.Event(), threading.Event()

    def step() -> float:
        entered.set()
        release.wait(60)
        return 0.0

    thread = Periodic("gc-test", step)
    thread.start()
    assert entered.wait(60)
    thread.stop(0.01)
    assert thread.alive
    release.set()
    thread.stop(10)
    assert not thread.alive


def test_stop_before_start_lets_no_step_run() -> None:
    bench = Bench(Step())
    bench.thread.stop(0)
    assert bench.run() == []
    assert bench.ended == 1
