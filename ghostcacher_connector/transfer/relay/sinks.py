"""Where the rows that a relay sends are put: the local slots, private memory, or a device by way of host memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import Segment, SlotMemory
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.layout import Bytes, merge_runs, rows_of


class Sink(ABC):
    """Memory for the blocks of one exchange, numbered from 0 in the order asked for."""

    @abstractmethod
    def views(self, first: int, count: int) -> list[memoryview]:
        """Return the memory for blocks ``[first, first + count)``: segment after segment, block after block in each."""

    def landed(self, first: int, count: int) -> None:  # noqa: B027 - most sinks have nothing to do
        """Note that the views of these blocks are filled. Called before their seal is checked."""


class SlotSink(Sink):
    """The local slots themselves, in host memory."""

    def __init__(self, memory: SlotMemory, local_slots: Slots) -> None:
        self._memory = memory
        self._slots = local_slots

    def views(self, first: int, count: int) -> list[memoryview]:
        slots = self._slots[first : first + count]
        views: list[memoryview] = []
        for segment in self._memory.segments:
            rows = rows_of(segment, self._memory.slot_count)
            if segment.stride_bytes == segment.slot_bytes:
                runs = merge_runs(slots, slots)
                views.extend(
                    rows[start : start + length].reshape(-1).data
                    for start, length in zip(runs.local.tolist(), runs.length.tolist(), strict=True)
                )
            else:
                views.extend(rows[slot].data for slot in slots.tolist())
        return views


class HostSink(Sink):
    """Private memory, for a probe."""

    def __init__(self, count: int, slot_bytes: Sequence[int]) -> None:
        self._rows: list[Bytes] = [np.zeros((count, size), dtype=np.uint8) for size in slot_bytes]

    def views(self, first: int, count: int) -> list[memoryview]:
        return [rows[first : first + count].reshape(-1).data for rows in self._rows]

    def tobytes(self) -> bytes:
        """Return all rows, segment after segment."""
        return b"".join(rows.tobytes() for rows in self._rows)


class DeviceSink(Sink):
    """Local slots on a CUDA device: a chunk lands in host memory and is copied over before its seal is checked."""

    def __init__(self, memory: SlotMemory, local_slots: Slots) -> None:
        self._memory = memory
        self._slots = local_slots
        self._staging: list[Bytes] = []

    def views(self, first: int, count: int) -> list[memoryview]:
        del first
        self._staging = [np.empty((count, segment.slot_bytes), dtype=np.uint8) for segment in self._memory.segments]
        return [rows.reshape(-1).data for rows in self._staging]

    def landed(self, first: int, count: int) -> None:
        slots = self._slots[first : first + count]
        for segment, rows in zip(self._memory.segments, self._staging, strict=True):
            copy_to_device(segment, self._memory.slot_count, self._memory.device, slots, rows)


class _DeviceRows:
    """A segment on a CUDA device, in the form in which torch takes over foreign memory."""

    def __init__(self, segment: Segment, slot_count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (slot_count, segment.slot_bytes),
            "strides": (segment.stride_bytes, 1),
            "typestr": "|u1",
            "data": (segment.base, False),
            "version": 3,
        }


def copy_to_device(segment: Segment, slot_count: int, device: int, slots: Slots, rows: Bytes) -> None:
    """Copy host rows to the slots of a segment on a CUDA device; returns when they are there."""
    torch = _import_torch()
    name = f"cuda:{device}"
    target = torch.as_tensor(_DeviceRows(segment, slot_count), device=name)
    target[torch.from_numpy(slots).to(name)] = torch.from_numpy(rows).to(name)
    torch.cuda.current_stream(name).synchronize()


def sink_for(memory: SlotMemory, local_slots: Slots) -> Sink:
    """Return the sink that fills local slots."""
    return SlotSink(memory, local_slots) if memory.memory == "DRAM" else DeviceSink(memory, local_slots)


def check_memory(memory: SlotMemory) -> None:
    """Raise ConfigError when pulled rows could not be put into this memory."""
    if memory.memory != "DRAM":
        _import_torch()


def _import_torch() -> Any:
    # Imported here: only ranks with device memory need it, and the relay process must not load it.
    try:
        import torch  # noqa: PLC0415
    except ImportError as exc:
        raise ConfigError("the relay transport needs torch to fill device memory") from exc
    return torch
