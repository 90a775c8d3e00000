"""The host tier's memory: one anonymous mapping a rank, whole and in place before the engine serves.

A host slot is one row, in which the rows of the engine's segments follow each other. All pages are touched at start, by
the rank's own thread: that takes them from its NUMA node, and shows at once whether there is enough. What the machine
and the control groups have left is looked at before each step, since other ranks take theirs at the same time, and a
process that takes too much is killed without a word.

Huge pages are used where they are reserved (MAP_HUGETLB), else asked for (MADV_HUGEPAGE). Children get no copy of the
mapping: a page that is shared with a child is replaced when it is written, and a network card would read the old one.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from pathlib import Path

import numpy as np

from ghostcacher_connector.core.errors import ConfigError, TransferError
from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.cuda import CudaDevice

logger = logging.getLogger(__name__)

GIB = 1 << 30
HUGE_PAGE = 2 << 20
STEP_BYTES = 256 << 20
"""Touched between two looks at what is left."""

RESERVE_BYTES = 512 << 20
"""Left to everybody else on the machine, at least."""

MAP_HUGETLB = 0x40000
MADV_POPULATE_WRITE = 23
"""Linux 5.14: touches pages, and says so when it cannot, where a write would end the process."""


class HostMemory:
    """Host slots of one rank. Owner of the mapping: it lasts until `close`."""

    def __init__(self, slot_count: int, slot_bytes: tuple[int, ...], *, device: int | None = None) -> None:
        """Map and touch the memory. slot_bytes: the size of a slot's row in each segment.

        device: the GPU whose copies it is pinned for; None: none. Raises ConfigError when there is too little memory.
        """
        row_bytes = sum(slot_bytes)
        size = -(-slot_count * row_bytes // HUGE_PAGE) * HUGE_PAGE
        self._mapping, self._huge = _mapped(size)
        self._bytes = np.frombuffer(self._mapping, dtype=np.uint8)
        self._device: CudaDevice | None = None
        base = int(self._bytes.ctypes.data)
        starts = (0, *np.cumsum(slot_bytes).tolist())
        segments = tuple(Segment(base + start, row_bytes, n) for start, n in zip(starts, slot_bytes, strict=False))
        self.slots = SlotMemory(Tier.HOST, slot_count, segments)
        """The slots, as peers and copies see them."""
        try:
            self._touch()
            if device is not None:
                self._pin(CudaDevice(device))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        kind = "reserved huge pages" if self._huge else "pages"
        pinned = f", pinned for {self._device}" if self._device is not None else ""
        return f"HostMemory({self.slots.slot_count} slots, {self.nbytes / GIB:.2f} GiB of {kind}{pinned})"

    @property
    def nbytes(self) -> int:
        """The size of the mapping, in bytes."""
        return len(self._mapping)

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self._mapping.closed

    def close(self) -> None:
        """Give the memory back: nothing may read or write it any more. Idempotent."""
        if self.closed:
            return
        if self._device is not None:
            self._device.unpin(int(self._bytes.ctypes.data))
        del self._bytes
        self._mapping.close()

    def _pin(self, device: CudaDevice) -> None:
        device.pin(int(self._bytes.ctypes.data), self.nbytes)
        self._device = device

    def _touch(self) -> None:
        """Touch every page, step by step, as long as the machine has enough. Raises ConfigError."""
        for start in range(0, self.nbytes, STEP_BYTES):
            step = min(STEP_BYTES, self.nbytes - start)
            if not self._huge and (left := memory_left()) < step + RESERVE_BYTES:
                raise too_little(self.nbytes, start + max(0, left - RESERVE_BYTES))
            try:
                self._mapping.madvise(MADV_POPULATE_WRITE, start, step)
            except OSError as exc:
                if self._huge:
                    raise too_little(self.nbytes, start) from exc
                self._bytes[start : start + step : mmap.PAGESIZE] = 0  # a kernel that does not know the advice


def open_host_memory(size_gib: float, engine: SlotMemory, *, ranks: int) -> HostMemory | None:
    """Return the host memory of one rank, or None where none is wanted.

    size_gib: of all ranks of the worker together. engine: the rank's memory in the engine, whose rows it holds.
    Raises ConfigError when it holds no block, or the machine has too little.
    """
    if size_gib <= 0:
        return None
    slot_count = int(size_gib * GIB / ranks) // engine.bytes_per_slot
    if slot_count == 0:
        least = engine.bytes_per_slot * ranks / GIB
        raise ConfigError(f"host_tier_gib: expected at least {least:.3g}, one block of each rank, got {size_gib:g}")
    device = engine.device if engine.memory == "VRAM" else None
    try:
        memory = HostMemory(slot_count, engine.slot_bytes, device=device)
    except TransferError as exc:
        raise ConfigError(f"host_tier_gib: {size_gib:g} GiB cannot be pinned: {exc}") from exc
    logger.info("host tier: %r", memory)
    return memory


def too_little(wanted: int, available: int) -> ConfigError:
    """Return the error for a machine, or a control group, that has too little memory left."""
    return ConfigError(
        f"host_tier_gib: expected at most what this machine and its control groups have left for this rank, "
        f"{available / GIB:.2f} GiB ({RESERVE_BYTES >> 20} MiB stay free), got {wanted / GIB:.2f} GiB a rank"
    )


def memory_left(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this process may still take, by the machine and by every control group that it is in.

    proc, groups: where the kernel shows processes and control groups.
    """
    left = [_available(proc / "meminfo")]
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = V2 if not controllers else V1 if "memory" in controllers.split(",") else None
        if names is None:
            continue
        folder = groups / names.folder / path.lstrip("/")
        top = groups / names.folder
        left.extend(_left_in(level, names) for level in (folder, *folder.parents) if level.is_relative_to(top))
    return min(left)


class _Names:
    """The files of one version of control groups."""

    def __init__(self, folder: str, limit: str, usage: str, cache: str) -> None:
        self.folder, self.limit, self.usage, self.cache = folder, limit, usage, cache


V1 = _Names("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = _Names("", "memory.max", "memory.current", "inactive_file")
NO_LIMIT = 1 << 62


def _left_in(folder: Path, names: _Names) -> int:
    """Return what a group has left: its limit less what it uses, pages of files aside, which the kernel takes back."""
    limit, usage = _text(folder / names.limit).strip(), _text(folder / names.usage).strip()
    if not limit.isdigit() or not usage.isdigit():
        return NO_LIMIT
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    return max(0, int(limit) - int(usage) + int(stat.get(names.cache, "0")))


def _available(meminfo: Path) -> int:
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return NO_LIMIT


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mapped(size: int) -> tuple[mmap.mmap, bool]:
    """Return an anonymous mapping and whether it is of reserved huge pages. Raises ConfigError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapping = None
    with contextlib.suppress(OSError):  # as a rule none are reserved
        mapping = mmap.mmap(-1, size, flags=flags | MAP_HUGETLB)
    huge = mapping is not None
    if mapping is None:
        try:
            mapping = mmap.mmap(-1, size, flags=flags)
        except OSError as exc:
            raise too_little(size, max(0, memory_left() - RESERVE_BYTES)) from exc
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    mapping.madvise(mmap.MADV_DONTFORK)
    return mapping, huge
