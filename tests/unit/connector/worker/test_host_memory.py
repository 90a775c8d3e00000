"""The host tier's memory: where its slots lie, what the kernel is told, and what is said when there is too little."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import Segment, SlotMemory, Tier
from ghostcacher_connector.transfer.layout import fuse_segments, memory_fault, regions
from ghostcacher_connector.worker import host_memory
from ghostcacher_connector.worker.host_memory import GIB, HostMemory, memory_left, open_host_memory

ENGINE = SlotMemory(Tier.DEVICE, 100, (Segment(1 << 40, 4096, 4096), Segment(1 << 41, 8192, 2048)))
ROW_BYTES = 4096 + 2048


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    memory = open_host_memory(100 * ROW_BYTES / GIB, ENGINE, ranks=1)
    assert memory is not None
    yield memory
    memory.close()


def mapping_of(memory: HostMemory) -> dict[str, str]:
    """What the kernel says of the mapping that holds the first slot."""
    address, found = memory.slots.segments[0].base, {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if header := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(header[1], 16) <= address < int(header[2], 16)
        elif inside:
            name, _, value = line.partition(":")
            found[name] = value
    return found


def test_slot_is_one_row_of_the_engines_rows(memory: HostMemory) -> None:
    """Rows of equal size as the engine's, side by side, so that a slot can be read as one row."""
    assert memory.slots.tier is Tier.HOST
    assert memory.slots.slot_bytes == ENGINE.slot_bytes
    assert memory_fault(memory.slots) == ""
    fused, _ = fuse_segments(memory.slots.segments, memory.slots.segments)
    assert [(segment.stride_bytes, segment.slot_bytes) for segment in fused] == [(ROW_BYTES, ROW_BYTES)]
    assert regions(memory.slots)[0][1] == 100 * ROW_BYTES <= memory.nbytes


def test_memory_is_there_at_start_and_no_child_shares_it(memory: HostMemory) -> None:
    """Every page is in place; a child would make the next write move it away from under a network card."""
    mapping = mapping_of(memory)
    assert int(mapping["Rss"].split()[0]) << 10 == memory.nbytes
    assert "dc" in mapping["VmFlags"].split()


def test_kernel_without_the_advice_to_populate_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14."""
    monkeypatch.setattr(host_memory, "MADV_POPULATE_WRITE", 9999)
    memory = HostMemory(100, ENGINE.slot_bytes)
    assert int(mapping_of(memory)["Rss"].split()[0]) << 10 == memory.nbytes
    memory.close()
    memory.close()
    assert memory.closed


@pytest.mark.parametrize("size_gib", [1000.0, 1e6])
def test_more_than_the_machine_has_is_refused_with_the_numbers(size_gib: float) -> None:
    """Before the engine serves, by the name of the setting: what there is, and what was wanted of each rank."""
    with pytest.raises(
        ConfigError, match=rf"host_tier_gib: expected at most .* \d+\.\d\d GiB .*, got {size_gib / 2:.2f}"
    ):
        open_host_memory(size_gib, ENGINE, ranks=2)


def test_less_than_a_block_is_refused_with_the_least_size() -> None:
    """A tier that holds nothing would look like one that never hits."""
    with pytest.raises(
        ConfigError, match=r"host_tier_gib: expected at least 1\.14e-05, one block of each rank, got 1e-06"
    ):
        open_host_memory(1e-6, ENGINE, ranks=2)


def test_size_is_of_all_ranks_together() -> None:
    """As vLLM's own size of what it offloads is."""
    memory = open_host_memory(100 * ROW_BYTES / GIB, ENGINE, ranks=4)
    assert memory is not None
    assert memory.slots.slot_count == 25
    memory.close()
    assert open_host_memory(0.0, ENGINE, ranks=4) is None


def test_memory_that_others_take_meanwhile_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks of a machine take theirs at the same time: what is left is looked at before each step."""
    left = iter([4 * GIB, 4 * GIB, GIB // 2])
    taken: list[mmap.mmap] = []
    mapped = host_memory._mapped

    def noting(size: int) -> tuple[mmap.mmap, bool]:
        found = mapped(size)
        taken.append(found[0])
        return found

    monkeypatch.setattr(host_memory, "STEP_BYTES", host_memory.HUGE_PAGE)
    monkeypatch.setattr(host_memory, "memory_left", lambda: next(left))
    monkeypatch.setattr(host_memory, "_mapped", noting)
    with pytest.raises(ConfigError, match=r"host_tier_gib: expected at most .*, 0\.00 GiB .*, got 0\.02 GiB"):
        HostMemory(10, (host_memory.HUGE_PAGE,))
    assert taken[0].closed


class Kernel:
    """Files of a kernel that has these control groups."""

    def __init__(self, root: Path, available_kib: int, *lines: str) -> None:
        self.proc, self.groups = root / "proc", root / "groups"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB\n")
        (self.proc / "self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str, **files: str) -> None:
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def left(self) -> int:
        return memory_left(self.proc, self.groups)


def test_what_is_left_is_the_least_of_the_machine_and_all_groups_of_version_2(tmp_path: Path) -> None:
    """Also of the groups above; a group without a limit leaves all. Pages of files can be had back."""
    kernel = Kernel(tmp_path, 9000, "0::/pod/engine")
    kernel.group("pod/engine", memory__max="max\n", memory__current="1000\n", memory__stat="anon 5\n")
    assert kernel.left() == 9000 << 10
    kernel.group("pod", memory__max="5000\n", memory__current="4000\n", memory__stat="anon 5\ninactive_file 300\n")
    assert kernel.left() == 1300
    kernel.group("pod/engine", memory__max="1500\n")
    assert kernel.left() == 500
    kernel.group("pod/engine", memory__current="1700\n")
    assert kernel.left() == 0


def test_what_is_left_is_read_of_groups_of_version_1(tmp_path: Path) -> None:
    """Its names of files are others, and each controller has a tree of its own."""
    kernel = Kernel(tmp_path, 9000, "5:cpu:/other", "4:cpuset,memory:/pod", "0::/")
    kernel.group("memory/pod", memory__limit_in_bytes="5000", memory__usage_in_bytes="4900", memory__stat="x 1")
    assert kernel.left() == 100
    kernel.group("memory", memory__limit_in_bytes="50", memory__usage_in_bytes="10")
    assert kernel.left() == 40


def test_kernel_that_shows_nothing_sets_no_limit(tmp_path: Path) -> None:
    """Then the mapping itself, or the kernel, has the last word."""
    assert memory_left(tmp_path / "none", tmp_path / "nothing") > 1 << 60


def test_memory_of_this_machine_is_read() -> None:
    """The real files: some, and less than an exbibyte."""
    assert 0 < memory_left() < 1 << 60
