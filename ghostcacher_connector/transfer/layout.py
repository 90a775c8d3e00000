"""From slots to addresses: which bytes a pull moves, as descriptor arrays. Knows neither NIXL nor a socket.

A pull names slots. A slot is one row in each segment (a layer's K, V, or both packed). This module

1. refuses what must never become a READ: slots out of range, rows of different size, addresses that overflow;
2. finds the memory that each slot lies in: a rank's slots are numbered through all of its memories;
3. fuses segments whose rows lie side by side on both sides (so a block-major cache becomes one segment);
4. merges slots that are adjacent on both sides, where the rows of a segment are dense (stride equals row size) on both;
5. returns ``(address, length, device)`` rows for either side, as numpy arrays of shape (n, 3), uint64.

`rows_of` views slots of this process's own memory as a numpy array.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import INCARNATION_BYTES, MissReason, RankEndpoint, Segment, SlotMemory, Tier
from ghostcacher_connector.slots import Slots

Descriptors = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

ADDRESS_END = 1 << 63
"""No address in user space reaches this one; a larger sum comes from a damaged or hostile record."""

TIERS_IN_ORDER = ([Tier.DEVICE], [Tier.DEVICE, Tier.HOST])
"""The tiers that a rank may have memories in."""

SEGMENTS_MAX = 8192
"""Far above what any engine has (two a layer); bounds what a hostile record can make this process build."""


class Part(NamedTuple):
    """Those of some slots that lie in one memory."""

    memory: SlotMemory
    places: Slots
    """Which of the slots they are, ascending, shape (n,)."""
    slots: Slots
    """Their numbers within the memory, shape (n,)."""


class Runs(NamedTuple):
    """Longest runs of slots that are adjacent on both sides."""

    remote: Slots
    """The first remote slot of each run, shape (n,)."""
    local: Slots
    """The first local slot of each run, shape (n,)."""
    length: Slots
    """How many slots each run has, shape (n,)."""


class Side(NamedTuple):
    """One side of a transfer."""

    segments: Sequence[Segment]
    device: int
    """The device number that the descriptors of this side carry."""


def endpoint_fault(peer: RankEndpoint) -> str:
    """Say what makes an endpoint unusable, or return an empty string. Endpoints come from the network."""
    if len(peer.incarnation) != INCARNATION_BYTES:
        return f"incarnation: expected {INCARNATION_BYTES} bytes, got {len(peer.incarnation)}"
    if [memory.tier for memory in peer.memories] not in TIERS_IN_ORDER:
        return f"memories of {[memory.tier.name for memory in peer.memories]}: expected the engine's, then the host's"
    if fault := next(filter(None, map(memory_fault, peer.memories)), ""):
        return fault
    if any(memory.slot_bytes != peer.slot_bytes for memory in peer.memories):
        return "its memories differ in their bytes per slot"
    if not 0 < peer.table < ADDRESS_END - 8 * (peer.slot_count + 5):
        return f"slot table at {peer.table:#x} is out of range"
    return ""


def memory_fault(memory: SlotMemory) -> str:
    """Say what makes a memory unusable, or return an empty string."""
    if memory.memory not in {"DRAM", "VRAM"} or memory.device < 0:
        return f"memory {memory.memory!r} device {memory.device} is unknown"
    if not 0 < memory.slot_count < ADDRESS_END // 8 or not 0 < len(memory.segments) <= SEGMENTS_MAX:
        return f"{memory.slot_count} slots in {len(memory.segments)} segments is out of range"
    bad = next((segment for segment in memory.segments if not _is_sane(segment, memory.slot_count)), None)
    return "" if bad is None else f"malformed {bad}"


def request_fault(
    local: SlotMemory, peer: RankEndpoint, remote_slots: Slots, local_slots: Slots, count: int
) -> tuple[MissReason, str] | None:
    """Say why a pull must not become a READ, or return None.

    local: the engine's memory: a pull fills no other. count: the number of generations given; all three must agree.
    Local slots must be distinct, since two blocks cannot lie in one place.
    """
    fault = endpoint_fault(peer)
    if fault:
        return MissReason.MALFORMED_ENTRY, f"endpoint of {peer.agent_name}: {fault}"
    if local.slot_bytes != peer.slot_bytes:
        detail = f"bytes per slot: expected {_brief(local.slot_bytes)}, found {_brief(peer.slot_bytes)}"
        return MissReason.FINGERPRINT_MISMATCH, detail
    if not len(remote_slots) == len(local_slots) == count:
        return MissReason.MALFORMED_ENTRY, f"{len(remote_slots)} slots into {len(local_slots)}, {count} generations"
    for side, slots, slot_count in (
        ("remote", remote_slots, peer.slot_count),
        ("local", local_slots, local.slot_count),
    ):
        fault = slots_fault(slots, slot_count)
        if fault:
            return MissReason.MALFORMED_ENTRY, f"{side} {fault}"
    if len(np.unique(local_slots)) != len(local_slots):
        return MissReason.MALFORMED_ENTRY, "a local slot occurs twice"
    return None


def slots_fault(slots: Slots, slot_count: int) -> str:
    """Say which slot lies outside ``[0, slot_count)``, or return an empty string."""
    outside = (slots < 0) | (slots >= slot_count)
    if outside.any():
        return f"slot {int(slots[int(np.argmax(outside))])} is outside [0, {slot_count})"
    return ""


def by_memory(memories: Sequence[SlotMemory], slots: Slots) -> list[Part]:
    """Sort slots, shape (n,), by the memory that they lie in, memories without any left out.

    The caller has checked that each slot lies in one of them.
    """
    parts = []
    first = 0
    for memory in memories:
        places = np.flatnonzero((slots >= first) & (slots < first + memory.slot_count))
        if len(places):
            parts.append(Part(memory, places, slots[places] - first))
        first += memory.slot_count
    return parts


def merge_runs(remote: Slots, local: Slots) -> Runs:
    """Merge neighbours that are adjacent, ascending, on both sides; order is kept.

    remote, local: shape (n,). Returns at most n runs that cover the pairs in order.
    """
    if len(remote) == 0:
        return Runs(remote, local, np.zeros(0, dtype=np.int64))
    breaks = np.flatnonzero((np.diff(remote) != 1) | (np.diff(local) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    length = np.diff(np.concatenate((starts, [len(remote)])))
    return Runs(remote[starts], local[starts], length.astype(np.int64))


def fuse_segments(
    remote: Sequence[Segment], local: Sequence[Segment]
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Fuse segments whose rows lie side by side, on both sides, into wider ones.

    Both sides have equal ``slot_bytes`` per segment, in order, and keep so.
    """
    fused_remote: list[Segment] = []
    fused_local: list[Segment] = []
    for theirs, ours in zip(remote, local, strict=True):
        if fused_remote and _side_by_side(fused_remote[-1], theirs) and _side_by_side(fused_local[-1], ours):
            fused_remote[-1] = _widen(fused_remote[-1], theirs)
            fused_local[-1] = _widen(fused_local[-1], ours)
        else:
            fused_remote.append(theirs)
            fused_local.append(ours)
    return tuple(fused_remote), tuple(fused_local)


def descriptors(remote: Side, local: Side, remote_slots: Slots, local_slots: Slots) -> tuple[Descriptors, Descriptors]:
    """Return the descriptor arrays ``(remote, local)`` that move slot ``remote_slots[i]`` to ``local_slots[i]``.

    Slots are numbered within each side. The caller has checked them and the row sizes (`request_fault`). Row ``k`` of
    both arrays has the same length.
    """
    runs = merge_runs(remote_slots, local_slots)
    theirs_out: list[Descriptors] = []
    ours_out: list[Descriptors] = []
    for theirs, ours in zip(*fuse_segments(remote.segments, local.segments), strict=True):
        dense = theirs.stride_bytes == theirs.slot_bytes and ours.stride_bytes == ours.slot_bytes
        first_remote, first_local = (runs.remote, runs.local) if dense else (remote_slots, local_slots)
        length = runs.length * theirs.slot_bytes if dense else np.full(len(remote_slots), theirs.slot_bytes)
        theirs_out.append(_rows(theirs, first_remote, length, remote.device))
        ours_out.append(_rows(ours, first_local, length, local.device))
    return np.concatenate(theirs_out), np.concatenate(ours_out)


def regions(memory: SlotMemory) -> list[tuple[int, int]]:
    """Return the ``(address, bytes)`` ranges that hold all segments; ranges that overlap become one.

    Ranges which only touch stay apart, because they may be different allocations of a device.
    """
    spans = sorted((s.base, s.base + (memory.slot_count - 1) * s.stride_bytes + s.slot_bytes) for s in memory.segments)
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return [(start, end - start) for start, end in merged]


def packed_segments(base: int, slot_bytes: Sequence[int], slot_count: int) -> tuple[Segment, ...]:
    """Lay slots out densely from `base`, one segment after the other (a bounce buffer, a relay's reply)."""
    packed = []
    for size in slot_bytes:
        packed.append(Segment(base, size, size))
        base += size * slot_count
    return tuple(packed)


def describe_segments(segments: Sequence[Segment]) -> str:
    """Return how slots lie in memory, without addresses: equal layouts give equal texts."""
    planes: list[tuple[int, int, int]] = []
    for segment in segments:
        if planes and planes[-1][1:] == (segment.slot_bytes, segment.stride_bytes):
            planes[-1] = (planes[-1][0] + 1, *planes[-1][1:])
        else:
            planes.append((1, segment.slot_bytes, segment.stride_bytes))
    return ",".join(f"{count}x{slot}/{stride}" for count, slot, stride in planes)


def rows_of(segment: Segment, slot_count: int) -> Bytes:
    """Return the rows of a segment as a writable array, shape (slot_count, slot_bytes).

    The caller guarantees that the memory outlives the array.
    """
    span_bytes = (slot_count - 1) * segment.stride_bytes + segment.slot_bytes
    span = np.ctypeslib.as_array((ctypes.c_uint8 * span_bytes).from_address(segment.base))
    return np.lib.stride_tricks.as_strided(
        span, shape=(slot_count, segment.slot_bytes), strides=(segment.stride_bytes, 1)
    )


def _is_sane(segment: Segment, slot_count: int) -> bool:
    return (
        segment.base > 0
        and 0 < segment.slot_bytes <= segment.stride_bytes
        and segment.base + segment.stride_bytes * slot_count < ADDRESS_END
    )


def _rows(segment: Segment, first: Slots, length: Slots, device: int) -> Descriptors:
    rows = np.empty((len(first), 3), dtype=np.uint64)
    rows[:, 0] = segment.base + first * segment.stride_bytes
    rows[:, 1] = length
    rows[:, 2] = device
    return rows


def _side_by_side(left: Segment, right: Segment) -> bool:
    return (
        right.base == left.base + left.slot_bytes
        and right.stride_bytes == left.stride_bytes
        and left.slot_bytes + right.slot_bytes <= left.stride_bytes
    )


def _widen(left: Segment, right: Segment) -> Segment:
    return Segment(left.base, left.stride_bytes, left.slot_bytes + right.slot_bytes)


def _brief(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} segments of {sorted(set(sizes))[:4]}"
