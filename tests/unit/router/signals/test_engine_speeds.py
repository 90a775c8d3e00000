"""How fast engines are taken for: what they report, what their equals report, and guesses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_router.signals.engine_speeds import (
    ANSWER_TOKENS_GUESS,
    ANSWER_TOKENS_MAX,
    DECODE_TOKENS,
    MS_PER_TOKEN_GUESS,
    WATCHED_STEP,
    EngineSpeeds,
)

LOAD = LoadReport(
    running=0,
    waiting=0,
    waiting_tokens=0,
    kv_blocks_used=0,
    kv_blocks_total=1000,
    block_tokens=16,
    block_bytes=1 << 14,
    prefill_tokens_per_s=1000.0,
    pull_bytes_per_s=1e9,
    pull_fixed_s=0.004,
)


def told(*, namespace: str = "n", stale: bool = False, **rates: float) -> EngineSpeeds:
    """Return the speeds of engines that report these prefill rates, by name."""
    speeds = EngineSpeeds()
    for name, rate in rates.items():
        speeds.report(name, namespace, replace(LOAD, prefill_tokens_per_s=rate, prefill_rate_stale=stale))
    speeds.check_invariants()
    return speeds


def rates_of(speeds: EngineSpeeds, *names: str) -> list[float]:
    return [1e3 / speeds.ms_per_token(name) for name in names]


def test_small_differences_of_measured_rates_are_noise() -> None:
    """Within a tenth of the typical engine all are alike; one of half its rate is slow."""
    one, other, third, slow = rates_of(told(a=950.0, b=1000.0, c=1050.0, d=500.0), "a", "b", "c", "d")
    assert one == other == third
    assert slow == pytest.approx(500.0)


def test_rate_that_nothing_has_confirmed_lately_is_hardly_believed() -> None:
    """Calibrations that differ by 1.8 say nothing; until prompts tell the rates, the engines are taken for equals."""
    one, other = rates_of(told(stale=True, a=32_900.0, b=58_300.0), "a", "b")
    assert one == other
    one, other = rates_of(told(stale=False, a=32_900.0, b=58_300.0), "a", "b")
    assert other > 1.5 * one


def test_engines_of_other_namespaces_are_no_equals() -> None:
    """A small model beside a large one does not make it faster."""
    speeds = told(stale=True, large=1000.0)
    speeds.report("small", "other", replace(LOAD, prefill_tokens_per_s=1800.0, prefill_rate_stale=True))
    assert rates_of(speeds, "large", "small") == pytest.approx([1000.0, 1800.0])
    speeds.report("small", "n", replace(LOAD, prefill_tokens_per_s=1800.0, prefill_rate_stale=True))
    speeds.check_invariants()
    assert len({round(rate) for rate in rates_of(speeds, "large", "small")}) == 1


def test_what_a_request_adds_to_a_step_is_measured_or_guessed() -> None:
    """By the engine itself, by its equals where it does not tell, or as some tokens of a prompt."""
    speeds = EngineSpeeds()
    assert speeds.decode_request_ms("nobody", speeds.ms_per_token("nobody")) == pytest.approx(
        DECODE_TOKENS * MS_PER_TOKEN_GUESS
    )
    speeds.report("old", "n", LOAD)
    assert speeds.decode_request_ms("old", speeds.ms_per_token("old")) == pytest.approx(DECODE_TOKENS * 1.0)
    speeds.report("new", "n", replace(LOAD, decode_step_s=0.03, decode_request_s=0.002))
    assert speeds.decode_request_ms("new", speeds.ms_per_token("new")) == pytest.approx(2.0)
    assert speeds.decode_request_ms("old", speeds.ms_per_token("old")) == pytest.approx(2.0)
    speeds.forget("new")
    speeds.check_invariants()
    assert speeds.decode_request_ms("old", speeds.ms_per_token("old")) == pytest.approx(DECODE_TOKENS * 1.0)


def test_length_of_answers_is_learned() -> None:
    """From how long they take at engines that tell how long a step takes, bounded, one answer counting little."""
    speeds = EngineSpeeds()
    speeds.answered("silent", 100.0)
    assert speeds.answer_tokens == ANSWER_TOKENS_GUESS
    speeds.report("w", "n", replace(LOAD, decode_step_s=0.02))
    speeds.answered("w", 1e6)
    assert ANSWER_TOKENS_GUESS < speeds.answer_tokens < ANSWER_TOKENS_GUESS + ANSWER_TOKENS_MAX / 10
    for _ in range(200):
        speeds.answered("w", 2.0)
    assert speeds.answer_tokens == pytest.approx(100.0, rel=0.01)


def test_version_changes_with_what_is_typical() -> None:
    """Who keeps what follows from the speeds learns that it is to be made anew."""
    speeds = told(a=1000.0, b=1000.0)
    before = speeds.version
    speeds.report("a", "n", LOAD)
    assert speeds.version == before
    speeds.report("a", "n", replace(LOAD, prefill_tokens_per_s=2000.0))
    assert speeds.version != before


def test_what_engines_that_report_nothing_take_moves_in_steps() -> None:
    """Each answer tells a little; what follows from their rate is made anew when that has moved by a step."""
    speeds = EngineSpeeds()
    speeds.computed(1000, 1.0)
    before = speeds.version
    for number in range(100):
        speeds.computed(1000, 1.02 if number % 2 else 0.98)
    assert speeds.version == before
    assert speeds.ms_per_token("w") == 1.0
    for _ in range(300):
        speeds.computed(1000, 2.0)
    assert before < speeds.version < before + 20
    assert speeds.ms_per_token("w") == pytest.approx(2.0, rel=WATCHED_STEP)
