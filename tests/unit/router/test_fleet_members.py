"""Who is in the fleet: leases, static URLs, and models."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.membership.endpoints import name_of, parse_endpoint
from ghostcacher_router.fleet.membership.leases import Leases
from ghostcacher_router.fleet.membership.members import members_of
from ghostcacher_router.fleet.model_lists import merged_models, serving_by_model
from ghostcacher_router.fleet.probes import ProbeFailed, parse_models
from ghostcacher_router.fleet.worker import Move, Worker
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import make_record

TTL_S = 10.0


def record(name: str, http: str | None = None, started_at: float = 1.5, namespace: str = "ns") -> WorkerRecord:
    http = http or f"http://{name}:8000"
    return msgspec.structs.replace(make_record(name, namespace=namespace), http=http, started_at=started_at)


def names(leases: Leases) -> list[str]:
    return [found.worker for found in leases.records]


def worker(name: str, *models: str, ready: bool = True) -> Worker:
    made = Worker(name, Endpoint(name, 80, False, ""), None, 0.0)
    made.model_objects = tuple({"id": model, "owned_by": name} for model in models)
    made.models, made.models_asked_at = frozenset(models), 0.0
    if ready:
        made.move(Move.ANSWERED, 0.0)
    return made


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


def test_newest_life_of_a_name_counts() -> None:
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


def test_record_wins_over_static_url() -> None:
    """One server with both is one worker, under its record's name, however its host is spelled."""
    static = [Endpoint("127.0.0.1", 8000, False, ""), Endpoint("h", 80, False, "/x")]
    members, unroutable = members_of([record("w", "http://localhost:8000/v1")], static)
    assert sorted(members) == ["h:80/x", "w"]
    assert not unroutable


def test_one_server_is_one_member() -> None:
    """What a killed engine left behind does not double the one that runs in its place now."""
    old, new = record("old", "http://h:1", started_at=1.0), record("new", "http://h:1", started_at=2.0)
    members, unroutable = members_of([old, new], [])
    assert list(members) == ["new"]
    assert "worker new" in unroutable["old"].why


@pytest.mark.parametrize("http", [None, "ftp://h", "http://"])
def test_record_without_usable_url_is_shown(http: str | None) -> None:
    """The reason names the setting that would mend it."""
    members, unroutable = members_of([msgspec.structs.replace(make_record("w"), http=http)], [])
    assert not members
    assert "http_url" in unroutable["w"].why


def test_unprintable_name_is_refused() -> None:
    """A name goes into headers: ASCII, and not without end."""
    _, unroutable = members_of([record("wörker"), record("w" * 201, "http://h")], [])
    assert len(unroutable) == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", Endpoint("h", 80, False, "")),
        ("https://h/", Endpoint("h", 443, True, "")),
        ("http://H:8000/v1/", Endpoint("h", 8000, False, "")),
        ("http://[::1]:8000/a/b", Endpoint("::1", 8000, False, "/a/b")),
    ],
)
def test_url_is_understood(url: str, expected: Endpoint) -> None:
    """Default ports, a path before /v1, IPv6."""
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize("url", ["", "h:80", "ftp://h", "http://h:0", "http://h:x", "http://h/?q", "http://h/\r\nx: y"])
def test_bad_url_is_refused(url: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match="workers: expected http"):
        parse_endpoint(url, "workers")


def test_user_and_password_are_not_shown() -> None:
    """A URL with credentials is refused without repeating them."""
    with pytest.raises(ConfigError) as caught:
        parse_endpoint("http://me:secret@h")
    assert "secret" not in str(caught.value)


def test_name_of_a_plain_engine() -> None:
    """host:port, with brackets round IPv6."""
    assert name_of(Endpoint("::1", 80, False, "")) == "[::1]:80"


def test_models_are_merged_once_each() -> None:
    """Each model once, as a READY worker describes it; a model nobody serves right now still exists."""
    a, b, c = worker("a", "x", ready=False), worker("b", "y", "x"), worker("c", "z", "x")
    found = merged_models([a, b, c])
    assert {name: model["owned_by"] for name, model in found.items()} == {"x": "b", "y": "b", "z": "c"}
    assert merged_models([a])["x"]["owned_by"] == "a"


def test_only_ready_workers_serve() -> None:
    """JOINING and DRAINING workers serve nothing."""
    a, b, c = worker("a", "x", ready=False), worker("b", "x"), worker("c", "x")
    c.move(Move.DRAIN, 0.0)
    assert serving_by_model([a, b, c]) == {None: [b], "x": [b]}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data":1}', b'{"data":[1]}', b'{"data":[{"id":2}]}', b"\xff"])
def test_odd_model_list_is_a_failed_probe(body: bytes) -> None:
    """What is no model list says so, whatever it is."""
    with pytest.raises(ProbeFailed, match="/v1/models"):
        parse_models(body)
