"""The forecast: what it must obey whatever the numbers are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.signals.ttft_forecast import KV_FULL_MS, Engine, WorkerMatch, forecast
from ghostcacher_router.signals.working_sets import Displacement
from ghostcacher_router.types import Forecast

TOKENS = st.integers(1, 200_000)
MS = st.floats(0, 1e5)
ENGINES = st.builds(
    Engine,
    name=st.just("w"),
    ms_per_token=st.floats(0.001, 10),
    step_ms=st.floats(0, 100),
    decode_ms=st.floats(0, 1000),
    kv_free_tokens=st.none() | st.integers(0, 400_000),
    pull_fixed_ms=st.floats(0, 100),
    pull_ms_per_token=st.none() | st.floats(0, 10),
)
MATCHES = st.builds(WorkerMatch, local=st.integers(0, 250_000), pullable=st.integers(0, 250_000), ready_ms=MS)
ENGINE = Engine("w", 0.1, 0.0, 0.0, None, 5.0, 0.01)


def least(total: float, worker: str = "w") -> Forecast:
    return Forecast(worker, total, total, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 1)


@given(ENGINES, MS, TOKENS, MATCHES)
def test_terms_add_up(engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch) -> None:
    """The total is the sum of its terms, none is negative, and tokens add up to the prompt's."""
    found = forecast(engine, queue_ms, tokens, match)
    terms = [found.queue_ms, found.wait_ms, found.pull_ms, found.compute_ms, found.penalty_ms]
    assert found.ttft_ms == pytest.approx(sum(terms), abs=1e-6)
    assert found.total_ms == pytest.approx(sum(terms) + found.decode_ms + found.others_ms)
    assert min(*terms, found.local_tokens, found.pulled_tokens) >= 0
    assert found.local_tokens + found.pulled_tokens + found.computed_tokens == tokens
    assert found.computed_tokens >= 1
    assert found.local_tokens <= match.local


@given(ENGINES, MS, MS, TOKENS, MATCHES)
def test_longer_queue_is_never_better(engine: Engine, one: float, more: float, tokens: int, match: WorkerMatch) -> None:
    """What is ahead delays, or at best hides behind another wait."""
    assert forecast(engine, one + more, tokens, match).total_ms >= forecast(engine, one, tokens, match).total_ms - 1e-6


@given(ENGINES, MS, TOKENS, MATCHES, st.integers(0, 100_000))
def test_more_local_is_never_worse(engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch, more: int) -> None:
    """A worker that holds more of the prompt never loses by it."""
    better = forecast(engine, queue_ms, tokens, match._replace(local=match.local + more))
    worse = forecast(engine, queue_ms, tokens, match)
    assert better.total_ms <= worse.total_ms * (1 + 1e-9) + 1e-6


@given(ENGINES, MS, TOKENS, MATCHES, st.integers(0, 100_000))
def test_more_pullable_is_never_worse(
    engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch, more: int
) -> None:
    """What a peer has now is used when it helps, and only then."""
    match = match._replace(ready_ms=0.0)
    better = forecast(engine, queue_ms, tokens, match._replace(pullable=match.pullable + more))
    worse = forecast(engine, queue_ms, tokens, match)
    assert better.total_ms <= worse.total_ms * (1 + 1e-9) + 1e-6


@pytest.mark.parametrize("field", ["ms_per_token", "step_ms", "pull_fixed_ms", "pull_ms_per_token"])
@given(ENGINES, MS, TOKENS, MATCHES, st.floats(0, 10))
def test_slower_is_never_better(
    field: str, engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch, more: float
) -> None:
    """Every rate and every fixed cost counts against a worker."""
    value = getattr(engine, field)
    slower = engine if value is None else engine._replace(**{field: value + more})
    before, after = (forecast(one, queue_ms, tokens, match).total_ms for one in (engine, slower))
    assert after >= before * (1 - 1e-9) - 1e-6


@given(ENGINES, MS, TOKENS, MATCHES, st.integers(0, 100_000))
def test_less_free_memory_is_never_better(
    engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch, less: int
) -> None:
    """A prompt that does not fit pays, at most what a full memory costs."""
    free = engine.kv_free_tokens or 0
    full = forecast(engine._replace(kv_free_tokens=max(0, free - less)), queue_ms, tokens, match)
    assert full.total_ms >= forecast(engine._replace(kv_free_tokens=free), queue_ms, tokens, match).total_ms - 1e-6
    assert full.penalty_ms <= KV_FULL_MS


@given(ENGINES, MS, TOKENS, MATCHES, st.floats(0, 50), st.builds(Displacement, st.floats(0, 50), st.floats(0, 50)))
def test_price_for_others_is_no_time_of_its_own(
    engine: Engine, queue_ms: float, tokens: int, match: WorkerMatch, delayed: float, displacement: Displacement
) -> None:
    """What others lose is added to what is compared, and changes nothing in the time to first token."""
    alone = forecast(engine, queue_ms, tokens, match)
    priced = forecast(engine, queue_ms, tokens, match, delayed, displacement)
    assert alone.others_ms == 0.0
    assert priced.others_ms >= 0.0
    assert priced.ttft_ms == pytest.approx(alone.ttft_ms, abs=1e-5)
    assert priced._replace(total_ms=0.0, others_ms=0.0) == alone._replace(total_ms=0.0, others_ms=0.0)


def test_price_is_of_what_is_computed_and_of_what_is_brought() -> None:
    """Who waits behind waits for what is computed; what is brought, computed or pulled, evicts as much."""
    pulled, local, half = WorkerMatch(0, 1000, 0.0), WorkerMatch(1000, 0, 0.0), Displacement(0.5)
    assert forecast(ENGINE, 0.0, 2000, pulled, 3.0).others_ms == pytest.approx(3.0 * 100.0)
    assert forecast(ENGINE, 0.0, 2000, pulled, 0.0, half).others_ms == pytest.approx(0.5 * 200.0)
    assert forecast(ENGINE, 0.0, 2000, local, 0.0, half).others_ms == pytest.approx(0.5 * 100.0)


def test_price_of_a_crowded_cache_is_of_the_whole_prompt() -> None:
    """What is there already takes as much room as what is brought."""
    local, crowded = WorkerMatch(1000, 0, 0.0), Displacement(0.0, 3.0)
    assert forecast(ENGINE, 0.0, 2000, local, 0.0, crowded).others_ms == pytest.approx(3.0 * 200.0)


def test_pulls_only_what_is_faster_pulled() -> None:
    """Ten tokens are computed in 1 ms and pulled in 5; a thousand are pulled in 15 ms and computed in 100."""
    assert forecast(ENGINE, 0.0, 2000, WorkerMatch(0, 10, 0.0)).pulled_tokens == 0
    found = forecast(ENGINE, 0.0, 2000, WorkerMatch(0, 1000, 0.0))
    assert (found.pulled_tokens, found.pull_ms, found.compute_ms) == (1000, 15.0, 100.0)


def test_local_is_not_pulled() -> None:
    """Only what is missing is pulled."""
    assert forecast(ENGINE, 0.0, 2000, WorkerMatch(400, 1400, 0.0)).pulled_tokens == 1000


def test_wait_runs_beside_the_queue() -> None:
    """What is ready in 30 ms costs 10 ms more behind a queue of 20, and nothing behind one of 50."""
    assert forecast(ENGINE, 20.0, 2000, WorkerMatch(1000, 0, 30.0)).wait_ms == pytest.approx(10.0)
    assert forecast(ENGINE, 50.0, 2000, WorkerMatch(1000, 0, 30.0)).wait_ms == 0.0


def test_pull_waits_until_the_link_is_free() -> None:
    """Beside the queue; where that takes longer than computing, nothing is pulled, and nothing waits."""
    match = WorkerMatch(0, 1000, 0.0)
    assert forecast(ENGINE, 0.0, 2000, match, link_ms=30.0).wait_ms == pytest.approx(30.0)
    assert forecast(ENGINE, 50.0, 2000, match, link_ms=30.0).wait_ms == 0.0
    busy = forecast(ENGINE, 0.0, 2000, match, link_ms=500.0)
    assert (busy.pulled_tokens, busy.wait_ms) == (0, 0.0)
    assert forecast(ENGINE, 0.0, 2000, WorkerMatch(1000, 0, 0.0), link_ms=500.0).wait_ms == 0.0
