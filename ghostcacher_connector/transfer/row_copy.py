"""Copies of slots between two memories of this process: engine slots to host slots, and back.

A slot has one row in each segment. Segments of equal rows that lie equally far apart on both sides are one *plane*, and
runs of slots that are adjacent on both sides are copied together: one strided copy for each plane and run. So a block
costs few calls, however many layers it has, and the interpreter's lock is free while its bytes move.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.types import Segment, SlotMemory
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.cuda import Copy2D, CudaDevice
from ghostcacher_connector.transfer.layout import fuse_segments, merge_runs


class Plane(NamedTuple):
    """Segments with rows of one size, equally far apart; each side has a distance of its own."""

    source: Segment
    """The first segment."""
    target: Segment
    source_step: int
    """From the start of one segment to that of the next, in bytes."""
    target_step: int
    segment_count: int
    """How many segments."""


def planes_of(source: SlotMemory, target: SlotMemory) -> list[Plane]:
    """Return as few planes as cover all segments, which have equal row sizes, in order, on both sides."""
    planes: list[Plane] = []
    for theirs, ours in zip(*fuse_segments(source.segments, target.segments), strict=True):
        if planes and (wider := _widened(planes[-1], theirs, ours)) is not None:
            planes[-1] = wider
        else:
            planes.append(Plane(theirs, ours, theirs.slot_bytes, ours.slot_bytes, 1))
    return planes


def _widened(plane: Plane, source: Segment, target: Segment) -> Plane | None:
    """Return a plane with one more segment, or None where that one does not fit."""
    last = plane.segment_count - 1
    source_step = source.base - plane.source.base - last * plane.source_step
    target_step = target.base - plane.target.base - last * plane.target_step
    alike = (source.slot_bytes, source.stride_bytes, target.stride_bytes) == (
        plane.source.slot_bytes,
        plane.source.stride_bytes,
        plane.target.stride_bytes,
    )
    as_before = plane.segment_count == 1 or (source_step, target_step) == (plane.source_step, plane.target_step)
    if not alike or not as_before or min(source_step, target_step) < source.slot_bytes:
        return None
    return plane._replace(source_step=source_step, target_step=target_step, segment_count=plane.segment_count + 1)


class RowCopy(ABC):
    """Copies slots from one memory to another, which have equal row sizes. Thread-safe for distinct target slots."""

    def __init__(self, source: SlotMemory, target: SlotMemory) -> None:
        assert source.slot_bytes == target.slot_bytes
        self._planes = planes_of(source, target)

    @abstractmethod
    def run(self, source_slots: Slots, target_slots: Slots) -> None:
        """Copy slot ``source_slots[i]`` to ``target_slots[i]``, shape (n,), numbered within their memories.

        When it returns, all bytes are there. Raises TransferError when a device refuses.
        """


class HostRowCopy(RowCopy):
    """Between memories of the host."""

    def __init__(self, source: SlotMemory, target: SlotMemory) -> None:
        super().__init__(source, target)
        self._views = [
            (
                _view(plane.source, plane.source_step, plane.segment_count, source.slot_count),
                _view(plane.target, plane.target_step, plane.segment_count, target.slot_count),
            )
            for plane in self._planes
        ]

    def run(self, source_slots: Slots, target_slots: Slots) -> None:
        runs = merge_runs(source_slots, target_slots)
        for source, target, length in zip(*(column.tolist() for column in runs), strict=True):
            for theirs, ours in self._views:
                ours[target : target + length] = theirs[source : source + length]


class DeviceRowCopy(RowCopy):
    """Between a CUDA device and memory of the host, pinned or not, on the device's own stream for us."""

    def __init__(self, source: SlotMemory, target: SlotMemory, device: CudaDevice) -> None:
        super().__init__(source, target)
        self._device = device
        self._to_device = target.memory == "VRAM"

    def run(self, source_slots: Slots, target_slots: Slots) -> None:
        self._device.copy_all(copies_2d(self._planes, source_slots, target_slots, to_device=self._to_device))


def copies_2d(
    planes: Sequence[Plane], source_slots: Slots, target_slots: Slots, *, to_device: bool
) -> Iterator[Copy2D]:
    """Return the copies of all slots in two dimensions: by slot or by segment, whichever needs fewer."""
    runs = merge_runs(source_slots, target_slots)
    for source, target, length in zip(*(column.tolist() for column in runs), strict=True):
        for plane in planes:
            there, here = plane.source, plane.target
            first_source = there.base + source * there.stride_bytes
            first_target = here.base + target * here.stride_bytes
            by_slot = (there.stride_bytes, here.stride_bytes, length)
            by_segment = (plane.source_step, plane.target_step, plane.segment_count)
            inner, outer = (by_slot, by_segment) if length > plane.segment_count else (by_segment, by_slot)
            for number in range(outer[2]):
                yield Copy2D(
                    to_device=to_device,
                    source=first_source + number * outer[0],
                    source_step=inner[0],
                    target=first_target + number * outer[1],
                    target_step=inner[1],
                    row_bytes=there.slot_bytes,
                    row_count=inner[2],
                )


def row_copy(source: SlotMemory, target: SlotMemory, device: CudaDevice | None = None) -> RowCopy:
    """Return what copies slots from one memory to the other, one of which at least is the host's.

    device: that of the other one, to share its stream; by default a stream is made. Raises ConfigError, TransferError.
    """
    on_device = next((memory for memory in (source, target) if memory.memory == "VRAM"), None)
    if on_device is None:
        return HostRowCopy(source, target)
    return DeviceRowCopy(source, target, device or CudaDevice(on_device.device))


def _view(first: Segment, step: int, count: int, slot_count: int) -> npt.NDArray[np.uint8]:
    """Return the rows of a plane, shape (slot_count, count, slot_bytes)."""
    span_bytes = (slot_count - 1) * first.stride_bytes + (count - 1) * step + first.slot_bytes
    span = np.ctypeslib.as_array((ctypes.c_uint8 * span_bytes).from_address(first.base))
    return np.lib.stride_tricks.as_strided(
        span, shape=(slot_count, count, first.slot_bytes), strides=(first.stride_bytes, step, 1)
    )
