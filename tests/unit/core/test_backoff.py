"""Pauses that grow while something fails, and breakers that open when it does."""

from __future__ import annotations

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.breaker import BREAKER_S, Breaker
from tests.support.index_parts import FakeClock


def test_pauses_double_up_to_the_bound_and_one_success_ends_them() -> None:
    backoff = Backoff(0.1, 0.5)
    assert backoff.ready(0.0)
    assert [backoff.failed(0.0) for _ in range(4)] == [0.1, 0.2, 0.4, 0.5]
    assert backoff.failures == 4
    backoff.succeeded()
    assert backoff.failures == 0
    assert backoff.ready(0.0)
    assert backoff.failed(0.0) == 0.1


def test_backoff_is_ready_when_its_pause_is_over() -> None:
    backoff = Backoff(1.0, 8.0)
    backoff.failed(10.0)
    assert not backoff.ready(10.9)
    assert backoff.ready(11.0)


def test_thousands_of_failures_are_no_overflow() -> None:
    backoff = Backoff(0.1, 2.0)
    assert [backoff.failed(0.0) for _ in range(5000)][-1] == 2.0


def test_breaker_is_open_for_a_while_after_a_failure() -> None:
    clock = FakeClock()
    breaker = Breaker(clock)
    assert not breaker.open
    breaker.trip()
    clock.advance(BREAKER_S / 2)
    assert breaker.open
    assert repr(breaker) == "Breaker(open)"
    clock.advance(BREAKER_S / 2)
    assert not breaker.open


def test_breaker_a_later_failure_prolongs_and_never_shortens() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, open_s=1.0)
    breaker.trip(10.0)
    breaker.trip()
    clock.advance(9.5)
    assert breaker.open
    breaker.trip()
    clock.advance(0.9)
    assert breaker.open
