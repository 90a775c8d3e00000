"""A rank's KV memory for tests: numpy buffers whose bytes tell which (slot, generation, segment) wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ghostcacher_connector.core.types import Segment
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.layout import RankMemory, rows_of


class KvMemory:
    """Slots of test content. layout "layers": dense segments; "blocks": all segments of a slot side by side; "gaps"."""

    def __init__(self, slot_count: int = 64, segment_count: int = 3, slot_bytes: int = 4096, layout: str = "layers"):
        assert slot_bytes % 8 == 0
        gap = 64 if layout == "gaps" else 0
        self._buffer = np.zeros(slot_count * segment_count * (slot_bytes + gap) + 64, dtype=np.uint8)
        base = int(self._buffer.ctypes.data)
        if layout == "blocks":
            step, stride = slot_bytes, slot_bytes * segment_count
        else:
            step, stride = slot_count * (slot_bytes + gap), slot_bytes + gap
        segments = tuple(Segment(base + i * step, stride, slot_bytes) for i in range(segment_count))
        self.rank = RankMemory(segments, slot_count)
        self.table = SlotTable(slot_count)
        self.rows = [rows_of(segment, slot_count) for segment in segments]
        self.words = [rows.view(np.uint64) for rows in self.rows]

    def write(self, slots: np.ndarray, generations: np.ndarray) -> None:
        """Bump, then overwrite: what an engine does with a slot that it reuses."""
        self.table.bump(slots, generations)
        self.overwrite(slots, generations)

    def overwrite(self, slots: np.ndarray, generations: np.ndarray) -> None:
        """Fill slots with the content of their generation, without a bump."""
        for number, words in enumerate(self.words):
            words[slots] = pattern(slots, generations, number, words.shape[1])

    def clear(self) -> None:
        """Zero everything."""
        for rows in self.rows:
            rows[:] = 0

    def holds(self, slots: np.ndarray, remote: np.ndarray, generations: np.ndarray) -> np.ndarray:
        """Say for each slot whether every word of it is the owner's content of (remote slot, generation)."""
        good = np.ones(len(slots), dtype=bool)
        for number, words in enumerate(self.words):
            good &= (words[slots] == pattern(remote, generations, number, words.shape[1])).all(axis=1)
        return good


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
