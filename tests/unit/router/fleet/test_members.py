"""Who belongs to the fleet, by leases and static URLs."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.fleet.membership.members import members_of
from ghostcacher_router.types import Endpoint
from tests.support.index_parts import make_record


def record(name: str, http: str | None = None, started_at: float = 1.5, namespace: str = "ns") -> WorkerRecord:
    http = http or f"http://{name}:8000"
    return msgspec.structs.replace(make_record(name, namespace=namespace), http=http, started_at=started_at)


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


def rank(name: str, number: int | None, started_at: float = 1.5) -> WorkerRecord:
    return msgspec.structs.replace(record(name, "http://h:1", started_at), data_parallel_rank=number)


def test_ranks_behind_one_server_are_members_of_their_own() -> None:
    """They have one address, and their numbers tell them apart."""
    members, unroutable = members_of(
        [rank("w-dp0", 0), rank("w-dp1", 1, started_at=1.0)], [Endpoint("h", 1, False, "")]
    )
    assert {name: member.data_parallel_rank for name, member in members.items()} == {"w-dp0": 0, "w-dp1": 1}
    assert not unroutable


def test_of_one_rank_the_latest_life_counts() -> None:
    """What a killed engine left behind does not double its rank."""
    members, unroutable = members_of([rank("old", 1, 1.0), rank("new", 1, 2.0), rank("other", 0, 0.5)], [])
    assert sorted(members) == ["new", "other"]
    assert "worker new" in unroutable["old"].why


@pytest.mark.parametrize("records", [[rank("w-dp0", 0, 1.0), rank("w-dp1", 1, 1.0), rank("w", None, 2.0)]])
def test_server_that_has_ranks_no_more_is_one_member(records: list[WorkerRecord]) -> None:
    """And the other way round: the latest start says how the server runs now."""
    members, unroutable = members_of(records, [])
    assert list(members) == ["w"]
    assert sorted(unroutable) == ["w-dp0", "w-dp1"]
    members, unroutable = members_of([*records[:2], rank("w", None, 0.5)], [])
    assert sorted(members) == ["w-dp0", "w-dp1"]
    assert list(unroutable) == ["w"]


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
