"""What a request does that encounters ghost locks of workers that cannot share with each other."""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.ghostlock.followers import (
    Action,
    Choice,
    encountered_locks,
    follow_any,
    recompute_forecast,
)
from ghostcacher_router.ghostlock.ghost_lock import EncounteredLock, GhostLock
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.placement.assessment import FREE_EVERYWHERE, Assessment
from ghostcacher_router.placement.candidates import Candidates
from ghostcacher_router.signals.prefix_match import NOBODY, PrefixMatch
from ghostcacher_router.signals.queue_columns import ListedQueues, QueueList
from ghostcacher_router.signals.ranking import Draw, ListRanking
from ghostcacher_router.signals.ttft_forecast import NO_MATCH, Engine, forecast
from ghostcacher_router.signals.worker_queue import QueueEstimate, WorkerQueue
from ghostcacher_router.types import Endpoint, Forecast
from ghostcacher_simulator.text import text_of
from tests.support.index_parts import make_record
from tests.support.routing_sim import prompt_of

NOW = 100.0
TOKENS = 8000
MS_PER_TOKEN = 0.1
PROMPT = prompt_of(text_of("document", TOKENS))
NAMES = ("v", "s")


def worker(name: str, *, shares_prefill: bool) -> Worker:
    record = replace(make_record(name, namespace=name * 32), shares_prefill=shares_prefill)
    return Worker(name, Endpoint("127.0.0.1", 1, False, ""), record, NOW)


def encountered(name: str, ready_at: float) -> EncounteredLock:
    digests = PROMPT.digests
    lock = GhostLock(digests, digests[-1:], name, taken_at=0.0, ready_at=ready_at, ours=False)
    return EncounteredLock(name * 32, lock, len(digests) - 1)


def decide(ready_s: dict[str, float], *, budget_s: float = 1.0, queue_ms: float = 0.0) -> tuple[str, Action]:
    """Return whose lock is honoured, and how. ready_s: when each owner expects to be done; queue_ms: of each."""
    match = PrefixMatch(PROMPT, TOKENS, NOBODY, {}, {}, {}, True)
    engines = {name: Engine(name, MS_PER_TOKEN, 0.0, 0.0, None, 0.0, None) for name in (*NAMES, "other")}
    workers = [worker(name, shares_prefill=name == "v") for name in NAMES]
    listed = ListedQueues(workers, [WorkerQueue(slot) for slot in range(len(NAMES))])
    queues = QueueList(listed, [QueueEstimate(engines[name], queue_ms, reported=True) for name in NAMES], True)
    candidates = Candidates(workers, tuple(one.namespace for one in workers), True, None)
    found = Assessment(candidates, match, queues, None, NOW, FREE_EVERYWHERE)
    recompute = forecast(engines["other"], 0.0, TOKENS, NO_MATCH)
    locks = [encountered(name, NOW + seconds) for name, seconds in ready_s.items()]
    lock, step = follow_any(Choice(match, found, recompute, NOW, NOW + budget_s), locks)
    return lock.worker, step.action


@pytest.mark.parametrize("order", [("v", "s"), ("s", "v")])
def test_lock_that_is_done_sooner_is_followed(order: tuple[str, str]) -> None:
    """Whichever was encountered first; at an engine that shares what it computes at once, at another after a wait."""
    assert decide({name: {"v": 0.1, "s": 0.6}[name] for name in order}) == ("v", Action.FOLLOW)
    assert decide({name: {"v": 0.6, "s": 0.1}[name] for name in order}) == ("s", Action.WAIT)


def test_lock_that_is_not_worth_following_leaves_the_other() -> None:
    """Who is done too late for this request's wait budget, where only waiting helps, is not waited for."""
    assert decide({"s": 1.1, "v": 1.15}) == ("v", Action.FOLLOW)


def test_no_lock_worth_following_is_computed_elsewhere() -> None:
    """Owners whose queues make it longer than computing again, by more than half, are left alone."""
    assert decide({"v": 0.1, "s": 0.1}, queue_ms=2000.0)[1] is Action.COMPUTE


def test_overdue_lock_is_taken_over_by_who_has_no_wait_budget_left() -> None:
    """And by nobody else; a lock that is not overdue is left in peace."""
    assert decide({"s": 0.5, "v": -0.1}, budget_s=0.0, queue_ms=2000.0) == ("v", Action.TAKE_OVER)
    assert decide({"s": -0.1}, budget_s=0.05)[1] is Action.WAIT


@pytest.mark.parametrize(("tokens_min", "warm", "honoured"), [(TOKENS, -1, 1), (TOKENS + 1, -1, 0), (TOKENS, 1, 0)])
def test_lock_that_covers_little_of_what_is_missing_is_not_honoured(tokens_min: int, warm: int, honoured: int) -> None:
    """What its namespace has already does not count; plain engines have no locks."""

    async def never(_: object, /) -> None:
        raise AssertionError("no store is asked")

    locks = SingleFlight(None, never, lambda: NOW, router="r", clock_offset=float, count=lambda _: None)  # type: ignore[arg-type]
    assert locks.take("n", PROMPT, -1, "v", NOW) is not None
    match = PrefixMatch(PROMPT, TOKENS, NOBODY, {}, {}, {"n": warm}, True)
    assert len(encountered_locks(locks, match, ("n", None), tokens_min)) == honoured


def ranking(forecasts: list[Forecast]) -> ListRanking:
    workers = [worker(found.worker, shares_prefill=True) for found in forecasts]
    places = {found.worker: place for place, found in enumerate(forecasts)}
    return ListRanking([found.total_ms for found in forecasts], workers, places, forecasts.__getitem__)


def test_prefix_is_computed_again_away_from_its_owners() -> None:
    """Their forecasts count what they compute as theirs; only where all are owners is one of them good enough."""
    forecasts = [
        Forecast(name, ms, ms, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 1)
        for name, ms in (("v", 1.0), ("s", 2.0), ("o", 9.0))
    ]
    locks, draw = [encountered(name, NOW) for name in NAMES], Draw(Random(1), lambda _: 0.0)
    assert recompute_forecast(ranking(forecasts), locks, forecasts[0], draw).worker == "o"
    assert recompute_forecast(ranking(forecasts[:2]), locks, forecasts[0], draw).worker == "s"
    assert recompute_forecast(ranking(forecasts[:1]), locks, forecasts[0], draw).worker == "v"
