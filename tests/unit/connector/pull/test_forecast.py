"""The pull-or-compute forecast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import Tier
from ghostcacher_connector.pull.forecast import (
    OWN_BYTES_PER_S_GUESS,
    PEER_BYTES_PER_S_GUESS,
    PULL_BYTES_MIN,
    PULL_FIXED_S,
    RATE_TTL_S,
    STEP_TOKENS_MIN,
    Forecaster,
    blend,
)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_unknown_peer_is_forecast_with_the_guess() -> None:
    """A peer that was never measured is taken for a slow link, not for a free one."""
    choice = Forecaster(1000.0).compare("b", tokens=1000, pull_bytes=int(PEER_BYTES_PER_S_GUESS))
    assert choice.pull_s == pytest.approx(1.0 + PULL_FIXED_S)
    assert choice.compute_s == pytest.approx(1.0)
    assert not choice.pull


def test_observed_rates_replace_the_calibration() -> None:
    """The first observation stands for itself, later ones are blended in."""
    forecaster = Forecaster(STEP_TOKENS_MIN)
    assert forecaster.observe_step(STEP_TOKENS_MIN, 0.5) == pytest.approx(0.5)
    assert forecaster.prefill_tokens_per_s == pytest.approx(STEP_TOKENS_MIN * 2)
    forecaster.observe_pull("b", 1 << 30, 0.5)
    first = blend(PEER_BYTES_PER_S_GUESS, 2 * (1 << 30))
    assert forecaster.bytes_per_s("b") == pytest.approx(first)


def test_small_observations_are_ignored() -> None:
    """Steps bound by memory and pulls bound by latency say nothing about the rates."""
    forecaster = Forecaster(1000.0)
    assert forecaster.observe_step(STEP_TOKENS_MIN - 1, 10.0) is None
    forecaster.observe_pull("b", PULL_BYTES_MIN - 1, 10.0)
    assert forecaster.prefill_tokens_per_s == 1000.0
    assert forecaster.bytes_per_s("b") == PEER_BYTES_PER_S_GUESS


@pytest.mark.parametrize(("step_tokens_max", "least"), [(8192, STEP_TOKENS_MIN), (256, 128), (1, 1)])
def test_step_that_tells_is_half_of_the_largest(step_tokens_max: int, least: int) -> None:
    """An engine whose steps are always short is measured, too."""
    forecaster = Forecaster(1000.0, step_tokens_max=step_tokens_max)
    if least > 1:
        assert forecaster.observe_step(least - 1, 10.0) is None
    assert forecaster.observe_step(least, least / 10) == pytest.approx(100.0)
    assert forecaster.prefill_tokens_per_s == pytest.approx(10.0)


def test_slow_first_prompt_is_forgotten_when_nothing_confirms_it() -> None:
    """An engine that pays for its first prompt is not avoided for ever: then nobody would learn what it can do."""
    clock = FakeClock()
    forecaster = Forecaster(1000.0, clock)
    for _ in range(4):
        forecaster.observe_step(2048, 2048 / 10)
    assert forecaster.prefill_tokens_per_s == pytest.approx(10.0)
    clock.now += RATE_TTL_S + 1
    assert forecaster.prefill_tokens_per_s > 800.0
    forecaster.observe_step(2048, 2048 / 900)
    assert forecaster.prefill_tokens_per_s == pytest.approx(900.0)


def test_well_known_rate_outlives_the_calibration() -> None:
    """After many steps an idle engine is held to what it has shown, not to a guess, in either direction."""
    clock = FakeClock()
    for calibrated in (20.0, 5000.0):
        forecaster = Forecaster(calibrated, clock)
        for _ in range(300):
            forecaster.observe_step(STEP_TOKENS_MIN, STEP_TOKENS_MIN / 200)
        clock.now += RATE_TTL_S + 1
        assert forecaster.prefill_tokens_per_s == pytest.approx(200.0, rel=0.01)


def test_step_that_seems_to_have_taken_no_time_counts_little() -> None:
    """Ends that are seen late make the next step short: that is no rate, and is gone after a few right ones."""
    forecaster = Forecaster(1000.0)
    for _ in range(10):
        forecaster.observe_step(STEP_TOKENS_MIN, STEP_TOKENS_MIN / 1000)
    forecaster.observe_step(STEP_TOKENS_MIN, 1e-6)
    assert forecaster.prefill_tokens_per_s < 2000.0
    for _ in range(10):
        forecaster.observe_step(STEP_TOKENS_MIN, STEP_TOKENS_MIN / 1000)
    assert forecaster.prefill_tokens_per_s == pytest.approx(1000.0, rel=0.05)


def test_round_trip_counts_and_leaves_the_rate_alone() -> None:
    """Connecting to a peer measures its round trip; only pulls say how fast it is, before and after."""
    forecaster = Forecaster(1000.0)
    forecaster.observe_round_trips({"b": 0.001})
    assert forecaster.bytes_per_s("b") == PEER_BYTES_PER_S_GUESS
    forecaster.observe_pull("b", 1 << 30, (1 << 30) / 1e9)
    rate = forecaster.bytes_per_s("b")
    forecaster.observe_round_trips({"b": 0.002})
    assert forecaster.bytes_per_s("b") == rate
    assert forecaster.compare("b", 1, 0).pull_s == pytest.approx(PULL_FIXED_S + 0.002)


def test_slow_rate_is_forgotten_when_nothing_confirms_it() -> None:
    """One slow pull must not keep a peer refused for ever: then nothing would ever be measured again."""
    clock = FakeClock()
    forecaster = Forecaster(1000.0, clock)
    for _ in range(20):
        forecaster.observe_pull("b", PULL_BYTES_MIN, 10.0)
    assert not forecaster.compare("b", 10, 1 << 20).pull
    clock.now += RATE_TTL_S + 1
    assert forecaster.compare("b", 10, 1 << 20).pull


PULL = 1 << 30
"""About a second at the guess."""

PULL_S = PULL / PEER_BYTES_PER_S_GUESS + PULL_FIXED_S


def busy(threads: int, *peers: str) -> tuple[Forecaster, FakeClock]:
    """Return a forecaster with a pull of one second from each of these peers under way."""
    clock = FakeClock()
    forecaster = Forecaster(1000.0, clock, pull_threads=threads)
    for number, peer in enumerate(peers):
        forecaster.ordered(f"p{number}", peer, PULL)
    return forecaster, clock


def test_pull_waits_for_those_ahead_on_its_link() -> None:
    """One link carries one after the other, however many threads there are; another link is free."""
    forecaster, clock = busy(8, "b", "b")
    choice = forecaster.compare("b", tokens=2500, pull_bytes=PULL)
    assert choice.wait_s == pytest.approx(2 * PULL_S)
    assert choice.pull_s == pytest.approx(PULL_S)
    assert not choice.pull
    assert forecaster.compare("c", tokens=2500, pull_bytes=PULL).wait_s == 0.0
    assert forecaster.compare("c", tokens=2500, pull_bytes=PULL).pull
    clock.now += PULL_S
    assert forecaster.compare("b", tokens=2500, pull_bytes=PULL).wait_s == pytest.approx(PULL_S)


def test_pull_waits_for_a_free_thread() -> None:
    """With every thread taken, the first pull that ends makes room, whatever its link."""
    forecaster, _ = busy(2, "b", "c")
    assert forecaster.compare("d", 1, 0).wait_s == pytest.approx(PULL_S)
    forecaster.ordered("p2", "d", PULL)
    assert forecaster.compare("e", 1, 0).wait_s == pytest.approx(PULL_S)
    forecaster.ordered("p3", "e", PULL)
    assert forecaster.compare("f", 1, 0).wait_s == pytest.approx(2 * PULL_S)
    three, _ = busy(3, "b", "c")
    assert three.compare("d", 1, 0).wait_s == 0.0


def test_pull_that_is_over_or_overdue_holds_nobody_up() -> None:
    """One that ended early makes room at once; one that should be over by now is not waited for in forecasts."""
    forecaster, clock = busy(1, "b")
    forecaster.ended("p0")
    forecaster.ended("p0")
    assert forecaster.compare("b", 1, 0).wait_s == 0.0
    forecaster, clock = busy(1, "b")
    clock.now += 10 * PULL_S
    assert forecaster.compare("b", 1, 0).wait_s == 0.0


@given(
    rate=st.floats(1e6, 1e12),
    tokens=st.integers(1, 100_000),
    bytes_per_token=st.integers(1, 1 << 20),
    prefill=st.floats(1.0, 1e6),
)
def test_more_tokens_never_make_pulling_less_attractive(
    rate: float, tokens: int, bytes_per_token: int, prefill: float
) -> None:
    """With the fixed cost paid, a longer prefix that is worth pulling stays worth pulling."""
    forecaster = Forecaster(prefill)
    for _ in range(20):
        forecaster.observe_pull("b", 1 << 30, (1 << 30) / rate)
    if forecaster.compare("b", tokens, tokens * bytes_per_token).pull:
        assert forecaster.compare("b", 2 * tokens, 2 * tokens * bytes_per_token).pull


def test_rate_that_no_step_has_told_lately_is_stale() -> None:
    """A calibration is, and so is what was measured long ago, until the next step tells."""
    clock = FakeClock()
    forecaster = Forecaster(1000.0, clock)
    assert forecaster.prefill_rate == (1000.0, True)
    forecaster.observe_step(STEP_TOKENS_MIN, STEP_TOKENS_MIN / 500)
    assert forecaster.prefill_rate == (pytest.approx(500.0), False)
    clock.now += RATE_TTL_S + 1.0
    assert forecaster.prefill_rate == (forecaster.prefill_tokens_per_s, True)
    forecaster.observe_step(STEP_TOKENS_MIN, STEP_TOKENS_MIN / 500)
    assert not forecaster.prefill_rate.stale


def test_typical_rate_is_the_median_of_what_was_measured() -> None:
    """One slow peer does not spoil it; round trips alone say nothing of a rate."""
    forecaster = Forecaster(1000.0)
    forecaster.observe_round_trips({"unmeasured": 0.001})
    assert forecaster.typical_bytes_per_s == 0.0
    for worker, rate in {"slow": 1e6, "a": 2e9, "b": 3e9}.items():
        for _ in range(60):
            forecaster.observe_pull(worker, 1 << 30, (1 << 30) / rate)
    assert forecaster.typical_bytes_per_s == pytest.approx(2e9)


def test_own_loads_are_no_part_of_what_routers_take_pulls_to_cost() -> None:
    """They never leave the machine."""
    forecaster = Forecaster(1000.0, own_worker="own")
    assert forecaster.bytes_per_s("own", Tier.HOST) == OWN_BYTES_PER_S_GUESS
    for _ in range(60):
        forecaster.observe_pull("own", 1 << 30, (1 << 30) / 20e9, Tier.HOST)
    assert forecaster.typical_bytes_per_s == 0.0
    assert forecaster.bytes_per_s("own", Tier.HOST) == pytest.approx(20e9)
