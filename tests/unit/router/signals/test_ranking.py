"""What is chosen of many forecasts: by columns the same as one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.signals.queue_columns import NO_PULL
from ghostcacher_router.signals.ranking import ColumnRanking, Draw, ListRanking, Ranking
from ghostcacher_router.signals.ttft_forecast import (
    Column,
    Engine,
    EngineColumns,
    MatchColumns,
    WorkerMatch,
    forecast,
    totals,
    totals_of_few,
)
from ghostcacher_router.signals.worker_queue import QueueEstimate
from ghostcacher_router.signals.working_sets import FREE, Displacement
from ghostcacher_router.types import Forecast
from tests.unit.router.signals.test_queue_estimate import make_worker
from tests.unit.router.signals.test_ttft_forecast import ENGINES, MS, least


class Case(NamedTuple):
    """One worker as a request finds it."""

    engine: Engine
    queue_ms: float
    local: int
    pullable: int
    delayed: int
    displacement: Displacement
    link_ms: float


CASES = st.builds(
    Case,
    ENGINES,
    MS,
    st.sampled_from([0, 0, 1, 500, 30_000, 250_000]),
    st.sampled_from([0, 0, 500, 30_000, 250_000]),
    st.integers(0, 9),
    st.builds(Displacement, st.floats(0, 2), st.floats(0, 20)),
    st.just(0.0) | MS,
)


def columns_of(engines: list[Engine]) -> EngineColumns:
    free = [inf if one.kv_free_tokens is None else one.kv_free_tokens for one in engines]
    pulls = [NO_PULL if one.pull_ms_per_token is None else one.pull_ms_per_token for one in engines]
    rates = [[one.ms_per_token, one.step_ms, one.decode_ms, one.pull_fixed_ms] for one in engines]
    ms_per_token, step_ms, decode_ms, pull_fixed_ms = np.array(rates).T
    return EngineColumns(ms_per_token, step_ms, decode_ms, np.array(free, float), pull_fixed_ms, np.array(pulls))


READY = st.just(0.0) | MS


@given(st.lists(CASES, min_size=1, max_size=9), st.integers(1, 200_000), READY, st.none() | st.integers(0, 200_000))
def test_columns_say_what_forecasts_say(
    cases: list[Case], tokens: int, ready_ms: float, computed_max: int | None
) -> None:
    """To the last bit, so that a choice by columns is the choice by forecasts: of the least, and of equal ones."""
    found = [
        forecast(one.engine, one.queue_ms, tokens, WorkerMatch(one.local, one.pullable, ready_ms), *one[4:])
        for one in cases
    ]
    _, queue_ms, local, pullable, delayed, displacements, link_ms = zip(*cases, strict=True)
    brought, kept = np.array(displacements, float).T
    total_ms = totals(
        columns_of([one.engine for one in cases]),
        np.array(queue_ms, float),
        tokens,
        MatchColumns(np.array(local, float), np.array(pullable, float), ready_ms),
        delayed=np.array(delayed, float),
        link_ms=np.array(link_ms, float),
        brought=brought,
        kept=kept,
        computed_max=computed_max,
    )
    assert total_ms.tolist() == [
        one.total_ms if computed_max is None or one.computed_tokens <= computed_max else inf for one in found
    ]


@given(st.lists(CASES, min_size=1, max_size=9), st.integers(1, 200_000))
def test_lists_say_what_forecasts_say(cases: list[Case], tokens: int) -> None:
    """To the last bit, too."""
    found = [
        forecast(one.engine, one.queue_ms, tokens, WorkerMatch(one.local, one.pullable, 0.0), *one[4:]) for one in cases
    ]
    _, _, local, pullable, _, displacements, _ = zip(*cases, strict=True)
    queues = []
    for one in cases:
        queues.append(QueueEstimate(one.engine, one.queue_ms, True))
        queues[-1].prefilling, queues[-1].link_ms = one.delayed, one.link_ms
    usual = [
        forecast(
            one.engine, one.queue_ms, tokens, WorkerMatch(one.local, one.pullable, 0.0), one.delayed, FREE, one.link_ms
        )
        for one in cases
    ]
    assert totals_of_few(queues, tokens, local, pullable, FREE, displacements) == [one.total_ms for one in found]
    assert totals_of_few(queues, tokens, local, pullable, FREE) == [one.total_ms for one in usual]


ONE_FOR_ALL = st.builds(Displacement, st.just(0.0) | st.floats(0, 2), st.just(0.0) | st.floats(0, 20))


@given(
    st.lists(CASES, min_size=1, max_size=9),
    st.integers(1, 200_000),
    st.sampled_from([0, 500, 30_000, 250_000]),
    ONE_FOR_ALL,
    READY,
)
def test_what_is_alike_at_all_workers_may_be_a_number(
    cases: list[Case], tokens: int, pullable: int, displacement: Displacement, ready_ms: float
) -> None:
    """Columns say the same to the last bit, though they leave out what adds nothing."""
    alike = [one._replace(pullable=pullable, displacement=displacement, link_ms=0.0) for one in cases]
    _, queue_ms, local, _, delayed, _, _ = zip(*alike, strict=True)

    def total_ms(local: Column | float, computed_max: int | None = None) -> list[float]:
        found: list[float] = totals(
            columns_of([one.engine for one in alike]),
            np.array(queue_ms, float),
            tokens,
            MatchColumns(local, float(pullable), ready_ms),
            delayed=np.array(delayed, float),
            link_ms=0.0,
            brought=displacement.brought,
            kept=displacement.kept,
            computed_max=computed_max,
        ).tolist()
        return found

    def forecasts(local: Sequence[int]) -> list[float]:
        return [
            forecast(one.engine, one.queue_ms, tokens, WorkerMatch(here, pullable, ready_ms), *one[4:]).total_ms
            for one, here in zip(alike, local, strict=True)
        ]

    assert total_ms(np.array(local, float)) == forecasts(local)
    nobody = [0] * len(cases)
    assert total_ms(0.0) == forecasts(nobody)
    assert total_ms(0.0, 500) == total_ms(np.array(nobody, float), 500)


FORECASTS = st.lists(st.floats(0, 1e5) | st.sampled_from([10.0, 10.05, 10.4, 11.0]), min_size=1, max_size=20)


@given(FORECASTS, st.sets(st.integers(0, 20)), st.integers(0, 9))
def test_both_rankings_choose_alike(total_ms: list[float], without: set[int], seed: int) -> None:
    """The same worker, of equal ones by the same draw, whoever is left out."""
    one, two = rankings(total_ms)
    left_out = [f"w{number}" for number in without]
    assert one.best(draw(seed)) == two.best(draw(seed)) is not None
    assert one.best(draw(seed), left_out) == two.best(draw(seed), left_out)
    assert one.totals() == two.totals() == total_ms
    assert one.forecast_at(0) == two.forecast_at(0)
    assert one.at("w0") == two.at("w0") is not None
    assert one.at("gone") is two.at("gone") is None


@given(st.lists(st.tuples(st.floats(0, 1e5), st.sampled_from([0.0, 0.0, 15.0, 250.0])), min_size=1), st.integers(0, 9))
def test_both_rankings_choose_alike_with_prices(cases: list[tuple[float, float]], seed: int) -> None:
    """What is least with its price; without a difference between them prices change nothing."""
    total_ms, prices = (list(column) for column in zip(*cases, strict=True))
    one, two = rankings(total_ms)
    place = one.best_place(draw(seed), prices)
    assert place == two.best_place(draw(seed), np.array(prices))
    assert total_ms[place] + prices[place] <= 1.01 * min(map(sum, cases)) + 0.5
    place = one.best_place(draw(seed))
    assert place == one.best_place(draw(seed), [0.0] * len(cases)) == two.best_place(draw(seed))
    assert one.forecast_at(place) == one.best(draw(seed))


def rankings(total_ms: list[float]) -> tuple[ListRanking, ColumnRanking]:
    forecasts = [least(total, f"w{number}") for number, total in enumerate(total_ms)]
    places = {found.worker: place for place, found in enumerate(forecasts)}
    workers = [make_worker(found.worker) for found in forecasts]
    list_ranking = ListRanking(total_ms, workers, places, forecasts.__getitem__)
    return list_ranking, ColumnRanking(np.array(total_ms), workers, places, forecasts.__getitem__)


@pytest.mark.parametrize("kind", [0, 1])
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=70), st.integers())
def test_choice_is_among_the_least(kind: int, total_ms: list[float], seed: int) -> None:
    """What is chosen is never worse than the least by more than forecasts can tell apart."""
    found = best(rankings(total_ms)[kind], draw(seed))
    assert found.total_ms <= min(total_ms) * 1.01 + 0.5


@pytest.mark.parametrize("kind", [0, 1])
def test_ties_break_at_random(kind: int) -> None:
    """Equal workers get equal shares, one that is clearly worse gets none; where nobody is left, nobody is chosen."""
    ranking, drawn = rankings([100.0, 100.0, 100.9, 100.0, 102.0])[kind], draw(1)
    picks = [best(ranking, drawn).worker for _ in range(400)]
    assert all(70 < picks.count(f"w{number}") < 130 for number in range(4))
    assert ranking.best(drawn, [f"w{number}" for number in range(5)]) is None


@pytest.mark.parametrize("kind", [0, 1])
def test_who_was_sent_less_of_late_is_taken_of_two(kind: int) -> None:
    """So nobody falls behind, and whoever was sent the most is hardly ever taken; who is better is, whatever it got."""
    sent = Counter({"w0": 30, "w1": 20, "w2": 10, "w3": 1000})
    drawn = Draw(Random(1), sent.__getitem__)
    for _ in range(60):
        sent[best(rankings([100.0] * 4)[kind], drawn).worker] += 1
    assert sent["w0"] <= sent["w2"] + 30
    assert max(sent["w0"], sent["w1"], sent["w2"]) <= 48
    assert sent["w3"] <= 1010
    assert best(rankings([100.0, 100.0, 100.0, 50.0])[kind], drawn).worker == "w3"


def best(ranking: Ranking, drawn: Draw) -> Forecast:
    found = ranking.best(drawn)
    assert found is not None
    return found


def draw(seed: int) -> Draw:
    return Draw(Random(seed), lambda _: 0.0)
