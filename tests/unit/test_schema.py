"""Keys and values of the Redis schema."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector import schema
from ghostcacher_connector.errors import ConfigError, ProtocolError
from ghostcacher_connector.types import Location, Tier, WorkerRecord
from tests.support.index_parts import NAMESPACE, make_record

LOCATIONS = st.builds(Location, st.sampled_from(Tier), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))


def unpack(packed: bytes) -> WorkerRecord:
    return schema.unpack_record(packed, namespace=NAMESPACE, worker="w1")


def test_keys_are_as_the_schema_says() -> None:
    """The keys are a published format: changing one is a new schema version."""
    assert schema.namespaces_key() == "gc1:namespaces"
    assert schema.workers_key("ns") == "gc1:{ns}:workers"
    assert schema.worker_key("ns", "w:1") == "gc1:{ns}:worker:w:1"
    assert schema.report_key("ns", "w:1", "load") == "gc1:{ns}:report:w:1:load"
    assert schema.blocks_key("ns", 3, b"\x01\xff") == "gc1:{ns:3}:blocks:01ff"


def test_location_is_thirteen_little_endian_bytes() -> None:
    """The value's layout is a published format."""
    assert schema.pack_location(Location(Tier.HOST, 2, 3)) == bytes([1, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("namespace", ["", "a}b", "a{b", "a:b", "a b", "x" * 129, "a\n"])
def test_namespace_that_breaks_the_hash_tag_is_refused(namespace: str) -> None:
    """No namespace can put its keys on another shard or into another namespace."""
    with pytest.raises(ConfigError, match="namespace"):
        schema.workers_key(namespace)


@pytest.mark.parametrize("worker", ["", "a b", "a\n", "x" * 256, "\x00"])
def test_worker_name_with_blanks_is_refused(worker: str) -> None:
    """Names of workers are visible text."""
    with pytest.raises(ConfigError, match="worker name"):
        schema.worker_key("ns", worker)


def test_report_name_with_colon_is_refused() -> None:
    """No report of one worker has the key of another worker's."""
    with pytest.raises(ConfigError, match="report name"):
        schema.report_key("ns", "w", "a:b")


@given(st.lists(LOCATIONS, max_size=20))
def test_packed_locations_come_back(locations: list[Location]) -> None:
    """Any run of locations survives, tiers as tiers."""
    found = schema.unpack_locations(b"".join(map(schema.pack_location, locations)))
    assert found == tuple(locations)
    assert all(isinstance(location, Location) and isinstance(location.tier, Tier) for location in found)


@given(st.binary(max_size=80))
def test_any_bytes_are_locations_or_a_protocol_error(packed: bytes) -> None:
    """Garbage raises ProtocolError and nothing else."""
    try:
        found = schema.unpack_locations(packed)
    except ProtocolError:
        return
    assert b"".join(map(schema.pack_location, found)) == packed


def test_packed_record_comes_back() -> None:
    """A record survives packing, with its incarnation where scripts look for it."""
    record = make_record()
    packed = schema.pack_record(record)
    assert unpack(packed) == record
    assert packed[4:20] == record.incarnation


@given(st.binary(max_size=200))
def test_any_bytes_are_no_record(garbage: bytes) -> None:
    """Garbage raises ProtocolError and nothing else, behind a right header too."""
    for packed in (garbage, schema.RECORD_MAGIC + bytes(16) + garbage):
        with pytest.raises(ProtocolError):
            unpack(packed)


@given(st.data())
def test_damaged_record_is_sound_or_a_protocol_error(data: st.DataObject) -> None:
    """One changed byte raises ProtocolError, or leaves a record of the same worker and life."""
    record = make_record(incarnation=bytes(range(16)))
    packed = bytearray(schema.pack_record(record))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack(bytes(packed))
    except ProtocolError:
        return
    assert (found.worker, found.incarnation, found.namespace) == (record.worker, record.incarnation, NAMESPACE)


def test_deeply_nested_record_is_a_protocol_error() -> None:
    """Nesting cannot exhaust the stack."""
    with pytest.raises(ProtocolError):
        unpack(schema.RECORD_MAGIC + bytes(16) + b"\x91" * 100_000)


def test_record_under_another_name_is_refused() -> None:
    """A record speaks for the key that it lies under, and for nobody else."""
    packed = schema.pack_record(make_record())
    with pytest.raises(ProtocolError, match="expected"):
        schema.unpack_record(packed, namespace=NAMESPACE, worker="w2")
    with pytest.raises(ProtocolError, match="expected"):
        schema.unpack_record(packed, namespace="other", worker="w1")


@pytest.mark.parametrize(
    "changed",
    [{"slot_count": 0}, {"slot_count": 1 << 33}, {"table": -1}, {"incarnation": b"short"}],
    ids=lambda changed: next(iter(changed)),
)
def test_rank_that_describes_no_memory_is_refused(changed: dict[str, object]) -> None:
    """Addresses and sizes out of range never reach a transport."""
    record = make_record()
    rank = msgspec.structs.replace(record.ranks[0], **changed)
    with pytest.raises(ProtocolError, match="describes no memory"):
        unpack(schema.pack_record(msgspec.structs.replace(record, ranks=(rank,))))
