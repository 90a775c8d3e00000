"""Private registered memory: bounce buffers and landing places for seals.

CUDA IPC reads a GPU's memory into a GPU's memory only. So for such peers an arena has a second data part, on a device,
where rows land, and `fetch` brings them to the host.

An arena is taken for one pull and given back after it. An arena with a READ that was given up stays quarantined until
that READ reports that it is done or has failed: until then bytes may land in it, and it may be lent to nobody.

    FREE -- take --> BUSY -- give_back --> FREE
                      |-- quarantine --> QUARANTINED -- READ over --> FREE
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.slots import GENERATION_BYTES, Generations, seal_words
from ghostcacher_connector.transfer.layout import Bytes
from ghostcacher_connector.transfer.nixl.agent import Read
from ghostcacher_connector.transfer.nixl.cuda import CudaDevice

SEAL_SLOTS_MAX = 4096
"""Generations read with one seal READ: 32 KiB, still a few microseconds."""

SEAL_BYTES = seal_words(SEAL_SLOTS_MAX) * GENERATION_BYTES
_PAGE = 4096


class Arena:
    """One piece of a pool's buffer: a data part and a place for a seal."""

    def __init__(self, buffer: Bytes, number: int, device: CudaDevice | None, device_address: int) -> None:
        """device_address: of as many bytes as the data part has, on the device."""
        self.number = number
        self.data = buffer[: len(buffer) - SEAL_BYTES]
        self.seal: Generations = buffer[len(buffer) - SEAL_BYTES :].view(np.uint64)
        self._device = device
        self._device_address = device_address

    def __repr__(self) -> str:
        return f"Arena({self.number}, data={self.data_bytes})"

    @property
    def data_address(self) -> int:
        """Where rows must be read to: in the memory that the pool names."""
        return int(self.data.ctypes.data) if self._device is None else self._device_address

    @property
    def data_bytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def seal_address(self) -> int:
        return int(self.seal.ctypes.data)

    def fetch(self, size: int) -> None:
        """Bring the first `size` bytes that have landed to `data`; nothing to do where they land there."""
        if self._device is not None and size:
            self._device.copy_to_host(self.data[:size], self._device_address)


class Quarantined(NamedTuple):
    """An arena in quarantine, the READ that may still write to it, and what to call when it is over."""

    arena: Arena
    read: Read
    when_over: Callable[[], None]


class ArenaPool:
    """A fixed number of arenas in one allocation. Never waits: no free arena is an answer. Thread-safe."""

    def __init__(self, count: int, data_bytes: int, *, memory: str = "DRAM", device: int = 0) -> None:
        """memory: NIXL's type of the memory to be read, "DRAM" or "VRAM"; device: its number.

        Raises ConfigError and TransferError when there is no such device, or no room on it.
        """
        assert count > 0
        assert data_bytes > 0
        size = -(-(data_bytes + SEAL_BYTES) // _PAGE) * _PAGE
        raw = np.zeros(count * size + _PAGE, dtype=np.uint8)
        skip = -int(raw.ctypes.data) % _PAGE
        self._buffer = raw[skip : skip + count * size]
        self.memory, self.device = memory, device
        cuda = CudaDevice(device) if memory == "VRAM" else None
        self._device_start = cuda.allocate(count * size) if cuda is not None else 0
        self._arenas = [
            Arena(self._buffer[i * size : (i + 1) * size], i, cuda, self._device_start + i * size) for i in range(count)
        ]
        self._lock = threading.Lock()
        self._free = list(self._arenas)
        self._quarantined: list[Quarantined] = []

    def __repr__(self) -> str:
        return f"ArenaPool({len(self._arenas)} arenas, {len(self._free)} free, {len(self._quarantined)} quarantined)"

    @property
    def span(self) -> tuple[int, int]:
        """Address and size of the whole buffer in host memory, for registration."""
        return int(self._buffer.ctypes.data), int(self._buffer.nbytes)

    @property
    def device_span(self) -> tuple[int, int] | None:
        """Address and size of the buffer on the device, if there is one."""
        return (self._device_start, int(self._buffer.nbytes)) if self._device_start else None

    @property
    def data_bytes(self) -> int:
        """Size of one arena's data part."""
        return self._arenas[0].data_bytes

    def take(self) -> Arena | None:
        """Lend an arena, or return None when all are busy or quarantined."""
        self.reap()
        with self._lock:
            return self._free.pop() if self._free else None

    def give_back(self, arena: Arena) -> None:
        """Take an arena back into which nothing can land any more."""
        with self._lock:
            assert arena not in self._free, f"{arena} was given back twice"
            self._free.append(arena)

    def quarantine(self, arena: Arena, read: Read, when_over: Callable[[], None]) -> None:
        """Keep an arena away from everybody until `read` is over; then call `when_over`, once."""
        with self._lock:
            self._quarantined.append(Quarantined(arena, read, when_over))

    def reap(self) -> int:
        """Free the arenas whose READ is over; return how many stay quarantined."""
        with self._lock:
            over = [entry for entry in self._quarantined if _is_over(entry.read)]
            self._quarantined = [entry for entry in self._quarantined if entry not in over]
            self._free.extend(entry.arena for entry in over)
            left = len(self._quarantined)
        for entry in over:
            entry.when_over()
        return left

    def free_count(self) -> int:
        """Return how many arenas could be lent now."""
        with self._lock:
            return len(self._free)

    def check_invariants(self) -> None:
        """Assert that no arena is both free and quarantined, nor free twice. For tests."""
        with self._lock:
            held: Sequence[Arena] = [*self._free, *(entry.arena for entry in self._quarantined)]
            assert len({arena.number for arena in held}) == len(held)


def _is_over(read: Read) -> bool:
    try:
        return read.done()
    except TransferError:
        return True
