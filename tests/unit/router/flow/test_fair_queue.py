"""The order of waiting requests: strict bands, shares of work among tenants, first come first served within one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_router.flow.displacement import DISPLACED_MAX, Bounds
from ghostcacher_router.flow.fair_queue import OTHERS, TENANTS_MAX, FairQueue
from ghostcacher_router.flow.waiting import Waiting

ROOMY = Bounds(1 << 20, 1 << 40)


def waiting(
    tenant: str = "a", *, band: int = 0, work: float = 1.0, model: str | None = "m", size: int = 1
) -> Waiting[None]:
    return Waiting(None, band=band, tenant=tenant, needs=model, work=work, size=size)


def filled(*ones: Waiting[None], bounds: Bounds = ROOMY, weights: dict[str, float] | None = None) -> FairQueue[None]:
    queue: FairQueue[None] = FairQueue(bounds, weights)
    for one in ones:
        assert not queue.push(one)
    return queue


def anywhere(_: str | None) -> bool:
    return True


def turns(queue: FairQueue[None], count: int = 1 << 20) -> list[Waiting[None]]:
    found: list[Waiting[None]] = []
    while len(found) < count and (one := queue.pop(anywhere)) is not None:
        queue.check_invariants()
        found.append(one)
    return found


def test_lower_band_goes_first_whenever_it_came() -> None:
    late, urgent = waiting(band=5), waiting(band=-5)
    assert turns(filled(late, waiting(band=7), urgent))[:2] == [urgent, late]


def test_one_tenant_goes_in_the_order_in_which_it_came() -> None:
    """Whatever each of its requests costs."""
    ones = [waiting(work=work) for work in (5.0, 1.0, 9.0, 2.0)]
    assert turns(filled(*ones)) == ones


def test_tenant_that_comes_anew_is_not_behind_what_another_has_waiting() -> None:
    flood = [waiting("flood") for _ in range(100)]
    queue = filled(*flood)
    turns(queue, 10)
    new = waiting("new")
    queue.push(new)
    assert new in turns(queue, 2)


def test_tenant_that_was_idle_has_saved_nothing_up() -> None:
    """It gets its share from now on, and no burst for the time before."""
    queue = filled(*(waiting("steady") for _ in range(200)), waiting("idle"))
    turns(queue, 100)
    for _ in range(50):
        queue.push(waiting("idle"))
    shares = Counter(one.tenant for one in turns(queue, 40))
    assert abs(shares["idle"] - shares["steady"]) <= 1


def test_weights_share_the_work_and_not_the_requests() -> None:
    """Tenant `a` has three times the share, and requests that cost twice as much."""
    ones = [waiting("a", work=2.0) for _ in range(100)] + [waiting("b", work=1.0) for _ in range(100)]
    shares = Counter(one.tenant for one in turns(filled(*ones, weights={"a": 3.0}), 100))
    assert shares == {"a": 60, "b": 40}


def test_request_without_room_for_its_model_is_passed_over() -> None:
    """It keeps its place, and so does its tenant."""
    stuck, other = waiting("a", model="full"), waiting("b", model="m")
    queue = filled(stuck, other)
    asked: list[str | None] = []

    def room(model: str | None) -> bool:
        asked.append(model)
        return model != "full"

    assert [queue.pop(room), queue.pop(room), len(queue)] == [other, None, 1]
    assert asked == ["full", "m", "full"]
    assert turns(queue) == [stuck]


def test_worse_band_goes_where_the_model_of_a_better_one_is_full() -> None:
    other = waiting(band=9, model="m")
    assert filled(waiting(band=0, model="full"), other).pop(lambda model: model == "m") is other


def test_removed_request_costs_its_tenant_nothing() -> None:
    left = [waiting("a", work=1000.0) for _ in range(5)]
    mine, theirs = waiting("a"), waiting("b")
    queue = filled(*left, mine, theirs)
    assert all(queue.remove(one) for one in left)
    assert not queue.remove(left[0])
    queue.check_invariants()
    assert turns(queue) == [mine, theirs]


def test_clients_that_leave_leave_nothing_behind() -> None:
    """Their turn never comes, while others of their band go on waiting."""
    queue = filled(waiting("stays"))
    for number in range(100):
        one = waiting(f"t{number}")
        queue.push(one)
        queue.remove(one)
        queue.check_invariants()


def test_full_queue_refuses_who_has_as_much_in_it_as_anybody() -> None:
    queue = filled(waiting("a"), waiting("b"), bounds=Bounds(2, 100))
    one = waiting("a")
    assert list(queue.push(one)) == [one]
    assert len(queue) == 2


def test_full_queue_takes_from_the_tenant_that_floods_it() -> None:
    """The last of its requests: those before it have waited longer."""
    flood = [waiting("flood") for _ in range(3)]
    queue = filled(*flood, bounds=Bounds(3, 100))
    first, second, third = (waiting("small") for _ in range(3))
    assert [*queue.push(first), *queue.push(second), *queue.push(third)] == [flood[-1], second, third]
    queue.check_invariants()


def test_full_queue_takes_from_the_worst_band_for_a_better_one() -> None:
    low = [waiting("a", band=3), waiting("b", band=3)]
    queue = filled(*low, bounds=Bounds(2, 100))
    urgent, lower = waiting("a", band=1), waiting("c", band=4)
    (lost,) = queue.push(urgent)
    assert lost in low
    assert list(queue.push(lower)) == [lower]


def test_bytes_are_bounded_too() -> None:
    """Of one band nobody gives way to who then held more."""
    short = [waiting("a", size=4) for _ in range(2)]
    queue = filled(*short, bounds=Bounds(10, 10))
    long = waiting("b", size=9)
    assert list(queue.push(long)) == [long]
    assert list(queue.push(waiting("b", size=3))) == [short[-1]]
    assert queue.size == 7
    queue.check_invariants()


def test_long_request_of_a_better_band_takes_as_many_places_as_it_needs() -> None:
    """From the worst band on, of whoever holds most there, the last first; and no more than that."""
    worst = [waiting("a", band=9, size=2), waiting("b", band=9, size=3), waiting("b", band=9, size=3)]
    worse = [waiting("a", band=5, size=2) for _ in range(3)]
    queue = filled(*worst, *worse, bounds=Bounds(10, 14))
    assert list(queue.push(waiting("c", size=7))) == [worst[2], worst[1], worst[0]]
    assert list(queue.push(waiting("c", size=2))) == [worse[2]]
    assert len(queue) == 4
    queue.check_invariants()


def test_request_for_which_not_enough_can_go_takes_nothing() -> None:
    queue = filled(waiting(band=5, size=4), waiting(band=0, size=4), bounds=Bounds(10, 10))
    one = waiting(band=3, size=7)
    assert list(queue.push(one)) == [one]
    assert len(queue) == 2


def test_one_request_takes_no_more_places_than_a_bound() -> None:
    low = [waiting(band=5) for _ in range(DISPLACED_MAX + 1)]
    queue = filled(*low, bounds=Bounds(1 << 20, len(low)))
    one = waiting(size=len(low))
    assert list(queue.push(one)) == [one]
    assert len(queue.push(waiting(size=len(low) - 1))) == DISPLACED_MAX


def test_full_queue_of_requests_and_bytes_makes_room_for_both() -> None:
    """The place comes from who has most requests, and the bytes from who has most of these."""
    many, large = [waiting("many", band=5) for _ in range(3)], waiting("large", band=5, size=7)
    queue = filled(*many, large, bounds=Bounds(4, 10))
    assert list(queue.push(waiting(size=4))) == [many[-1], large]
    queue.check_invariants()


def test_what_was_accepted_before_waits_beyond_the_bounds() -> None:
    queue = filled(waiting(), bounds=Bounds(1, 1))
    assert not queue.push(waiting(band=-9), bounded=False)
    assert len(queue) == 2


def test_made_up_tenants_share_one_place_beyond_a_number() -> None:
    queue = filled(*(waiting(f"t{number}") for number in range(TENANTS_MAX + 50)))
    queue.check_invariants()
    assert queue.largest_tenants(2) == [(OTHERS, 50), ("t0", 1)]
    assert len(turns(queue)) == TENANTS_MAX + 50


class Queueing(RuleBasedStateMachine):
    """Anything may happen in any order: what is counted stays right, and nobody is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[None] = FairQueue(Bounds(12, 40), {"b": 2.5})
        self.there: list[Waiting[None]] = []
        self.full: set[str | None] = set()

    @rule(
        tenant=st.sampled_from("abc"),
        band=st.integers(-1, 2),
        work=st.floats(0.5, 50.0),
        model=st.sampled_from(["m", "n", None]),
        size=st.integers(0, 12),
        bounded=st.booleans(),
    )
    def push(self, bounded: bool, **given: Any) -> None:
        one = waiting(**given)
        before = len(self.queue), self.queue.size
        lost = self.queue.push(one, bounded=bounded)
        if list(lost) == [one]:
            return
        self.there.append(one)
        for other in lost:
            assert other.band >= one.band
            self.there.remove(other)
        if bounded:
            assert self.queue.size <= 40
            assert len(self.queue) <= max(12, before[0])
        assert not lost or before[0] >= 12 or before[1] + one.size > 40

    @rule(full=st.sets(st.sampled_from(["m", "n", None])))
    def pop(self, full: set[str | None]) -> None:
        one = self.queue.pop(lambda model: model not in full)
        could = [other for other in self.there if other.needs not in full]
        if one is None:
            assert not could
            return
        assert one.band == min(other.band for other in could)
        same = [
            other for other in could if (other.band, other.tenant, other.needs) == (one.band, one.tenant, one.needs)
        ]
        assert one is same[0]
        self.there.remove(one)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.there))
        assert self.queue.remove(one)
        self.there.remove(one)

    @invariant()
    def counts(self) -> None:
        self.queue.check_invariants()
        assert len(self.queue) == len(self.there)


Queueing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueueing = Queueing.TestCase

WORKS = st.lists(st.floats(1.0, 100.0), min_size=1, max_size=40)


@given(
    st.dictionaries(st.sampled_from("abcd"), WORKS, min_size=2),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.25, 4.0)),
)
@settings(max_examples=60, deadline=None)
def test_shares_of_tenants_that_wait_differ_by_one_request_of_each_at_most(
    works: dict[str, list[float]], weights: dict[str, float]
) -> None:
    """At any time, of any two that have waited all along: the bound of start-time fair queuing."""
    queue = filled(
        *(waiting(tenant, work=work) for tenant, all_of in works.items() for work in all_of), weights=weights
    )
    got, left = Counter[str](), {tenant: len(all_of) for tenant, all_of in works.items()}
    while all(left.values()):
        one = queue.pop(anywhere)
        assert one is not None
        got[one.tenant] += one.work / weights.get(one.tenant, 1.0)
        left[one.tenant] -= 1
        for first in works:
            for second in works:
                slack = sum(max(works[name]) / weights.get(name, 1.0) for name in (first, second))
                assert abs(got[first] - got[second]) <= slack + 1e-6


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(1.0, 100.0)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_nobody_starves_while_others_keep_coming(arrivals: list[tuple[str, float]]) -> None:
    """A request goes before others of its band have got much more than it costs, however many come after it."""
    mine = waiting("mine", work=10.0)
    queue = filled(waiting("a", work=50.0), mine)
    others = Counter[str]()
    for tenant, work in arrivals * 8:
        queue.push(waiting(tenant, work=work))
        one = queue.pop(anywhere)
        if one is mine:
            break
        assert one is not None
        others[one.tenant] += one.work
    assert mine.flow is None or max(others.values()) <= 50.0 + 2 * 100.0
