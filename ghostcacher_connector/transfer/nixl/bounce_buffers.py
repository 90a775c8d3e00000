"""Bounce buffers: private registered memory in which seals, probes and the rows of a relay land.

A bounce buffer is lent to one pull and given back after it. A READ that was given up at its deadline may still land
later. So its buffer stays in quarantine until that READ reports that it is done or has failed: until then bytes may
land in the buffer, and it is lent to nobody.

    FREE -- take --> BUSY -- give_back --> FREE
                      |-- quarantine --> QUARANTINED -- READ over --> FREE
                                                  '-- its agent is destroyed --> gone with all of them

CUDA IPC reads a GPU's memory into a GPU's memory only. So for peers on a GPU each buffer has a second data part on a
device, where rows land, and `fetch` copies them to the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.slots import GENERATION_BYTES, Generations, seal_words
from ghostcacher_connector.transfer.cuda import CudaDevice
from ghostcacher_connector.transfer.layout import Bytes
from ghostcacher_connector.transfer.nixl.agent import Read, UnfinishedRead

SEAL_SLOTS_MAX = 4096
"""How many generations one seal READ brings: 32 KiB, which still takes a few microseconds."""

SEAL_BYTES = seal_words(SEAL_SLOTS_MAX) * GENERATION_BYTES
_PAGE = 4096


class BounceBuffer:
    """A data part for rows, and a place for a seal."""

    def __init__(self, memory: Bytes, number: int, device: CudaDevice | None, device_address: int) -> None:
        """memory: both parts, in host memory. device_address: of as many bytes as the data part has, on the device."""
        self.number = number
        self.data = memory[: len(memory) - SEAL_BYTES]
        self.seal: Generations = memory[len(memory) - SEAL_BYTES :].view(np.uint64)
        self._device = device
        self._device_address = device_address

    def __repr__(self) -> str:
        return f"BounceBuffer({self.number}, data={self.data_bytes})"

    @property
    def data_address(self) -> int:
        """Where the rows of a GPU must be read to: on the device if there is one, in `data` otherwise."""
        return self.host_address if self._device is None else self._device_address

    @property
    def host_address(self) -> int:
        """Where rows of host memory must be read to: in `data`."""
        return int(self.data.ctypes.data)

    @property
    def data_bytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def seal_address(self) -> int:
        return int(self.seal.ctypes.data)

    def fetch(self, size: int) -> None:
        """Bring the first `size` bytes that have landed to `data`; nothing is to be done where they landed there."""
        if self._device is not None and size:
            self._device.copy_to_host(self.data[:size], self._device_address)


class Quarantined(NamedTuple):
    """A buffer into which bytes may still land."""

    buffer: BounceBuffer
    read: Read
    """The READ that was given up, and may still write to the buffer."""
    when_over: Callable[[], None]
    """Called once, when the READ is over."""


class BounceBuffers:
    """A fixed number of bounce buffers in one allocation. Thread-safe.

    It never waits: that no buffer is free is an answer.
    """

    def __init__(self, count: int, data_bytes: int, *, memory: str = "DRAM", device: int = 0) -> None:
        """memory: NIXL's type of the memory to be read, "DRAM" or "VRAM". device: the number of its device.

        Raises ConfigError and TransferError when there is no such device, or no room on it.
        """
        assert count > 0
        assert data_bytes > 0
        size = -(-(data_bytes + SEAL_BYTES) // _PAGE) * _PAGE
        raw = np.zeros(count * size + _PAGE, dtype=np.uint8)
        skip = -int(raw.ctypes.data) % _PAGE
        self._host_memory = raw[skip : skip + count * size]
        self.memory, self.device = memory, device
        self.cuda = cuda = CudaDevice(device) if memory == "VRAM" else None
        self._device_start = cuda.allocate(count * size) if cuda is not None else 0
        self._buffers = [
            BounceBuffer(self._host_memory[i * size : (i + 1) * size], i, cuda, self._device_start + i * size)
            for i in range(count)
        ]
        self._lock = threading.Lock()
        self._free = list(self._buffers)
        self._quarantined: list[Quarantined] = []

    def __repr__(self) -> str:
        return f"BounceBuffers({len(self._buffers)}, {len(self._free)} free, {len(self._quarantined)} quarantined)"

    @property
    def span(self) -> tuple[int, int]:
        """Address and size of the whole allocation in host memory, for registration."""
        return int(self._host_memory.ctypes.data), int(self._host_memory.nbytes)

    @property
    def device_span(self) -> tuple[int, int] | None:
        """Address and size of the allocation on the device, if there is one."""
        return (self._device_start, int(self._host_memory.nbytes)) if self._device_start else None

    @property
    def data_bytes(self) -> int:
        """Size of one buffer's data part."""
        return self._buffers[0].data_bytes

    def take(self) -> BounceBuffer | None:
        """Lend a buffer, or return None when all are busy or quarantined."""
        self.reap()
        with self._lock:
            return self._free.pop() if self._free else None

    def give_back(self, buffer: BounceBuffer) -> None:
        """Take a buffer back into which nothing can land any more."""
        with self._lock:
            assert buffer not in self._free, f"{buffer} was given back twice"
            self._free.append(buffer)

    def quarantine(self, buffer: BounceBuffer, read: Read, when_over: Callable[[], None]) -> None:
        """Keep a buffer away from everybody until `read` is over; then call `when_over`, once."""
        with self._lock:
            self._quarantined.append(Quarantined(buffer, read, when_over))

    def reap(self) -> int:
        """Free the buffers whose READ is over; return how many stay quarantined."""
        if not self._quarantined:
            return 0  # as at almost every step of the engine; what another thread adds now is for the next call
        with self._lock:
            over = [entry for entry in self._quarantined if _is_over(entry.read)]
            self._quarantined = [entry for entry in self._quarantined if entry not in over]
            self._free.extend(entry.buffer for entry in over)
            left = len(self._quarantined)
        for entry in over:
            entry.when_over()
        return left

    def abandon(self) -> None:
        """Let go of the library in every READ that a buffer is quarantined for: its agent is about to be destroyed."""
        with self._lock:
            quarantined, self._quarantined = self._quarantined, []
        for entry in quarantined:
            entry.read.abandon()

    def close(self) -> None:
        """Wait for all that this process has given the buffers' device to do, and free what they have there."""
        if self.cuda is not None:
            self.cuda.wait_for_all()
            self.cuda.free(self._device_start)

    def quarantined_count(self) -> int:
        """Return how many buffers were quarantined when that was last looked at."""
        with self._lock:
            return len(self._quarantined)

    def free_count(self) -> int:
        """Return how many buffers could be lent now."""
        with self._lock:
            return len(self._free)

    def check_invariants(self) -> None:
        """Assert that no buffer is both free and quarantined, nor free twice. For tests."""
        with self._lock:
            held: Sequence[BounceBuffer] = [*self._free, *(entry.buffer for entry in self._quarantined)]
            assert len({buffer.number for buffer in held}) == len(held)


def _is_over(read: Read) -> bool:
    try:
        return read.done()
    except UnfinishedRead:
        return False
    except TransferError:
        return True
