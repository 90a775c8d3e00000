"""Which workers may take a request of a client that names a data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.fleet.membership.endpoints import parse_roles
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.placement.candidates import FULL_MAX, CandidateFinder
from ghostcacher_router.signals.stored_objects import StoredObjects
from ghostcacher_router.types import Ask, Endpoint, NoWorker, Outcome, RequestShape, WorkerState
from ghostcacher_simulator.virtual_time import soon
from tests.support.index_parts import FakeClock, make_record

SHAPE = RequestShape("m", False, None, None)
FRONT = Endpoint("10.0.0.7", 8000, False, "")
EMPTY: Mapping[str, int] = {}


def worker(name: str, rank: int | None) -> Worker:
    record = msgspec.structs.replace(make_record(name), data_parallel_rank=rank)
    return Worker(name, FRONT, record, 0.0)


class Fleet:
    """Workers that all serve one model."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = list(workers)
        self.workers = {each.name: each for each in workers}
        self.limited: dict[str, int] = {}

    def serving(self, model: str | None) -> list[Worker]:  # noqa: ARG002 - each serves it
        return self._workers

    def models(self) -> list[str]:
        return ["m"]

    def base_of(self, model: str | None) -> str | None:
        return "m" if model == "lazy" else None

    def limits(self) -> Mapping[str, int]:
        return self.limited

    def lost(self, name: str, outcome: Outcome) -> None: ...

    def doubts(self, name: str) -> bool:  # noqa: ARG002
        return False

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None: ...

    def answered(self, name: str) -> None: ...

    def when_down(self, tell: Callable[[str], None]) -> None: ...

    def when_reported(self, tell: Callable[[Sequence[Worker]], None]) -> None: ...


def no_objects() -> StoredObjects:
    return StoredObjects(None, soon, FakeClock())


def finder_of(fleet: Fleet, stored: StoredObjects, in_flight: Mapping[str, int] = EMPTY) -> CandidateFinder:
    return CandidateFinder(fleet, stored, lambda name: in_flight.get(name, 0))


def found(
    fleet: Fleet, named: bytes | None, exclude: frozenset[str] = frozenset(), in_flight: Mapping[str, int] = EMPTY
) -> list[str]:
    """Return who may take a request, behind one to which nothing of that applies."""
    headers = {} if named is None else {b"x-data-parallel-rank": named}
    ask = Ask("r", "POST", "/v1/completions", SHAPE, headers, exclude)
    finder = finder_of(fleet, no_objects(), in_flight)
    limited, fleet.limited = fleet.limited, {}
    finder.find(Ask("usual", "POST", "/v1/completions", SHAPE, {}))
    fleet.limited = limited
    assert finder.find(ask) == finder.find(ask)
    return [each.name for each in finder.find(ask).workers]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["a-dp0", "a-dp1", "b-dp1", "plain"]),
        (b"1", ["a-dp1", "b-dp1", "plain"]),
        (b"0", ["a-dp0", "plain"]),
        (b"7", ["plain"]),
        (b"one", ["a-dp0", "a-dp1", "b-dp1", "plain"]),
        (b"-1", ["a-dp0", "a-dp1", "b-dp1", "plain"]),
        (b"9" * 5000, ["a-dp0", "a-dp1", "b-dp1", "plain"]),
    ],
)
def test_named_rank_narrows_the_choice(named: bytes | None, expected: list[str]) -> None:
    """To workers of that rank, and those of whose ranks nothing is known; what is no number, engines ignore, too."""
    assert found(Fleet(worker("a-dp0", 0), worker("a-dp1", 1), worker("b-dp1", 1), worker("plain", None)), named) == (
        expected
    )


def test_fleet_that_has_changed_is_looked_at_anew() -> None:
    """Its list is another one then."""
    fleet = Fleet(worker("a", None), worker("b", None))
    finder, ask = finder_of(fleet, no_objects()), Ask("r", "POST", "/v1/completions", SHAPE, {})
    assert [each.name for each in finder.find(ask).workers] == ["a", "b"]
    fleet._workers = [worker("b", None), worker("c", None)]
    assert [each.name for each in finder.find(ask).workers] == ["b", "c"]


def test_rank_that_nobody_has_is_the_clients_error() -> None:
    """An engine would answer the same."""
    with pytest.raises(NoWorker, match=r"rank 2\.") as caught:
        found(Fleet(worker("a-dp0", 0), worker("a-dp1", 1)), b"2")
    assert (caught.value.status, caught.value.kind) == (400, "no_such_rank")


def test_named_rank_that_has_refused_is_not_replaced_by_another() -> None:
    """The client has said which it wants."""
    fleet = Fleet(worker("a-dp0", 0), worker("a-dp1", 1))
    with pytest.raises(NoWorker) as caught:
        found(fleet, b"1", frozenset({"a-dp1"}))
    assert caught.value.status == 503


def test_worker_that_has_just_returned_gets_no_more_than_it_may() -> None:
    """Others take the rest; when none may have one more, all may: a limit never turns a request away."""
    fleet = Fleet(worker("a", None), worker("b", None))
    assert found(fleet, None, frozenset({"b"})) == ["a"]
    fleet.limited = {"a": 2}
    assert found(fleet, None, in_flight={"a": 1, "b": 9}) == ["a", "b"]
    assert found(fleet, None, in_flight={"a": 2, "b": 9}) == ["b"]
    assert found(fleet, None, frozenset({"b"}), in_flight={"a": 2}) == ["a"]
    fleet.limited = {"a": 2, "b": 1}
    assert found(fleet, None, in_flight={"a": 2, "b": 1}) == ["a", "b"]


def test_candidates_are_kept_while_the_same_workers_may_have_no_more() -> None:
    """A list of the fleet is the same object until the fleet changes, and each part of it, too: much is known of it."""
    fleet, in_flight = Fleet(worker("a", None), worker("b", None), worker("c", None)), {"a": 0}
    finder, ask = finder_of(fleet, no_objects(), in_flight), Ask("r", "POST", "/v1/completions", SHAPE, {})
    usual = finder.find(ask)
    assert usual.workers is fleet._workers
    fleet.limited = {"gone": 0, "a": 1}
    assert finder.find(ask).workers is usual.workers
    in_flight["a"] = 1
    without = finder.find(ask)
    assert [each.name for each in without.workers] == ["b", "c"]
    assert finder.find(ask) is without
    in_flight["a"] = 0
    assert finder.find(ask).workers is usual.workers
    in_flight["a"] = 1
    assert finder.find(ask) is without
    for number in range(2 * FULL_MAX):
        fleet.limited = {"a": 1, str(number): 0}
        assert [each.name for each in finder.find(ask).workers] == ["b", "c"]
    assert len(finder._seen["m", False].found) <= FULL_MAX
    fleet.limited = {"a": 1}
    fleet._workers = fleet._workers[:2]
    changed = finder.find(ask)
    assert [each.name for each in changed.workers] == ["b"]
    assert finder.find(ask) is changed


@pytest.mark.parametrize(
    ("holder", "state", "expected"),
    [
        ("b", WorkerState.READY, ["b"]),
        ("b", WorkerState.DRAINING, ["b"]),
        ("b", WorkerState.DOWN, None),
        ("b", WorkerState.JOINING, None),
        ("gone", WorkerState.READY, ["a", "b"]),
        (None, WorkerState.READY, ["a", "b"]),
        ("10.0.0.7:8000", WorkerState.READY, ["b"]),
        ("10.0.0.7:8000", WorkerState.DOWN, None),
        ("10.0.0.7:8001", WorkerState.READY, ["a", "b"]),
    ],
)
def test_stored_object_is_at_its_worker_only(
    holder: str | None, state: WorkerState, expected: list[str] | None
) -> None:
    """Also while that one is drained, and where it was known by its URL only when it made the object. While it does not
    answer the client is to come back; once it is gone, or where nobody knows the object, any worker says that there is
    none."""
    a, b = Worker("a", FRONT._replace(port=7), None, 0.0), worker("b", None)
    b.state = state
    objects = no_objects()
    if holder is not None:
        objects.put("resp_1", holder)
    ask = Ask("r", "GET", "/v1/responses/resp_1", SHAPE._replace(needs_id="resp_1"), {})
    finder = finder_of(Fleet(a, b), objects)
    if expected is None:
        with pytest.raises(NoWorker, match="resp_1") as caught:
            finder.find(ask)
        assert (caught.value.status, caught.value.retry_after_s is not None) == (503, True)
        return
    assert [each.name for each in finder.find(ask).workers] == expected
    if holder == "b":
        with pytest.raises(NoWorker):
            finder.find(ask._replace(exclude=frozenset({"b"})))


@pytest.mark.parametrize(("model", "status"), [("m", 503), ("lazy", 503), ("other", 404)])
def test_model_whose_workers_are_all_away_may_be_asked_for_again(model: str, status: int) -> None:
    """So may an adapter that they would find; one that nobody could ever have does not exist."""
    ask = Ask("r", "POST", "/v1/completions", SHAPE._replace(model=model), {})
    with pytest.raises(NoWorker) as caught:
        finder_of(Fleet(), no_objects()).find(ask)
    assert (caught.value.status, caught.value.retry_after_s is not None) == (status, status == 503)


def in_role(name: str, role: PdRole | None) -> Worker:
    return Worker(name, FRONT, msgspec.structs.replace(make_record(name), pd_role=role), 0.0)


def taking(finder: CandidateFinder, step: PdRole | None) -> list[str]:
    ask = Ask("r", "POST", "/v1/completions", SHAPE, {}, step=step)
    first = finder.find(ask)
    assert finder.find(ask) is first, "it is kept"
    return [each.name for each in first.workers]


def test_step_goes_to_those_that_do_it() -> None:
    """Who only computes prompts answers nobody, and who answers takes whole requests, too."""
    p, d, both = in_role("p", PdRole.PREFILL), in_role("d", PdRole.DECODE), in_role("both", None)
    fleet = Fleet(p, d, both)
    finder = finder_of(fleet, no_objects())
    assert finder.hands_over("m")
    assert finder.hands_over("lazy")
    assert taking(finder, PdRole.PREFILL) == ["p"]
    assert taking(finder, PdRole.DECODE) == taking(finder, None) == ["d", "both"]
    fleet._workers = [p, p]
    assert not finder.hands_over("m")


@pytest.mark.parametrize("role", [PdRole.PREFILL, PdRole.DECODE, None])
def test_workers_of_one_role_take_all_of_a_request(role: PdRole | None) -> None:
    """A fleet that has lost all of one kind still answers: each engine can do both."""
    finder = finder_of(Fleet(in_role("a", role), in_role("b", role)), no_objects())
    assert not finder.hands_over("m")
    assert taking(finder, None) == ["a", "b"]
    with pytest.raises(NoWorker):
        finder.find(Ask("r", "POST", "/v1/completions", SHAPE, {}, step=PdRole.PREFILL))


def test_role_that_the_router_is_told_counts_where_the_worker_says_none() -> None:
    """What an engine says of itself wins."""
    plain = Worker("w", FRONT, None, 0.0, PdRole.PREFILL)
    assert plain.pd_role is PdRole.PREFILL
    plain.renew(make_record("w"))
    assert plain.pd_role is PdRole.PREFILL
    plain.renew(msgspec.structs.replace(make_record("w"), pd_role=PdRole.DECODE))
    assert plain.pd_role is PdRole.DECODE


def test_roles_name_urls() -> None:
    """One server has one role, by whichever of its names; what is none is named."""
    roles = parse_roles(["http://localhost:8000/v1=prefill", "http://b:1=decode"], "roles")
    assert roles == {Endpoint("127.0.0.1", 8000, False, ""): PdRole.PREFILL, Endpoint("b", 1, False, ""): PdRole.DECODE}
    for wrong in ("http://b:1", "http://b:1=both", "b=prefill"):
        with pytest.raises(ConfigError, match="roles: expected"):
            parse_roles([wrong], "roles")


def test_names_that_clients_think_of_are_not_kept() -> None:
    """Of adapters that workers find by themselves there may be any number: what is known of them is their model's."""
    fleet = Fleet(worker("a", None), worker("b", None))
    fleet.base_of = lambda _: "m"  # type: ignore[assignment, method-assign]
    finder = finder_of(fleet, no_objects())
    for number in range(8):
        named = SHAPE._replace(model=f"adapter {number}")
        assert len(finder.find(Ask("r", "POST", "/v1/completions", named, {})).workers) == 2
        finder.hands_over(named.model)
    assert len(finder._seen) + len(finder._roles) <= 1
