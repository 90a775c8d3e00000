"""Keys and values of the Redis schema."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.errors import ConfigError, DigestMismatch, ProtocolError
from ghostcacher_connector.core.types import Location, Segment, SlotMemory, Tier, WorkerRecord
from tests.support.index_parts import NAMESPACE, chain, make_record

LOCATIONS = st.builds(Location, st.sampled_from(Tier), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
INCARNATION = bytes(range(16))
KEY = b"the fleet's secret"


def unpack(packed: bytes) -> WorkerRecord:
    return schema.unpack_record(packed, namespace=NAMESPACE, worker="w1")


def test_keys_are_as_the_schema_says() -> None:
    """The keys are a published format: changing one is a new schema version."""
    assert schema.namespaces_key() == "gc2:namespaces"
    assert schema.workers_key("ns") == "gc2:{ns}:workers"
    assert schema.worker_key("ns", "w:1") == "gc2:{ns}:worker:w:1"
    assert schema.report_key("ns", "w:1", "load") == "gc2:{ns}:report:w:1:load"
    assert schema.blocks_key("ns", 3, b"\x01\xff") == "gc2:{ns:3}:blocks:01ff"


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


def test_entry_is_location_and_digest() -> None:
    """The value of an entry is a published format, too, with a key and without."""
    location = Location(Tier.HOST, 2, 3)
    for key, digest in ((b"", "8603b6754039821d"), (b"k", "cc32b53a41bbf25d"), (b"k" * 10_000, "cd2af9732f115521")):
        value = schema.Binding("ns", INCARNATION, key).pack(b"block", location)
        assert value == schema.pack_location(location) + bytes.fromhex(digest)
        assert len(value) == schema.ENTRY_BYTES


@given(st.lists(LOCATIONS, max_size=20), st.binary(max_size=100), st.integers(8, 64))
def test_bound_locations_come_back(locations: list[Location], key: bytes, width: int) -> None:
    """Any run of locations survives binding under any key; blocks beyond the values do not matter."""
    binding, blocks = schema.Binding(NAMESPACE, INCARNATION, key), chain(len(locations) + 1, width=width)
    values = b"".join(binding.pack(block, location) for block, location in zip(blocks, locations, strict=False))
    assert schema.Binding(NAMESPACE, INCARNATION, key).unpack(blocks, values) == tuple(locations)


@given(LOCATIONS, st.integers(0, 8 * schema.ENTRY_BYTES - 1), st.sampled_from([b"", KEY]))
def test_one_bit_of_an_entry_is_flipped_it_ends_the_run(location: Location, bit: int, key: bytes) -> None:
    """No bit of tier, slot, generation or digest can change unnoticed; what stands before is returned."""
    binding, blocks = schema.Binding(NAMESPACE, INCARNATION, key), chain(3)
    values = [binding.pack(block, location) for block in blocks]
    damaged = int.from_bytes(values[1], "big") ^ 1 << bit
    values[1] = damaged.to_bytes(schema.ENTRY_BYTES, "big")
    assert binding.unpack(blocks, b"".join(values)) == (location,)


@pytest.mark.parametrize(
    "other",
    [
        schema.Binding("other", INCARNATION, KEY),
        schema.Binding(NAMESPACE, bytes(16), KEY),
        schema.Binding(NAMESPACE, INCARNATION, KEY + b"!"),
        schema.Binding(NAMESPACE, INCARNATION),
    ],
    ids=["namespace", "incarnation", "key", "no key"],
)
def test_entry_of_another_place_is_not_unpacked(other: schema.Binding) -> None:
    """A value that was packed for another namespace, life or key is no value here."""
    block, location = chain(1)[0], Location(Tier.DEVICE, 4, 5)
    assert schema.Binding(NAMESPACE, INCARNATION, KEY).unpack([block], other.pack(block, location)) == ()


def test_fields_of_an_entry_cut_elsewhere_have_another_digest() -> None:
    """Bytes that move from the incarnation to the namespace, or from the block to the incarnation, are noticed."""
    location, digests = Location(Tier.DEVICE, 4, 5), set()
    for namespace, incarnation, block in (("ns", b"abc", b"def"), ("nsa", b"bc", b"def"), ("ns", b"abcd", b"ef")):
        digests.add(schema.Binding(namespace, incarnation).pack(block, location))
    assert len(digests) == 3


def test_entry_of_another_block_is_not_unpacked() -> None:
    """A value belongs to one block, even where another one's hash begins alike."""
    binding, block = schema.Binding(NAMESPACE, INCARNATION), chain(1)[0]
    value = binding.pack(block, Location(Tier.DEVICE, 4, 5))
    assert binding.unpack([block], value)
    for other in (chain(1, seed=1)[0], block[:-1], block + b"\x00"):
        assert binding.unpack([other], value) == ()


def test_entry_of_an_unknown_tier_ends_the_run() -> None:
    """A tier that this version does not know is no location, though its digest fits."""
    block, binding = chain(1)[0], schema.Binding(NAMESPACE, INCARNATION)
    value = binding.pack(block, Location(schema.TIER_MAX + 1, 0, 0))  # type: ignore[arg-type]  # what is to be refused
    assert binding.unpack([block], value) == ()


@given(st.binary(max_size=80))
def test_any_bytes_are_no_entries(garbage: bytes) -> None:
    """Garbage is no location; a length that no run of values has raises ProtocolError."""
    binding = schema.Binding(NAMESPACE, INCARNATION)
    if len(garbage) % schema.ENTRY_BYTES:
        with pytest.raises(ProtocolError):
            binding.unpack(chain(4), garbage)
    else:
        assert binding.unpack(chain(4), garbage) == ()


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
    """Garbage raises ProtocolError and nothing else, behind a right header and a right digest too."""
    header = schema.RECORD_MAGIC + bytes(16)
    for packed in (garbage, header + garbage, header + bytes(16) + garbage, schema.pack_envelope(bytes(16), garbage)):
        with pytest.raises(ProtocolError):
            unpack(packed)


@given(st.data())
def test_damaged_record_is_a_protocol_error(data: st.DataObject) -> None:
    """One flipped bit anywhere, and the record is refused."""
    packed = bytearray(schema.pack_record(make_record(incarnation=INCARNATION)))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ProtocolError):
        unpack(bytes(packed))


@given(st.data())
def test_damaged_body_under_a_right_digest_is_sound_or_a_protocol_error(data: st.DataObject) -> None:
    """Whoever can make the digest: one changed byte raises ProtocolError, or leaves the same worker and life."""
    record = make_record(incarnation=INCARNATION)
    body = bytearray(schema.pack_record(record)[schema.RECORD_HEADER_BYTES :])
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack(schema.pack_envelope(INCARNATION, bytes(body)))
    except ProtocolError:
        return
    assert (found.worker, found.incarnation, found.namespace) == (record.worker, record.incarnation, NAMESPACE)


@pytest.mark.parametrize(("written", "read"), [(KEY, b""), (b"", KEY), (KEY, KEY[:-1]), (b"k" * 64, b"k" * 65)])
def test_record_of_another_key_is_a_digest_mismatch(written: bytes, read: bytes) -> None:
    """Only who has the key that a record was written with can read it; the message shows neither key."""
    packed = schema.pack_record(make_record(), written)
    assert schema.unpack_record(packed, namespace=NAMESPACE, worker="w1", key=written).worker == "w1"
    with pytest.raises(DigestMismatch) as caught:
        schema.unpack_record(packed, namespace=NAMESPACE, worker="w1", key=read)
    assert KEY.decode() not in str(caught.value)


def test_deeply_nested_record_is_a_protocol_error() -> None:
    """Nesting cannot exhaust the stack."""
    with pytest.raises(ProtocolError):
        unpack(schema.pack_envelope(bytes(16), b"\x91" * 100_000))


def test_record_under_another_name_is_refused() -> None:
    """A record speaks for the key that it lies under, and for nobody else."""
    packed = schema.pack_record(make_record())
    with pytest.raises(ProtocolError, match="expected"):
        schema.unpack_record(packed, namespace=NAMESPACE, worker="w2")
    with pytest.raises(ProtocolError, match="expected"):
        schema.unpack_record(packed, namespace="other", worker="w1")


def memory(slot_count: int = 64, tier: Tier = Tier.DEVICE, stride_bytes: int = 4096) -> SlotMemory:
    return SlotMemory(tier, slot_count, (Segment(1 << 47, stride_bytes, 4096),))


def test_rank_with_a_host_tier_comes_back() -> None:
    """What is refused below is refused for what is wrong with it."""
    record = make_record()
    rank = msgspec.structs.replace(record.ranks[0], memories=(memory(), memory(4, Tier.HOST)))
    record = msgspec.structs.replace(record, ranks=(rank,))
    assert unpack(schema.pack_record(record)) == record


@pytest.mark.parametrize(
    "changed",
    [
        {"memories": ()},
        {"memories": (memory(0),)},
        {"memories": (memory(1 << 33),)},
        {"memories": (memory(), memory(0, Tier.HOST))},
        {"memories": (memory(1 << 31), memory((1 << 31) + 1, Tier.HOST))},
        {"memories": (memory(), memory(4, Tier.HOST, 64))},
        {"memories": (memory(), memory(4, Tier.HOST), memory(4, Tier.OBJECT), memory(4, Tier.OBJECT))},
        {"table": -1},
        {"incarnation": b"short"},
    ],
    ids=str,
)
def test_rank_that_describes_no_memory_is_refused(changed: dict[str, object]) -> None:
    """Addresses and sizes out of range never reach a transport."""
    record = make_record()
    rank = msgspec.structs.replace(record.ranks[0], **changed)
    with pytest.raises(ProtocolError, match="describes no memory"):
        unpack(schema.pack_record(msgspec.structs.replace(record, ranks=(rank,))))
