"""A rank's KV memory for tests: numpy buffers whose bytes tell which (slot, generation, segment) wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.layout import by_memory, rows_of


class KvMemory:
    """Slots of test content. layout "layers": dense segments; "blocks": all segments of a slot side by side; "gaps".

    host_slots: how many slots follow in a memory of their own, one row a slot, as the host tier has them.
    """

    def __init__(
        self,
        slot_count: int = 64,
        segment_count: int = 3,
        slot_bytes: int = 4096,
        layout: str = "layers",
        host_slots: int = 0,
    ):
        assert slot_bytes % 8 == 0
        gap = 64 if layout == "gaps" else 0
        self._buffer = np.zeros(slot_count * segment_count * (slot_bytes + gap) + 64, dtype=np.uint8)
        base = int(self._buffer.ctypes.data)
        if layout == "blocks":
            step, stride = slot_bytes, slot_bytes * segment_count
        else:
            step, stride = slot_count * (slot_bytes + gap), slot_bytes + gap
        segments = tuple(Segment(base + i * step, stride, slot_bytes) for i in range(segment_count))
        self.rank = SlotMemory(Tier.DEVICE, slot_count, segments)
        self.memories: tuple[SlotMemory, ...] = (self.rank,)
        if host_slots:
            row_bytes = segment_count * slot_bytes
            self._host = np.zeros(host_slots * row_bytes, dtype=np.uint8)
            start = int(self._host.ctypes.data)
            rows = tuple(Segment(start + i * slot_bytes, row_bytes, slot_bytes) for i in range(segment_count))
            self.memories = (self.rank, SlotMemory(Tier.HOST, host_slots, rows))
        self.host_rows = [rows_of(segment, host_slots) for memory in self.memories[1:] for segment in memory.segments]
        self.table = SlotTable(slot_count + host_slots)
        self.rows = [rows_of(segment, slot_count) for segment in segments]
        self.words = [rows.view(np.uint64) for rows in self.rows]

    def adopt(self, host: SlotMemory) -> None:
        """Have these host slots from now on, and a new table."""
        self.memories = (self.rank, host)
        self.host_rows = [rows_of(segment, host.slot_count) for segment in host.segments]
        self.table = SlotTable(self.rank.slot_count + host.slot_count)

    def write(self, slots: np.ndarray, generations: np.ndarray) -> None:
        """Bump, then overwrite: what an engine does with a slot that it reuses."""
        self.table.bump(slots, generations)
        self.overwrite(slots, generations)

    def overwrite(self, slots: np.ndarray, generations: np.ndarray) -> None:
        """Fill slots with the content of their generation, without a bump."""
        self.fill(slots, slots, generations)

    def fill(self, slots: np.ndarray, owners: np.ndarray, generations: np.ndarray) -> None:
        """Fill slots with the content that other slots, `owners`, have at these generations."""
        for memory, places, within in by_memory(self.memories, slots):
            for number, segment in enumerate(memory.segments):
                words = rows_of(segment, memory.slot_count).view(np.uint64)
                words[within] = pattern(owners[places], generations[places], number, words.shape[1])

    def clear(self) -> None:
        """Zero everything."""
        for memory in self.memories:
            for segment in memory.segments:
                rows_of(segment, memory.slot_count)[:] = 0

    def holds(self, slots: np.ndarray, remote: np.ndarray, generations: np.ndarray) -> np.ndarray:
        """Say for each slot whether every word of it is the owner's content of (remote slot, generation)."""
        good = np.ones(len(slots), dtype=bool)
        for memory, places, within in by_memory(self.memories, slots):
            for number, segment in enumerate(memory.segments):
                words = rows_of(segment, memory.slot_count).view(np.uint64)
                expected = pattern(remote[places], generations[places], number, words.shape[1])
                good[places] &= (words[within] == expected).all(axis=1)
        return good

    def tobytes(self, slots: np.ndarray) -> bytes:
        """Return the rows of slots, segment after segment."""
        rows = [np.zeros((len(slots), size), dtype=np.uint8) for size in self.rank.slot_bytes]
        for memory, places, within in by_memory(self.memories, slots):
            for number, segment in enumerate(memory.segments):
                rows[number][places] = rows_of(segment, memory.slot_count)[within]
        return b"".join(part.tobytes() for part in rows)


def pattern(slots: np.ndarray, generations: np.ndarray, segment: int, words: int) -> np.ndarray:
    """Return the content of slots, shape (n, words): every word differs by slot, generation, segment and place."""
    seed = (slots.astype(np.uint64) << np.uint64(40)) ^ (generations.astype(np.uint64) << np.uint64(12))
    seed ^= np.uint64(segment + 1)
    return seed[:, None] * np.uint64(0x9E3779B97F4A7C15) + np.arange(words, dtype=np.uint64)[None, :]


def make_memory(options: dict[str, Any]) -> KvMemory:
    """Return the memory with these keyword arguments: on a GPU if they name a device."""
    if "device" not in options:
        return KvMemory(**options)
    from tests.support.device_memory import DeviceMemory  # loads torch

    return DeviceMemory(**options)
