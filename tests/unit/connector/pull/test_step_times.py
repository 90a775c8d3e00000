"""How long an engine's steps take, and what is learned of those that only decode."""

from __future__ import annotations

from random import Random

import pytest

from ghostcacher_connector.pull.step_times import STEPS_MIN, DecodeTimes, StepClock
from tests.support.index_parts import FakeClock

FIXED_S, REQUEST_S = 0.010, 0.002


def observe(times: DecodeTimes, batches: list[int], *, fixed_s: float = FIXED_S, noise: float = 0.0) -> None:
    """Let an engine decode in these batches. noise: of a step's time, as a share of it, either way."""
    rng = Random(1)
    for batch in batches:
        times.observe(batch, (fixed_s + REQUEST_S * batch) * (1.0 + noise * rng.uniform(-1.0, 1.0)))


def test_overlapping_steps_are_timed_from_the_predecessors_end() -> None:
    """A step scheduled ahead does not pay for the one before it."""
    clock = FakeClock()
    steps = StepClock(clock)
    steps.scheduled(1, 100, 0)
    steps.scheduled(2, 0, 7)
    clock.advance(1.0)
    assert steps.done(1) == (100, 0, pytest.approx(1.0))
    clock.advance(2.0)
    assert steps.done(2) == (0, 7, pytest.approx(2.0))


def test_steps_confirmed_together_are_not_timed() -> None:
    """Two steps whose ends were seen at once cannot be told apart."""
    clock = FakeClock()
    steps = StepClock(clock)
    steps.scheduled(1, 100, 0)
    steps.scheduled(2, 200, 0)
    clock.advance(3.0)
    assert steps.done(2) is None
    assert steps.done(2) is None


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_what_a_request_adds_is_told_from_the_fixed_part(noise: float) -> None:
    """Batches of several sizes tell how long the step of an empty batch would take, and what each request adds."""
    times = DecodeTimes()
    observe(times, [1, 4, 8, 6, 3] * 100, noise=noise)
    assert times.request_s == pytest.approx(REQUEST_S, rel=0.05 + noise)
    assert times.step_s == pytest.approx(FIXED_S + REQUEST_S * 4.4, rel=0.05)


def test_nothing_is_told_before_there_are_enough_steps() -> None:
    """The first steps pay for what is compiled and paged in."""
    times = DecodeTimes()
    observe(times, [1, 8] * (STEPS_MIN // 2))
    assert (times.step_s, times.request_s) == (0.0, 0.0)
    observe(times, [1])
    assert times.step_s > 0.0


def test_batches_of_one_size_do_not_tell_what_a_request_adds() -> None:
    """There is nothing to compare them with; the time of a step is known."""
    times = DecodeTimes()
    observe(times, [4] * 200)
    assert times.request_s == 0.0
    assert times.step_s == pytest.approx(FIXED_S + 4 * REQUEST_S)


def test_step_that_was_held_up_says_little() -> None:
    """One step of a second among those of some milliseconds does not hide what they tell."""
    times = DecodeTimes()
    observe(times, [2, 6] * 100)
    before = times.step_s
    times.observe(2, 1.0)
    assert times.step_s < 1.02 * before


def test_request_adds_no_more_than_the_step_takes() -> None:
    """However the noise falls, an empty batch would not take less than nothing, and no request makes a step shorter."""
    falling, steep = DecodeTimes(), DecodeTimes()
    for batch in [1, 10] * 100:
        falling.observe(batch, 0.02 - 0.001 * batch)
        steep.observe(batch, 0.01 * batch - 0.009)
    assert falling.request_s == 0.0
    assert steep.request_s == pytest.approx(steep.step_s / 5.5, rel=0.01)


def test_old_steps_are_forgotten() -> None:
    """An engine that has become slower is known to be, after some seconds of steps."""
    times = DecodeTimes()
    observe(times, [2, 6] * 500)
    observe(times, [2, 6] * 1000, fixed_s=0.05)
    assert times.step_s == pytest.approx(0.05 + 4 * REQUEST_S, rel=0.05)
