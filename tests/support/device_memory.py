"""A rank's KV memory on a GPU for tests: the same content as `KvMemory` has, written and read by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.slots import SlotTable
from tests.support.kv_memory import KvMemory, pattern


class DeviceMemory(KvMemory):
    """Slots of test content on a CUDA device; layout "layers": dense segments, "blocks": side by side in a slot."""

    def __init__(
        self,
        slot_count: int = 64,
        segment_count: int = 3,
        slot_bytes: int = 4096,
        layout: str = "layers",
        device: int = 0,
    ):
        words = slot_bytes // 8
        shape = (segment_count, slot_count, words) if layout == "layers" else (slot_count, segment_count, words)
        self.device = f"cuda:{device}"
        self._tensor = torch.zeros(shape, dtype=torch.int64, device=self.device)
        parts = self._tensor if layout == "layers" else self._tensor.transpose(0, 1)
        stride = slot_bytes if layout == "layers" else slot_bytes * segment_count
        segments = tuple(Segment(part.data_ptr(), stride, slot_bytes) for part in parts)
        self.rank = SlotMemory(Tier.DEVICE, slot_count, segments, "VRAM", device)
        self.memories = (self.rank,)
        self.table = SlotTable(slot_count)
        self._parts = list(parts)
        torch.cuda.synchronize(self.device)

    def overwrite(self, slots: np.ndarray, generations: np.ndarray) -> None:
        for number, part in enumerate(self._parts):
            part[self._index(slots)] = self._content(slots, generations, number, part.shape[1])
        torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        self._tensor.zero_()
        torch.cuda.synchronize(self.device)

    def holds(self, slots: np.ndarray, remote: np.ndarray, generations: np.ndarray) -> np.ndarray:
        good = np.ones(len(slots), dtype=bool)
        for number, part in enumerate(self._parts):
            same = part[self._index(slots)] == self._content(remote, generations, number, part.shape[1])
            good &= same.all(dim=1).cpu().numpy()
        return good

    def tobytes(self, slots: np.ndarray) -> bytes:
        """Return the rows of slots, segment after segment."""
        return b"".join(part[self._index(slots)].cpu().numpy().tobytes() for part in self._parts)

    def _index(self, slots: np.ndarray) -> Any:
        return torch.from_numpy(np.asarray(slots, dtype=np.int64)).to(self.device)

    def _content(self, slots: np.ndarray, generations: np.ndarray, segment: int, words: int) -> Any:
        return torch.from_numpy(pattern(slots, generations, segment, words).view(np.int64)).to(self.device)
