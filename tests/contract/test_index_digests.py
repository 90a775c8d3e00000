"""What an index must refuse: values that stand where they do not belong, and those of another key."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef, ref_of
from ghostcacher_connector.core.types import Location, Tier
from tests.contract.conftest import Subject
from tests.support.index_parts import chain, entries, make_record

LEASE_S = 30.0
KEY = b"the fleet's secret"


def displaced(subject: Subject, writer: BlockIndex, where: str, blocks: list[bytes]) -> tuple[WorkerRef, bytes]:
    """Enter blocks for a worker; return it, with a value that is valid somewhere else: not for its third block."""
    ref, other = ref_of(make_record("w1")), ref_of(make_record("w2"))
    foreign = ref._replace(namespace="foreign")
    for owner in (ref, other, foreign):
        writer.apply(owner, entries(blocks), [], lease_ttl_s=LEASE_S)
    own, third = subject.stored(ref, blocks[0]), blocks[2]
    value = {
        "block": lambda: own[blocks[3]],
        "worker": lambda: subject.stored(other, blocks[0])[third],
        "namespace": lambda: subject.stored(foreign, blocks[0])[third],
        "key": lambda: schema.Binding(ref.namespace, ref.incarnation, b"?").pack(third, Location(Tier.DEVICE, 102, 7)),
        "slot": lambda: flipped(own[third], 1),
        "generation": lambda: flipped(own[third], 5),
        "digest": lambda: flipped(own[third], schema.ENTRY_BYTES - 1),
        "length": lambda: own[third][: schema.LOCATION_BYTES],
    }[where]()
    return ref, value


def flipped(value: bytes, at: int) -> bytes:
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


@pytest.mark.parametrize("key", [b"", KEY], ids=["no key", "key"])
@pytest.mark.parametrize("where", ["block", "worker", "namespace", "key", "slot", "generation", "digest", "length"])
def test_value_that_is_not_the_blocks_own_ends_the_prefix_and_is_counted(
    subject: Subject, key: bytes, where: str
) -> None:
    """A valid value of another block, life or namespace, and one with a flipped bit, is never returned for a block."""
    client, blocks = subject.client(key), chain(5)
    ref, value = displaced(subject, client, where, blocks)
    assert client.lookup([ref], blocks)[0].length == 5
    subject.stored(ref, blocks[0])[blocks[2]] = value
    (hit,) = client.lookup([ref], blocks)
    assert (hit.length, [location.slot for location in hit.locations]) == (2, [100, 101])
    assert (client.malformed_entries, client.unverified_records) == (1, 0)
    subject.stored(ref, blocks[0])[blocks[0]] = value
    assert client.lookup([ref], blocks) == []
    assert client.malformed_entries == 2
    client.apply(ref, entries(blocks), [], lease_ttl_s=LEASE_S)
    assert client.lookup([ref], blocks)[0].length == 5


def test_worker_with_a_damaged_entry_ranks_by_what_is_sound(subject: Subject) -> None:
    """A prefix that is cut short by verification takes its place behind longer ones."""
    client, blocks = subject.client(KEY), chain(6)
    damaged, whole = ref_of(make_record("w1")), ref_of(make_record("w2"))
    client.apply(damaged, entries(blocks), [], lease_ttl_s=LEASE_S)
    client.apply(whole, entries(blocks[:4]), [], lease_ttl_s=LEASE_S)
    stored = subject.stored(damaged, blocks[0])
    stored[blocks[3]] = stored[blocks[4]]
    hits = client.lookup([damaged, whole], blocks)
    assert [(hit.worker, hit.length, len(hit.locations)) for hit in hits] == [("w2", 4, 4), ("w1", 3, 3)]


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, b"another secret"), (KEY, b""), (b"", KEY), (KEY, KEY + b"\x00")])
def test_other_key_sees_neither_records_nor_entries(subject: Subject, ours: bytes, theirs: bytes) -> None:
    """Workers of two keys are strangers to each other, in both directions; those of one key share."""
    writer, reader, friend = subject.client(ours), subject.client(theirs), subject.client(ours)
    record, blocks = make_record(), chain(4)
    writer.join(record, lease_ttl_s=LEASE_S)
    writer.apply(ref_of(record), entries(blocks), [], lease_ttl_s=LEASE_S)
    assert friend.workers() == friend.workers(record.namespace) == [record]
    assert friend.lookup([ref_of(record)], blocks)[0].length == 4
    assert (friend.malformed_entries, friend.unverified_records) == (0, 0)
    assert reader.workers() == reader.workers(record.namespace) == []
    assert (reader.malformed_entries, reader.unverified_records) == (2, 2)
    assert reader.lookup([ref_of(record)], blocks) == []
    assert (reader.malformed_entries, reader.unverified_records) == (3, 2)


def test_record_of_another_key_does_not_hide_the_rest(subject: Subject) -> None:
    """A worker with another key costs nobody else, and may still leave."""
    ours, theirs = subject.client(KEY), subject.client(b"")
    record, stranger = make_record("w1"), make_record("w2")
    ours.join(record, lease_ttl_s=LEASE_S)
    theirs.join(stranger, lease_ttl_s=LEASE_S)
    assert (ours.workers(), theirs.workers()) == ([record], [stranger])
    theirs.leave(ref_of(stranger))
    assert ours.workers() == [record]
    assert ours.unverified_records == 1
