"""Waiting for a prefix and pulling it: looked at by columns, and worker by worker."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.placement.assessment import FREE_EVERYWHERE, Assessment
from ghostcacher_router.placement.candidates import Candidates
from ghostcacher_router.signals.prefix_match import NOBODY, Holders, PrefixMatch
from ghostcacher_router.signals.queue_columns import QueueList, QueueView
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.signals.working_sets import Displacement, Displacements
from ghostcacher_router.types import Endpoint, Forecast
from ghostcacher_simulator.text import text_of
from tests.support.index_parts import make_record
from tests.support.routing_sim import prompt_of
from tests.unit.router.signals.test_queue_columns import view_of
from tests.unit.router.signals.test_queue_estimate import report

NOW = 100.0
TOKENS = 4_000
PROMPT = prompt_of(text_of("document", TOKENS))
COUNTS = st.sampled_from([0, 0, 1, 900, 1_000, 2_500, 3_999, 4_000, 9_000])


class Case(NamedTuple):
    """One worker."""

    namespace: str
    reports: bool
    waiting: int
    """Tokens that it reports as waiting."""
    sent: int
    """Tokens to be computed of the request that it was sent since; 0: it was sent none."""
    pull_ms: float
    """Of that request's pull."""
    pull_bytes_per_s: float
    local: int
    price: Displacement | None
    """None: the usual one."""
    adapter_ms: float


CASES = st.builds(
    Case,
    namespace=st.sampled_from("aab"),
    reports=st.sampled_from([True, True, True, False]),
    waiting=COUNTS,
    sent=COUNTS,
    pull_ms=st.sampled_from([0.0, 400.0]),
    pull_bytes_per_s=st.sampled_from([0.0, 1e5, 1e6, 1e9]),
    local=COUNTS,
    price=st.none() | st.builds(Displacement, st.floats(0, 2), st.floats(0, 20)),
    adapter_ms=st.sampled_from([0.0, 700.0]),
)


def assessments(cases: list[Case], pullable: int, *, adapter: bool) -> tuple[Assessment, Assessment]:
    """Return the same assessment of workers `w0`, `w1`, ... twice: each for itself, and as columns."""
    queues, workers = QueueEstimator(), []
    for number, case in enumerate(cases):
        worker = Worker(
            f"w{number}", Endpoint("h", 1, False, ""), make_record(f"w{number}", namespace=case.namespace), NOW
        )
        if case.reports:
            report(worker, NOW - 0.1, case.waiting)
            assert worker.load is not None
            load = replace(worker.load.load, pull_bytes_per_s=case.pull_bytes_per_s)
            worker.load = worker.load._replace(load=load)
        if case.sent:
            queues.reserve(worker.name, case.sent, case.sent, NOW - 0.05, pull_ms=case.pull_ms)
        workers.append(worker)
    prices = {f"w{number}": case.price for number, case in enumerate(cases) if case.price is not None}
    # Somebody may have a copy who is no candidate.
    others = prices | {"gone": Displacement(9.0)}
    displacement = Displacements(Displacement(0.1), others) if prices else FREE_EVERYWHERE
    local = {f"w{number}": case.local for number, case in enumerate(cases) if case.local}
    sent = {"w1": 1_500} if pullable else {}
    match = PrefixMatch(PROMPT, TOKENS, Holders(local) if local else NOBODY, sent, {"a": pullable}, {}, True)
    candidates = Candidates(workers, tuple(dict.fromkeys(worker.namespace for worker in workers)), True, None)
    adapter_ms = [case.adapter_ms for case in cases] if adapter else None
    few, view = queues.at(workers, NOW), view_of(queues, workers, NOW)
    assert isinstance(few, QueueList)
    assert isinstance(view, QueueView)
    one, two = (Assessment(candidates, match, found, adapter_ms, NOW, displacement) for found in (few, view))
    return one, two


@given(
    st.lists(CASES, min_size=1, max_size=6),
    COUNTS,
    COUNTS,
    st.sampled_from([0.0, 30.0, 500.0, 1e4]),
    st.sampled_from(["w0", "w2", "gone"]),
    st.booleans(),
)
def test_columns_find_what_forecasts_find(
    cases: list[Case], pullable: int, tokens: int, ready_ms: float, without: str, adapter: bool
) -> None:
    """The same forecast, of the same worker, to the last bit, or both find nobody; and the same without a lock."""
    one, two = assessments(cases, pullable, adapter=adapter)
    assert one.ranking().totals() == two.ranking().totals()
    found = two.best_pull("a", tokens, ready_ms, without)
    assert found == one.best_pull("a", tokens, ready_ms, without)
    assert found is None or _is_allowed(found, cases, tokens, without)


def _is_allowed(found: Forecast, cases: list[Case], tokens: int, without: str) -> bool:
    case = cases[int(found.worker[1:])]
    return found.worker != without and case.namespace == "a" and found.cached_tokens >= min(tokens, TOKENS - 1)


CASE = Case("a", True, 0, 0, 0.0, 1e9, 0, None, 0.0)


def test_pull_is_of_who_is_free_when_the_prefix_is_there() -> None:
    """Not of its owner, of another namespace or of who computes as fast. A queue that is over by then is no delay."""
    cases = [CASE, CASE._replace(namespace="b"), CASE._replace(pull_bytes_per_s=1e5), CASE._replace(waiting=900), CASE]
    for found in assessments(cases, 0, adapter=False):
        assert _worker(found.best_pull("a", 3_000, 0.0, "w0")) == "w4"
        assert _worker(found.best_pull("a", 3_000, 0.0, "w4")) == "w0"
        found.displacement = _dear("w4")
        assert _worker(found.best_pull("a", 3_000, 2_000.0, "w0")) == "w3"
    for found in assessments(cases, 3_900, adapter=False):
        pulled = found.best_pull("a", 3_000, 0.0, "w0")
        assert pulled is not None
        assert pulled.pulled_tokens == 3_900, "what others have already is pulled, too"
    for found in assessments(cases[:3], 0, adapter=False):
        assert found.best_pull("a", 3_000, 0.0, "w0") is None


def _dear(name: str) -> Displacements:
    return Displacements(Displacement(0.0), {name: Displacement(1.0)})


def _worker(found: Forecast | None) -> str | None:
    return None if found is None else found.worker
