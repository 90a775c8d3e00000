"""What every index must do: in memory, in one Redis, in a Redis Cluster."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghostcacher_connector.core.index.base import BlockIndex, Drop, Entry, ref_of
from ghostcacher_connector.core.types import Location, Tier
from tests.contract.conftest import Subject
from tests.support.index_parts import chain, entries, in_time, make_record, wait_until

LEASE_S = 30.0
SHORT_LEASE_S = 0.2


def test_joined_worker_is_listed_in_its_namespace_only(index: BlockIndex) -> None:
    """A record comes back as it was entered, in its namespace and among all, and in no other."""
    record, other = make_record("w2"), make_record("w1", namespace="other")
    index.join(record, lease_ttl_s=LEASE_S)
    index.join(other, lease_ttl_s=LEASE_S)
    assert index.workers(record.namespace) == [record]
    assert index.workers() == [other, record]
    assert index.workers("nobody") == []


def test_lease_runs_out_worker_entries_and_report_are_gone(subject: Subject) -> None:
    """A worker that stops renewing disappears with all that it published."""
    index, record, blocks = subject.index, make_record(), chain(3)
    ref = ref_of(record)
    for lease_s in (LEASE_S, SHORT_LEASE_S):
        index.join(record, lease_ttl_s=lease_s)
        index.apply(ref, entries(blocks), [], lease_ttl_s=lease_s)
        index.put_report(ref, "load", {"waiting": b"1"}, ttl_s=lease_s)
        assert lease_s == SHORT_LEASE_S or index.lookup([ref], blocks)

    def gone() -> bool:
        subject.pass_time()
        left = index.workers() or index.lookup([ref], blocks) or index.reports(ref.namespace, ref.worker, "load")
        return not left

    wait_until(gone)


def test_worker_that_died_is_named_as_gone_until_its_name_is_back(subject: Subject) -> None:
    """One whose lease ran out is gone, one that left is not; whoever lists the workers does not change that."""
    index, dead, polite = subject.index, make_record("dead"), make_record("polite")
    index.join(dead, lease_ttl_s=LEASE_S)
    index.join(polite, lease_ttl_s=LEASE_S)
    assert index.gone() == []
    index.leave(ref_of(polite))
    index.renew(dead, lease_ttl_s=SHORT_LEASE_S)

    def gone() -> bool:
        subject.pass_time()
        return not index.workers()

    wait_until(gone)
    assert index.workers(dead.namespace) == []
    (found,) = index.gone()
    assert (found.worker, found.namespace) == ("dead", dead.namespace)
    assert 0 <= found.silent_s < 60
    index.join(make_record("dead"), lease_ttl_s=LEASE_S)
    assert index.gone() == []


def test_renewed_lease_keeps_worker_and_entries(subject: Subject) -> None:
    """Renewing prolongs the record and the entries, not only the record."""
    index, record, blocks = subject.index, make_record(), chain(3)
    ref, other = ref_of(record), make_record("other")

    def renewed(lease_s: float) -> bool | None:
        index.join(other, lease_ttl_s=lease_s)
        index.join(record, lease_ttl_s=lease_s)
        index.apply(ref, entries(blocks), [], lease_ttl_s=lease_s)
        return sum(index.renew(record, lease_ttl_s=LEASE_S).counts) == len(blocks) or None

    in_time(renewed)

    def other_gone() -> bool:
        subject.pass_time()
        return index.workers() == [record]

    wait_until(other_gone)
    assert index.lookup([ref], blocks)[0].length == 3


def test_renew_after_flush_enters_record_and_counts_nothing(subject: Subject) -> None:
    """A worker whose record was lost is back after its next renewal, which says that its entries are gone."""
    index, record = subject.index, make_record()
    index.join(record, lease_ttl_s=LEASE_S)
    index.apply(ref_of(record), entries(chain(3)), [], lease_ttl_s=LEASE_S)
    subject.flush()
    assert sum(index.renew(record, lease_ttl_s=LEASE_S).counts) == 0
    assert index.workers(record.namespace) == [record]


def test_renew_counts_entries_of_each_partition(index: BlockIndex) -> None:
    """The counts say how many entries lie in each partition, whatever was entered twice or dropped."""
    record = make_record()
    ref, expected = ref_of(record), [0] * index.partitions
    for seed in range(8):
        blocks = chain(5, seed)
        index.apply(ref, entries(blocks), [], lease_ttl_s=LEASE_S)
        index.apply(ref, entries(blocks), [Drop(blocks[4], blocks[0])], lease_ttl_s=LEASE_S)
        index.apply(ref, [], [Drop(blocks[4], blocks[0])], lease_ttl_s=LEASE_S)
        expected[index.partition(blocks[0])] += 4
    assert index.renew(record, lease_ttl_s=LEASE_S).counts == tuple(expected)


def test_restarted_worker_drops_entries_of_earlier_life(index: BlockIndex) -> None:
    """A new incarnation takes the name, and what the earlier one published is gone at once."""
    old, new = make_record(), make_record()
    blocks = chain(3)
    index.join(old, lease_ttl_s=LEASE_S)
    index.apply(ref_of(old), entries(blocks), [], lease_ttl_s=LEASE_S)
    index.join(new, lease_ttl_s=LEASE_S)
    assert index.workers() == [new]
    assert index.lookup([ref_of(old), ref_of(new)], blocks) == []


def test_earlier_life_renews_and_leaves_name_stays_with_later(index: BlockIndex) -> None:
    """An earlier life that is still shutting down neither takes the name back nor removes it."""
    old, new = make_record(), make_record()
    index.join(old, lease_ttl_s=LEASE_S)
    index.join(new, lease_ttl_s=LEASE_S)
    index.renew(old, lease_ttl_s=LEASE_S)
    assert index.workers() == [new]
    index.leave(ref_of(old))
    assert index.workers() == [new]


def test_left_worker_is_gone_with_its_entries(index: BlockIndex) -> None:
    """Leaving takes effect at once and spares everyone else; leaving twice is no error."""
    leaver, stayer, blocks = make_record("leaver"), make_record("stayer"), chain(3)
    for record in (leaver, stayer):
        index.join(record, lease_ttl_s=LEASE_S)
        index.apply(ref_of(record), entries(blocks), [], lease_ttl_s=LEASE_S)
    index.leave(ref_of(leaver))
    index.leave(ref_of(leaver))
    assert index.workers() == [stayer]
    assert [hit.worker for hit in index.lookup([ref_of(leaver), ref_of(stayer)], blocks)] == ["stayer"]


def test_block_entered_again_has_later_location(index: BlockIndex) -> None:
    """Entering a block twice replaces it, in one call and in two."""
    ref, (block,) = ref_of(make_record()), chain(1)
    first, second, third = (Entry(block, block, Location(Tier.HOST, n, n << 40)) for n in (1, 2, 3))
    index.apply(ref, [first, second], [], lease_ttl_s=LEASE_S)
    assert index.lookup([ref], [block])[0].locations == (second.location,)
    index.apply(ref, [third], [Drop(block, block)], lease_ttl_s=LEASE_S)
    assert index.lookup([ref], [block])[0].locations == (third.location,)


def test_extreme_locations_come_back_unchanged(index: BlockIndex) -> None:
    """The widest slots and generations, and every tier, survive the packing."""
    ref, blocks = ref_of(make_record()), chain(3)
    locations = (
        Location(Tier.DEVICE, (1 << 32) - 1, (1 << 64) - 1),
        Location(Tier.HOST, 0, 0),
        Location(Tier.OBJECT, 1, 1 << 63),
    )
    found = [Entry(block, blocks[0], location) for block, location in zip(blocks, locations, strict=True)]
    index.apply(ref, found, [], lease_ttl_s=LEASE_S)
    assert index.lookup([ref], blocks)[0].locations == locations
    assert isinstance(index.lookup([ref], blocks)[0].locations[1].tier, Tier)


@pytest.mark.parametrize("width", [8, 20, 64])
def test_hash_widths_other_than_32_are_found(index: BlockIndex, width: int) -> None:
    """Engines choose the width of their hashes."""
    ref, blocks = ref_of(make_record()), chain(5, width=width)
    index.apply(ref, entries(blocks), [], lease_ttl_s=LEASE_S)
    assert index.lookup([ref], blocks)[0].length == 5


@pytest.mark.parametrize("held", [1, 2, 511, 999, 1000, 1001, 2000, 2001, 4500])
def test_long_prefix_is_found_to_its_end(index: BlockIndex, held: int) -> None:
    """The length is exact on both sides of every chunk's edge, and the locations are in order."""
    ref, blocks = ref_of(make_record()), chain(held + 3)
    index.apply(ref, entries(blocks[:held]), [], lease_ttl_s=LEASE_S)
    (hit,) = index.lookup([ref], blocks)
    assert (hit.length, hit.incarnation) == (held, ref.incarnation)
    assert [location.slot for location in hit.locations] == list(range(100, 100 + held))
    assert index.lookup([ref], blocks[:held])[0].length == held


def test_lookup_without_blocks_or_candidates_is_a_miss(index: BlockIndex) -> None:
    """Nothing asked for, nobody to ask, nobody who holds it: all are empty results."""
    ref = ref_of(make_record())
    assert index.lookup([], chain(2)) == []
    assert index.lookup([ref], []) == []
    assert index.lookup([ref], chain(2)) == []


def test_hash_of_another_width_ends_the_prefix(index: BlockIndex) -> None:
    """A hash that cannot be of the chain is a gap, not an error."""
    ref, blocks = ref_of(make_record()), chain(4)
    index.apply(ref, entries(blocks), [], lease_ttl_s=LEASE_S)
    assert index.lookup([ref], [*blocks[:2], b"odd-sized", *blocks[2:]])[0].length == 2


def test_many_workers_come_longest_first_and_best_with_locations(index: BlockIndex) -> None:
    """Only the best `locations_for` workers come with locations; those that hold nothing are left out."""
    blocks, refs = chain(20), [ref_of(make_record(f"w{n}")) for n in range(6)]
    for n, ref in enumerate(refs[1:], start=1):
        index.apply(ref, entries(blocks[: 3 * n]), [], lease_ttl_s=LEASE_S)
    hits = index.lookup(refs, blocks, locations_for=2)
    assert [(hit.worker, hit.length) for hit in hits] == [("w5", 15), ("w4", 12), ("w3", 9), ("w2", 6), ("w1", 3)]
    assert [len(hit.locations) for hit in hits] == [15, 12, 0, 0, 0]


def test_best_worker_has_gap_next_one_is_read_instead(index: BlockIndex) -> None:
    """A worker that only seems best, because of blocks beyond a gap, does not take the place of a better one."""
    blocks = chain(9)
    gappy, whole = ref_of(make_record("gappy")), ref_of(make_record("whole"))
    index.apply(gappy, entries(blocks, held=[0, 2, 3, 4, 5, 6, 7, 8]), [], lease_ttl_s=LEASE_S)
    index.apply(whole, entries(blocks[:5]), [], lease_ttl_s=LEASE_S)
    hit = index.lookup([gappy, whole], blocks, locations_for=1)[0]
    assert (hit.worker, hit.length, len(hit.locations)) == ("whole", 5, 5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    held=st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=5),
    asked=st.integers(1, 12),
    locations_for=st.integers(1, 5),
)
def test_any_sets_of_blocks_prefixes_are_right(
    index: BlockIndex, held: list[set[int]], asked: int, locations_for: int
) -> None:
    """Whatever workers hold: located prefixes are exact and the best ones; no other length is too small."""
    blocks = chain(12, seed=int.from_bytes(os.urandom(4), "little"))
    refs = [ref_of(make_record(f"w{n}")) for n in range(len(held))]
    true = {}
    for ref, numbers in zip(refs, held, strict=True):
        index.apply(ref, entries(blocks, held=sorted(numbers)), [], lease_ttl_s=LEASE_S)
        true[ref.worker] = next(n for n in range(asked + 1) if n == asked or n not in numbers)
    hits = index.lookup(refs, blocks[:asked], locations_for=locations_for)
    best = sorted((length for length in true.values() if length), reverse=True)[:locations_for]
    located = [hit for hit in hits if hit.locations]
    assert [hit.length for hit in located][:locations_for] == best
    for hit in located:
        assert hit.length == true[hit.worker] == len(hit.locations)
        assert [location.slot for location in hit.locations] == list(range(100, 100 + hit.length))
    assert all(true[hit.worker] <= hit.length <= asked for hit in hits)
    assert {worker for worker, length in true.items() if length} == {hit.worker for hit in hits}
    for ref in refs:
        index.leave(ref)


def test_depths_tell_how_much_of_each_chain_each_worker_holds(index: BlockIndex) -> None:
    """One call answers for several chains that leave blocks out, their roots among them, and several workers."""
    records = [make_record(f"w{number}") for number in range(3)]
    refs, blocks, other = [ref_of(record) for record in records], chain(40), chain(6, seed=b"other")
    for ref, held in zip(refs, (40, 17, 0), strict=True):
        index.apply(ref, entries(blocks[:held]), [], lease_ttl_s=LEASE_S)
    index.apply(refs[2], entries(other), [], lease_ttl_s=LEASE_S)
    sparse = blocks[3::4]  # of blocks 4, 8, ... 40
    assert index.depths(refs, [sparse, blocks, other[2:], []]) == [[10, 4, 0], [40, 17, 0], [0, 0, 4], [0, 0, 0]]
    assert index.depths(refs, [sparse, sparse[2:3]], root=blocks[0]) == [[10, 4, 0], [1, 1, 0]]
    assert index.depths([], [blocks]) == [[]]
    assert index.depths(refs, []) == []


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_depths_are_exact_where_workers_hold_prefixes(index: BlockIndex, asked: list[int], held: list[int]) -> None:
    """Whatever the others hold, and in whatever order they are asked about."""
    refs, blocks = [ref_of(make_record(f"w{number}")) for number in range(len(held))], chain(40)
    for ref, length in zip(refs, held, strict=True):
        index.apply(ref, entries(blocks[:length]), [], lease_ttl_s=LEASE_S)
    found = index.depths(refs, [blocks[:length] for length in asked])
    assert found == [[min(length, limit) for length in held] for limit in asked]
    for ref in refs:
        index.leave(ref)


def test_cleared_partition_is_empty_others_are_not(index: BlockIndex) -> None:
    """Clearing touches one partition of one worker."""
    record, other = make_record("w1"), make_record("w2")
    chains = [chain(2, seed) for seed in range(12)]
    for owner in (record, other):
        for blocks in chains:
            index.apply(ref_of(owner), entries(blocks), [], lease_ttl_s=LEASE_S)
    cleared = index.partition(chains[0][0])
    before = index.renew(record, lease_ttl_s=LEASE_S).counts
    index.clear(ref_of(record), cleared)
    index.clear(ref_of(record), cleared)
    after = index.renew(record, lease_ttl_s=LEASE_S).counts
    assert after == tuple(0 if partition == cleared else count for partition, count in enumerate(before))
    assert index.renew(other, lease_ttl_s=LEASE_S).counts == before


def test_report_is_replaced_as_a_whole(index: BlockIndex) -> None:
    """A report holds the fields given last, any bytes; an unknown one is empty."""
    ref = ref_of(make_record())
    index.put_report(ref, "load", {"a": b"\x00\xff", "b": b""}, ttl_s=LEASE_S)
    assert index.reports(ref.namespace, ref.worker, "load") == {"a": b"\x00\xff", "b": b""}
    index.put_report(ref, "load", {"c": b"1"}, ttl_s=LEASE_S)
    assert index.reports(ref.namespace, ref.worker, "load") == {"c": b"1"}
    index.put_report(ref, "load", {}, ttl_s=LEASE_S)
    assert index.reports(ref.namespace, ref.worker, "load") == {}
    assert index.reports(ref.namespace, "nobody", "load") == {}


def test_partition_is_in_range_and_of_the_root_alone(index: BlockIndex) -> None:
    """Every root has a partition; one round trip is possible since it is a chain's only one."""
    found = {index.partition(bytes([first, 9])) for first in range(256)}
    assert found == set(range(index.partitions))


def test_ping_returns_seconds(index: BlockIndex) -> None:
    """The round trip is a plausible time."""
    assert 0.0 <= index.ping() < 5.0


def test_blocks_named_otherwise_are_found_under_the_root_of_their_chain(index: BlockIndex) -> None:
    """Names of another width, which do not begin with the root, lie where the chain's own hashes do."""
    record, blocks = make_record(), chain(20)
    ref = ref_of(record)
    index.join(record, lease_ttl_s=LEASE_S)
    keys = [block + b"\x02" for block in blocks[4:8]]
    location = Location(Tier.DEVICE, 3, 9)
    index.apply(ref, [Entry(key, blocks[0], location) for key in keys], [], lease_ttl_s=LEASE_S)
    (hit,) = index.lookup([ref], keys, root=blocks[0])
    assert hit.locations == (location,) * 4
    assert index.lookup([ref], blocks) == []
