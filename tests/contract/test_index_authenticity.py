"""What an index with a key must not believe, beside entries and records of another key: names, depths, reports."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.index.base import ref_of
from tests.contract.conftest import KEY, Subject
from tests.support.index_parts import chain, entries, make_record

LEASE_S = 30.0
STRANGERS = pytest.mark.parametrize("key", [b"", b"another secret"], ids=["no key", "another key"])


@STRANGERS
def test_name_that_a_stranger_holds_is_taken(subject: Subject, key: bytes) -> None:
    """Who has not our key can neither keep a name from us nor take it from us for longer than to our next renewal."""
    ours, stranger = subject.client(KEY), subject.client(key)
    record, forged = make_record("w1", token="ours"), make_record("w1", token="theirs")
    stranger.join(forged, lease_ttl_s=LEASE_S)
    assert ours.join(record, lease_ttl_s=LEASE_S) is None
    assert ours.workers() == [record]
    stranger.leave(ref_of(record))
    stranger.join(forged, lease_ttl_s=LEASE_S)
    assert ours.workers() == []
    assert ours.renew(record, lease_ttl_s=LEASE_S).holder is None
    assert ours.workers() == [record]
    assert ours.refusals()["record: not authentic"] >= 2


def test_name_of_one_key_is_held_as_without(subject: Subject) -> None:
    """Of two engines with the key the second one is refused, and is told who the first one is."""
    one, two = subject.client(KEY), subject.client(KEY)
    first, second = make_record("w1", token="first"), make_record("w1", token="second")
    assert one.join(first, lease_ttl_s=LEASE_S) is None
    for holder in (two.join(second, lease_ttl_s=LEASE_S), two.renew(second, lease_ttl_s=LEASE_S).holder):
        assert holder is not None
        assert holder.record == first


@pytest.mark.parametrize("key", [b"", KEY], ids=["no key", "key"])
def test_depths_are_those_of_what_is_held(subject: Subject, key: bytes) -> None:
    """With a key as without: whole chains, parts of them, none."""
    client, blocks = subject.client(key), chain(9)
    whole, part, none = (ref_of(make_record(name)) for name in ("w1", "w2", "w3"))
    client.apply(whole, entries(blocks), [], lease_ttl_s=LEASE_S)
    client.apply(part, entries(blocks[:4]), [], lease_ttl_s=LEASE_S)
    other = chain(3, seed=7)
    assert client.depths([whole, none, part], [blocks, other, blocks[:2], []]) == [
        [9, 0, 4],
        [0, 0, 0],
        [2, 0, 2],
        [0, 0, 0],
    ]
    assert client.malformed_entries == 0


@STRANGERS
def test_depth_that_a_stranger_claims_counts_for_nothing(subject: Subject, key: bytes) -> None:
    """A worker does not hold what somebody without the key says that it holds: it would get all requests for it."""
    client, stranger, blocks = subject.client(KEY), subject.client(key), chain(9)
    honest, claimed = ref_of(make_record("w1")), ref_of(make_record("w2"))
    client.apply(honest, entries(blocks[:4]), [], lease_ttl_s=LEASE_S)
    stranger.apply(claimed, entries(blocks), [], lease_ttl_s=LEASE_S)
    assert client.depths([claimed, honest], [blocks, blocks[:2]]) == [[0, 4], [0, 2]]
    own = subject.stored(honest, blocks[0])
    for block in blocks[4:]:
        own[block] = own[blocks[0]]
    assert client.depths([honest], [blocks, blocks[:3]]) == [[0], [3]]
    assert client.refusals() == {"entry: not authentic": 3}


@STRANGERS
def test_reports_of_another_key_are_not_believed(subject: Subject, key: bytes) -> None:
    """What asks ranks to measure, and what they say, comes from the fleet."""
    ours, stranger, ref = subject.client(KEY), subject.client(key), ref_of(make_record("w1"))
    stranger.put_report(ref, "probe", {"a": b"1"}, ttl_s=LEASE_S)
    assert ours.reports(ref.namespace, ref.worker, "probe") == {}
    ours.put_report(ref, "probe", {"a": b"1", "b": b""}, ttl_s=LEASE_S)
    assert ours.reports(ref.namespace, ref.worker, "probe") == {"a": b"1", "b": b""}
    assert ours.refusals().keys() <= {"report: not authentic"}
