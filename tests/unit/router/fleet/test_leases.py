"""Which records are in force, whatever Redis says."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.membership.leases import Leases
from tests.support.index_parts import make_record

TTL_S = 10.0


def record(name: str, http: str | None = None, started_at: float = 1.5, namespace: str = "ns") -> WorkerRecord:
    http = http or f"http://{name}:8000"
    return msgspec.structs.replace(make_record(name, namespace=namespace), http=http, started_at=started_at)


def names(leases: Leases) -> list[str]:
    return [found.worker for found in leases.records]


def test_lost_lease_is_out_at_once() -> None:
    """One of several workers whose lease is gone is no member any more."""
    leases = Leases(TTL_S)
    leases.update([record("a"), record("b")], 0.0)
    assert leases.update([record("a")], 1.0) == set()
    assert names(leases) == ["a"]


def test_redis_away_keeps_all_for_ever_and_for_one_lease_after() -> None:
    """Workers outlast Redis; those that do not enter themselves again in time are out."""
    leases = Leases(TTL_S)
    a, b = record("a"), record("b")
    leases.update([a, b], 0.0)
    leases.redis_silent()
    assert (names(leases), leases.available) == (["a", "b"], False)
    assert leases.update([], 1000.0) == {"a", "b"}
    leases.update([a], 1003.0)
    assert (names(leases), leases.kept("a"), leases.kept("b")) == (["a", "b"], False, True)
    leases.update([a], 1010.0)
    assert names(leases) == ["a"]


def test_redis_away_again_prolongs() -> None:
    """Time during which Redis does not answer is not held against a worker."""
    leases = Leases(TTL_S)
    leases.update([record("a")], 0.0)
    leases.update([], 1.0)
    leases.redis_silent()
    assert leases.update([], 100.0) == set()
    assert names(leases) == ["a"]


def test_all_gone_at_once_are_kept_for_one_lease() -> None:
    """A flush of Redis does not empty the fleet; a fleet that is truly gone is gone after one lease."""
    leases = Leases(TTL_S)
    leases.update([record("a")], 0.0)
    assert leases.update([], 1.0) == {"a"}
    assert leases.update([], 2.0) == set()
    leases.update([], 10.9)
    assert names(leases) == ["a"]
    leases.update([], 11.0)
    assert names(leases) == []


def test_redis_that_forgot_keeps_also_who_is_late() -> None:
    """After a flush one worker may be back before the others; those are kept for one lease, once."""
    leases = Leases(TTL_S)
    a, b = record("a"), record("b")
    leases.update([a, b], 0.0)
    assert leases.lacks([a])
    assert leases.update([a], 1.0, forgot=True) == {"b"}
    assert not leases.lacks([a])
    assert leases.update([a], 2.0, forgot=True) == set()
    leases.update([a], 11.0)
    assert names(leases) == ["a"]


def test_newest_incarnation_of_a_name_counts() -> None:
    """A worker that restarts in another namespace is not its own older lease."""
    leases = Leases(TTL_S)
    old, new = record("a", started_at=1.0, namespace="x"), record("a", started_at=2.0, namespace="b")
    leases.update([new, old], 0.0)
    assert leases.records == [new]


@given(st.lists(st.one_of(st.none(), st.sets(st.sampled_from("abcd"))), max_size=30))
def test_any_story_of_redis_keeps_invariants(story: list[set[str] | None]) -> None:
    """What Redis has is in force, whatever came before; nothing is in force that it never had."""
    leases, ever, now = Leases(TTL_S), set[str](), 0.0
    for told in story:
        now += 3.0
        if told is None:
            before = names(leases)
            leases.redis_silent()
            assert names(leases) == before
            continue
        ever |= told
        leases.update([record(name) for name in told], now)
        leases.check_invariants()
        assert told <= set(names(leases)) <= ever
        assert {name for name in names(leases) if not leases.kept(name)} == told
