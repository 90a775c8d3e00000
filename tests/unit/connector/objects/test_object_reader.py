"""How reads fail: a failing store is asked once in a while, and a hanging one costs its threads alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostcacher_connector.core.backoff import BACKOFF_FIRST_S
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.note_log import NoteLog
from ghostcacher_connector.objects.object_format import Identity, namespace_digest
from ghostcacher_connector.objects.object_reader import THREADS, WAITING_MAX, ObjectReader
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore
from tests.support.index_parts import wait_until
from tests.support.object_tiers import BLOCK_BYTES, NAMESPACE, buffers, chain, row_of, write_all

PROMPT = chain(20)


class Unwilling(FileStore):
    """Counts reads of objects, and fails them as long as it is told to; hangs as long as `goes` is not set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fault: StoreFault | None = None
        self.goes = threading.Event()
        self.goes.set()
        self.reads = 0
        self._lock = threading.Lock()

    def read(self, name: str, size_bytes: int) -> memoryview:
        if name.startswith("v1/objects/"):
            with self._lock:
                self.reads += 1
            assert self.goes.wait(60)
            if self.fault is not None:
                raise StoreError(self.fault, f"reading {name}")
        return super().read(name, size_bytes)


class Reading:
    """A reader whose clock a test turns; the blocks are in the store already."""

    def __init__(self, folder: Path) -> None:
        write_all(FileStore(folder), PROMPT)
        self.store = Unwilling(folder)
        self.recorder = Recorder()
        self.now = time.monotonic()
        identity = Identity(namespace_digest(NAMESPACE), 0, BLOCK_BYTES)
        self.objects = RankObjects(self.store, identity, self.recorder)
        log: NoteLog = self.objects.notes
        log.refresh()
        self.reader = ObjectReader(self.objects, clock=lambda: self.now)

    def read(self, hashes: list[bytes] = PROMPT, deadline_s: float = 60.0) -> int:
        into = buffers(len(hashes))
        count = self.reader.read(hashes, into, self.now + deadline_s)
        assert into[:count] == [row_of(one) for one in hashes[:count]]
        return count

    def misses(self) -> dict[str, object]:
        return dict(self.recorder.drain().get("gc_object_misses_total", {}))


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Reading]:
    parts = Reading(tmp_path)
    yield parts
    parts.store.goes.set()
    parts.reader.close(10)


@pytest.mark.parametrize("fault", [fault for fault in StoreFault if fault is not StoreFault.MISSING])
def test_a_store_that_failed_is_left_alone_for_a_while_longer_each_time(reading: Reading, fault: StoreFault) -> None:
    reading.store.fault = fault
    assert reading.read(PROMPT[:8]) == 0
    assert reading.misses() == {fault.value: 8}
    assert reading.reader.failing
    assert reading.read(PROMPT[:8]) == 0
    assert (reading.store.reads, reading.misses()) == (1, {"paused": 8})
    reading.now += 1.01 * BACKOFF_FIRST_S
    assert not reading.reader.failing
    assert reading.read(PROMPT[:8]) == 0
    reading.now += 1.01 * BACKOFF_FIRST_S
    assert reading.reader.failing
    reading.now += 1.01 * BACKOFF_FIRST_S
    reading.store.fault = None
    assert reading.read(PROMPT) == 20
    assert not reading.reader.failing


def test_a_missing_object_is_no_failure_of_the_store(reading: Reading) -> None:
    for one in list(reading.store.walk("v1/objects/", 10)):
        if one.size_bytes < 5 << 20:
            reading.store.delete([one.name])
    assert reading.read() == 16
    assert reading.misses() == {"missing": 4}
    assert not reading.reader.failing
    assert reading.objects.catalogue.longest(PROMPT) == 16


def test_what_hangs_costs_the_threads_and_then_requests_are_turned_away(reading: Reading) -> None:
    """Bounded in threads and in what waits for them; nobody waits longer than his deadline."""
    reading.store.goes.clear()
    patient = [threading.Thread(target=reading.read, args=(PROMPT[:1],)) for _ in range(THREADS)]
    for caller in patient:
        caller.start()
    wait_until(lambda: reading.store.reads == THREADS, 60, "every thread hangs in a read")
    for _ in range(WAITING_MAX):
        assert reading.read(PROMPT[:1], deadline_s=0.0) == 0
    assert reading.misses() == {"deadline": WAITING_MAX}
    assert reading.read(PROMPT[:1], deadline_s=0.0) == 0
    assert reading.misses() == {"busy": 1}
    reading.store.goes.set()
    for caller in patient:
        caller.join()
    wait_until(lambda: reading.read(PROMPT[:1]) == 1, 60, "the threads are free")
    assert reading.store.reads <= THREADS + 2  # What was given up before it began is not read.


def test_an_unexpected_error_is_the_callers_only_as_a_miss(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours, or of a library: it is logged, and the request is computed."""

    def broken(name: str, size_bytes: int) -> memoryview:
        raise ValueError(f"{name} {size_bytes}")

    monkeypatch.setattr(reading.store, "read", broken)
    assert reading.read() == 0
    assert reading.misses() == {"other": 20}
    assert reading.reader.failing


def test_reads_at_the_same_time_are_all_right(reading: Reading) -> None:
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(reading.read())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [20] * 6
