"""Layout: which addresses a pull moves, against the slow and obvious way to say it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import MissReason, RankEndpoint, Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.layout import (
    Side,
    by_memory,
    descriptors,
    endpoint_fault,
    fuse_segments,
    merge_runs,
    regions,
    request_fault,
)

SLOTS = 24


ENGINE = SlotMemory(Tier.DEVICE, SLOTS, (Segment(4096, 64, 64), Segment(65536, 64, 64)))
HOST = SlotMemory(Tier.HOST, 8, (Segment(1 << 30, 128, 64), Segment((1 << 30) + 64, 128, 64)))


def memory(kind: SlotMemory = ENGINE, **changes: object) -> SlotMemory:
    """A sound memory, but for the changes."""
    return msgspec.structs.replace(kind, **changes)


def endpoint(**changes: object) -> RankEndpoint:
    """A sound endpoint of an engine with a host tier, but for the changes."""
    fields: dict[str, object] = {
        "rank": 0,
        "incarnation": b"i" * 16,
        "memories": (ENGINE, HOST),
        "table": 1 << 20,
        "agent_name": "a",
        "agent_metadata": b"",
        "relay": None,
        "host": "h",
    }
    return RankEndpoint(**(fields | changes))  # type: ignore[arg-type]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Two ranks' segments with equal row sizes: dense, strided, or block-major, each side as it likes."""
    sizes = draw(st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=4))

    def side(base: int) -> tuple[Segment, ...]:
        kind = draw(st.sampled_from(["dense", "strided", "block-major"]))
        segments = []
        for number, size in enumerate(sizes):
            if kind == "block-major":
                segments.append(Segment(base + sum(sizes[:number]), sum(sizes) + draw(st.just(8)), size))
            else:
                stride = size if kind == "dense" else size + 8
                segments.append(Segment(base + number * 10_000, stride, size))
        return tuple(segments)

    return side(1_000_000), side(9_000_000)


@st.composite
def slot_pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Pairs of slots, local ones distinct, with long runs that are adjacent on both sides among them."""
    local = draw(st.permutations(range(SLOTS)))[: draw(st.integers(0, SLOTS))]
    if draw(st.booleans()):
        local = sorted(local)
    offset = draw(st.integers(0, SLOTS - 1))
    scattered = draw(st.sets(st.integers(0, SLOTS - 1)))
    remote = [draw(st.integers(0, SLOTS - 1)) if i in scattered else (s + offset) % SLOTS for i, s in enumerate(local)]
    return remote, local


pairs = slot_pairs()


def expand(theirs: np.ndarray, ours: np.ndarray) -> set[tuple[int, int]]:
    """Every (remote byte, local byte) pair that descriptor rows move."""
    moved: list[tuple[int, int]] = []
    for remote, local in zip(theirs.tolist(), ours.tolist(), strict=True):
        assert remote[1] == local[1]
        moved.extend((remote[0] + byte, local[0] + byte) for byte in range(remote[1]))
    assert len(set(moved)) == len(moved)
    return set(moved)


@given(layouts(), pairs)
def test_descriptors_move_exactly_the_bytes_of_the_slots(
    segments: tuple[tuple[Segment, ...], tuple[Segment, ...]], slots: tuple[list[int], list[int]]
) -> None:
    """Fused and merged rows move byte for byte what one row a slot and segment would."""
    remote, local = (np.array(side, dtype=np.int64) for side in slots)
    theirs, ours = descriptors(Side(segments[0], 3), Side(segments[1], 0), remote, local)
    expected = {
        (r.base + int(a) * r.stride_bytes + byte, o.base + int(b) * o.stride_bytes + byte)
        for r, o in zip(*segments, strict=True)
        for a, b in zip(remote, local, strict=True)
        for byte in range(r.slot_bytes)
    }
    assert expand(theirs, ours) == expected
    assert (theirs[:, 2] == 3).all()
    assert (ours[:, 2] == 0).all()


@given(pairs)
def test_merge_runs_covers_the_pairs_in_order_with_maximal_runs(slots: tuple[list[int], list[int]]) -> None:
    """Expanding the runs gives the pairs back, and no two neighbouring runs could be one."""
    remote, local = (np.array(side, dtype=np.int64) for side in slots)
    runs = merge_runs(remote, local)
    expanded = [
        (int(r) + i, int(o) + i) for r, o, n in zip(runs.remote, runs.local, runs.length, strict=True) for i in range(n)
    ]
    assert expanded == list(zip(remote.tolist(), local.tolist(), strict=True))
    for k in range(len(runs.length) - 1):
        step = int(runs.length[k])
        assert (runs.remote[k] + step, runs.local[k] + step) != (runs.remote[k + 1], runs.local[k + 1])


def test_dense_adjacent_slots_become_one_row_a_segment() -> None:
    """Eight neighbours in two dense segments are two rows, not sixteen."""
    segments = (Segment(4096, 64, 64), Segment(65536, 64, 64))
    slots = np.arange(8, dtype=np.int64)
    theirs, _ = descriptors(Side(segments, 0), Side(segments, 0), slots, slots + 4)
    assert theirs.tolist() == [[4096, 512, 0], [65536, 512, 0]]


def test_strided_slots_are_never_merged_across_the_gap() -> None:
    """What lies between the rows of a strided segment belongs to somebody else."""
    dense, strided = Side((Segment(4096, 64, 64),), 0), Side((Segment(65536, 96, 64),), 0)
    slots = np.arange(3, dtype=np.int64)
    for remote, local in ((dense, strided), (strided, dense)):
        rows = dict(zip((remote, local), descriptors(remote, local, slots, slots), strict=True))
        assert rows[dense].tolist() == [[4096, 64, 0], [4160, 64, 0], [4224, 64, 0]]
        assert rows[strided].tolist() == [[65536, 64, 0], [65632, 64, 0], [65728, 64, 0]]


def test_block_major_cache_is_fused_to_one_segment() -> None:
    """Rows side by side on both sides are one row."""
    cache = tuple(Segment(4096 + i * 64, 256, 64) for i in range(4))
    assert fuse_segments(cache, cache) == ((Segment(4096, 256, 256),), (Segment(4096, 256, 256),))
    layers = tuple(Segment(100_000 + i * 4096, 64, 64) for i in range(4))
    assert fuse_segments(cache, layers) == (cache, layers)


def test_regions_of_interleaved_segments_are_one_and_of_separate_ones_several() -> None:
    """Overlapping spans are registered once; touching ones may be different allocations."""
    cache = tuple(Segment(4096 + i * 64, 256, 64) for i in range(4))
    assert regions(SlotMemory(Tier.DEVICE, 10, cache)) == [(4096, 2560)]
    layers = (Segment(4096, 64, 64), Segment(4096 + 640, 64, 64))
    assert regions(SlotMemory(Tier.DEVICE, 10, layers)) == [(4096, 640), (4736, 640)]


POISON: list[dict[str, object]] = [
    {"memory": "FILE"},
    {"device": -1},
    {"slot_count": 0},
    {"slot_count": -1},
    {"slot_count": 1 << 62},
    {"segments": ()},
    {"segments": (Segment(0, 64, 64), ENGINE.segments[1])},
    {"segments": (Segment(4096, 32, 64), ENGINE.segments[1])},
    {"segments": (Segment(4096, 64, 0), ENGINE.segments[1])},
    {"segments": (Segment((1 << 63) - 64, 64, 64), ENGINE.segments[1])},
    {"segments": (Segment(4096, 1 << 62, 64), ENGINE.segments[1])},
]


@pytest.mark.parametrize(
    "changes",
    [
        {"incarnation": b"short"},
        {"table": 0},
        {"table": (1 << 63) - 8},
        {"memories": ()},
        {"memories": (HOST,)},
        {"memories": (HOST, ENGINE)},
        {"memories": (ENGINE, ENGINE)},
        {"memories": (ENGINE, HOST, HOST)},
        {"memories": (ENGINE, memory(HOST, segments=HOST.segments[:1]))},
        {"memories": (ENGINE, memory(HOST, segments=(Segment(1 << 30, 128, 48), Segment((1 << 30) + 48, 128, 80))))},
        *(
            {"memories": memories}
            for poison in POISON
            for memories in ((memory(**poison),), (ENGINE, memory(HOST, **poison)))
        ),
    ],
)
def test_poisoned_endpoint_is_named_as_malformed(changes: dict[str, object]) -> None:
    """No field of a record from the network can lead to a READ outside what it may describe."""
    assert endpoint_fault(endpoint()) == ""
    assert endpoint_fault(endpoint(**changes)) != ""
    slots = np.array([1], dtype=np.int64)
    fault = request_fault(ENGINE, endpoint(**changes), slots, slots, 1)
    assert fault is not None
    assert fault[0] is MissReason.MALFORMED_ENTRY


def test_row_sizes_that_differ_are_a_fingerprint_mismatch() -> None:
    """Equal totals do not help: every segment must agree."""
    local = memory(segments=(Segment(4096, 64, 32), Segment(65536, 96, 96)))
    slots = np.array([1], dtype=np.int64)
    fault = request_fault(local, endpoint(), slots, slots, 1)
    assert fault is not None
    assert fault[0] is MissReason.FINGERPRINT_MISMATCH


def test_fault_of_a_request_names_the_slot_that_no_memory_has() -> None:
    """Host slots may be read, the last one too; pulls fill engine slots only."""
    engine, last_host = np.array([1], dtype=np.int64), np.array([SLOTS + HOST.slot_count - 1], dtype=np.int64)
    assert request_fault(ENGINE, endpoint(), last_host, engine, 1) is None
    for remote, local in ((last_host + 1, engine), (engine, last_host), (engine, np.array([SLOTS])), (-engine, engine)):
        fault = request_fault(ENGINE, endpoint(), remote, local, 1)
        assert fault is not None
        assert fault[0] is MissReason.MALFORMED_ENTRY


@given(st.lists(st.integers(0, SLOTS + HOST.slot_count - 1), max_size=40))
def test_slots_are_sorted_by_memory_with_their_numbers_there(slots: list[int]) -> None:
    """Each slot is found once, in the memory that its number falls to, and its place is kept."""
    found = {}
    for part in by_memory((ENGINE, HOST), np.array(slots, dtype=np.int64)):
        assert len(part.slots) > 0
        first = 0 if part.memory is ENGINE else SLOTS
        assert (part.slots < part.memory.slot_count).all()
        found.update(zip(part.places.tolist(), (part.slots + first).tolist(), strict=True))
    assert found == dict(enumerate(slots))
