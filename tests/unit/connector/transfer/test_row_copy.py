"""Copies between two memories, against the slow and obvious way to make them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.layout import rows_of
from ghostcacher_connector.transfer.row_copy import copies_2d, planes_of, row_copy
from tests.support.kv_memory import KvMemory

SLOTS, HOST_SLOTS = 12, 7


@st.composite
def slot_pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Engine slots and host slots, all distinct, in any order, runs among them."""
    count = draw(st.integers(0, HOST_SLOTS))
    engine = draw(st.permutations(range(SLOTS)))[:count]
    host = draw(st.permutations(range(HOST_SLOTS)))[:count]
    return (sorted(engine), sorted(host)) if draw(st.booleans()) else (engine, host)


@settings(deadline=None)
@given(st.sampled_from(["layers", "blocks", "gaps"]), slot_pairs(), st.booleans())
def test_copies_move_exactly_the_rows_of_the_slots(layout: str, slots: tuple[list[int], list[int]], up: bool) -> None:
    """Down and up, every slot's bytes arrive in its partner, and no other byte changes."""
    memory = KvMemory(SLOTS, 3, 64, layout, host_slots=HOST_SLOTS)
    everything = np.arange(SLOTS + HOST_SLOTS)
    memory.overwrite(everything, np.full(len(everything), 5, dtype=np.uint64))
    engine, host = (np.array(side, dtype=np.int64) for side in slots)
    source, target = (host + SLOTS, engine) if up else (engine, host + SLOTS)
    down_from, down_to = memory.memories
    if up:
        row_copy(down_to, down_from).run(host, engine)
    else:
        row_copy(down_from, down_to).run(engine, host)
    fives = np.full(len(everything), 5, dtype=np.uint64)
    assert memory.holds(target, source, fives[: len(source)]).all()
    rest = np.setdiff1d(everything, target)
    assert memory.holds(rest, rest, fives[: len(rest)]).all()


@settings(deadline=None)
@given(st.sampled_from(["layers", "blocks", "gaps"]), slot_pairs())
def test_copies_in_two_dimensions_move_the_same_bytes(layout: str, slots: tuple[list[int], list[int]]) -> None:
    """What a GPU's driver is told, carried out row by row: the same as a copy within the host."""
    memory = KvMemory(SLOTS, 3, 64, layout, host_slots=HOST_SLOTS)
    everything, fives = np.arange(SLOTS + HOST_SLOTS), np.full(SLOTS + HOST_SLOTS, 5, dtype=np.uint64)
    memory.overwrite(everything, fives)
    engine, host = (np.array(side, dtype=np.int64) for side in slots)
    copies = list(copies_2d(planes_of(*memory.memories), engine, host, to_device=False))
    for copy in copies:
        for number in range(copy.row_count):
            source, target = copy.source + number * copy.source_step, copy.target + number * copy.target_step
            ctypes.memmove(target, source, copy.row_bytes)
    assert memory.holds(host + SLOTS, engine, fives[: len(engine)]).all()
    rest = np.setdiff1d(everything, host + SLOTS)
    assert memory.holds(rest, rest, fives[: len(rest)]).all()
    assert len(copies) <= len(engine)  # layers equally far apart: a slot costs one copy at most


def memory_at(bases: list[int], stride: int, size: int) -> SlotMemory:
    return SlotMemory(Tier.DEVICE, 4, tuple(Segment(base, stride, size) for base in bases))


@pytest.mark.parametrize(
    ("bases", "planes"),
    [([0, 1000, 2000, 3000], [4]), ([0, 1000, 2000, 2500, 3000], [3, 2]), ([3000, 2000, 1000], [1, 1, 1]), ([64], [1])],
)
def test_segments_that_are_equally_far_apart_are_one_plane(bases: list[int], planes: list[int]) -> None:
    """Layers of one allocation cost one copy a block; others are copied each for itself."""
    engine = memory_at(bases, 64, 64)
    host = memory_at([10_000 + 64 * number for number in range(len(bases))], 64 * len(bases), 64)
    assert [plane.segment_count for plane in planes_of(engine, host)] == planes
    assert [plane.segment_count for plane in planes_of(host, engine)] == planes


def test_segments_that_lie_anywhere_arrive_whole() -> None:
    """SGLang has a tensor for each layer's K and V, wherever the allocator put it."""
    buffer = np.arange(4096, dtype=np.uint64).view(np.uint8)
    base = int(buffer.ctypes.data)
    engine = memory_at([base + start for start in (20_000, 0, 4096, 8192, 10_000, 30_000)], 128, 96)
    target = np.zeros(4 * 6 * 96, dtype=np.uint8)
    host = memory_at([int(target.ctypes.data) + 96 * number for number in range(6)], 6 * 96, 96)
    slots, places = np.array([2, 3, 0], dtype=np.int64), np.array([0, 1, 3], dtype=np.int64)
    row_copy(engine, host).run(slots, places)
    for there, here in zip(engine.segments, host.segments, strict=True):
        assert (rows_of(here, 4)[places] == rows_of(there, 4)[slots]).all()
    assert not target.reshape(4, -1)[2].any()
