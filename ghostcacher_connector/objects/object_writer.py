"""Writes blocks to the store in the background: never waits for the store in its caller's thread.

Life of a group of blocks:
1. `offer` cuts a run of blocks into groups at fixed places of their prefix, so that all workers cut alike, leaves out
   what the store has already, and copies the rest into buffers of its own. The caller's memory is free again.
2. A thread rounds to FP8 where that is wanted, takes checksums, compresses if that pays, and creates the object. One
   that exists already was written by another worker: its header is read instead, and an object that is not what its
   name says makes room.
3. The catalogue knows it, and a note tells the others.

Bounds: as many buffers as fit into ``queue_bytes``; without one the blocks are dropped, and counted. After a failure
the threads pause, longer each time; a group is tried `TRIES` times at most.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import structs

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.objects import compression
from ghostcacher_connector.objects.object_format import (
    BLOCKS_MAX,
    HASH_BYTES_MAX,
    Codec,
    Damage,
    checksum_of,
    header_bytes,
    object_digest,
    read_header,
    write_header,
)
from ghostcacher_connector.objects.object_notes import Note, RunFacts
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault

logger = logging.getLogger(__name__)

GROUP_BYTES = 8 << 20
"""About the size of an object: requests to S3 reach their rate at some MiB, and a prefix that ends within a group reads
less of it. The same in the whole fleet, or equal blocks would not meet in equal objects.
"""

THREADS = 2
TRIES = 3
RETRIED = frozenset({StoreFault.THROTTLED, StoreFault.TIMEOUT, StoreFault.UNREACHABLE})
"""What may be over in a moment. A full or forbidden store is not asked again for the same group."""


class _Job(NamedTuple):
    hashes: tuple[bytes, ...]
    buffer: mmap.mmap
    """Room for the header, then the rows."""
    note: Note
    """What is noted once it is written, its size aside."""
    since: float
    """As `RunFacts.since`."""

    @property
    def digest(self) -> bytes:
        return self.note.digest


def group_blocks(block_bytes: int) -> int:
    """Return how many blocks an object has at most."""
    return max(1, min(BLOCKS_MAX, GROUP_BYTES // block_bytes))


def cuts(count: int, position: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of `count` blocks that make one object each. position: of the first block in its prefix."""
    first = 0
    while first < count:
        end = min(count, first + size - (position + first) % size)
        yield first, end
        first = end


class ObjectWriter:
    """The queue and its threads. `offer` is for any thread."""

    def __init__(
        self,
        objects: RankObjects,
        *,
        queue_bytes: int,
        compress: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """queue_bytes: what waits to be written, at most; two objects at least.

        compress: "auto", "always" or "never"; with FP8 it does not matter.
        """
        self._objects = objects
        self._block_bytes = objects.identity.block_bytes
        self._compress = compress if self._block_bytes % 2 == 0 and compression.available() else "never"
        self._choice = compression.CompressionChoice()
        self._clock = clock
        self._size = group_blocks(self._block_bytes)
        self._buffer_bytes = header_bytes(self._size, HASH_BYTES_MAX) + self._size * self._block_bytes
        self._buffers_left = max(2, queue_bytes // self._buffer_bytes)
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._busy = 0
        self._queued: set[bytes] = set()
        self._backoff = Backoff()
        self._paused_until = float("-inf")
        self._closing = threading.Event()
        self._threads = [daemon_thread(f"gc-obj-write-{index}", self._run) for index in range(THREADS)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_bytes(self) -> int:
        """What is queued or being written, in bytes of KV."""
        with self._changed:
            return sum(len(job.hashes) for job in self._jobs) * self._block_bytes

    def offer(
        self,
        hashes: Sequence[bytes],
        rows: Sequence[memoryview],
        facts: RunFacts,
        *,
        still_valid: Callable[[], bool] | None,
    ) -> bool:
        """Take copies of consecutive blocks of one prefix, to be written; return False when not all could be taken.

        still_valid: asked once everything is copied; what was copied is thrown away when it says no.
        """
        taken: list[_Job] = []
        complete = True
        for start, end in cuts(len(hashes), facts.position, self._size):
            first = start + self._objects.catalogue.longest(hashes[start:end], facts.since)
            group = tuple(hashes[first:end])
            digest = object_digest(self._objects.identity, group) if group else b""
            if not group or digest in self._queued:
                continue
            buffer = self._buffer_for(digest)
            if buffer is None:
                complete = False
                break
            self._copy(group, rows[first:end], buffer)
            taken.append(_Job(group, buffer, self._note(digest, hashes, first, end, facts), facts.since))
        if taken and still_valid is not None and not still_valid():
            self._count("changed", len(taken))
            self._give_back(taken)
            return False
        self._enqueue(taken)
        return complete

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is queued or being written; return whether that is so. A failing store ends the wait."""
        with self._changed:
            self._changed.wait_for(lambda: (not self._jobs and not self._busy) or self._backoff.failures > 0, timeout_s)
            return not self._jobs and not self._busy

    def close(self, deadline_s: float) -> None:
        """Write what is queued, for at most `deadline_s`, and end."""
        end = self._clock() + deadline_s
        self.wait_idle(deadline_s)
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))

    def _buffer_for(self, digest: bytes) -> mmap.mmap | None:
        """Return a buffer for an object that is now queued; None, counted, when it cannot be taken."""
        if self._objects.name_of(digest) in self._objects.quarantine:
            self._count("quarantined")
            return None
        with self._changed:
            if (not self._free and self._buffers_left == 0) or self._closing.is_set():
                self._count("queue_full")
                return None
            self._queued.add(digest)
            if self._free:
                return self._free.pop()
            self._buffers_left -= 1
        return mmap.mmap(-1, self._buffer_bytes)

    def _note(self, digest: bytes, hashes: Sequence[bytes], first: int, end: int, facts: RunFacts) -> Note:
        """Describe the object of blocks ``[first, end)`` of a run, its size aside."""
        return Note(
            "wrote",
            digest,
            self._objects.wall() if facts.at is None else facts.at,
            section=facts.section,
            hash_bytes=len(hashes[0]),
            hashes=b"".join(hashes[first:end]),
            parent=hashes[first - 1] if first else facts.parent,
            session=facts.session,
            after_tools=facts.after_tools,
        )

    def _copy(self, hashes: tuple[bytes, ...], rows: Sequence[memoryview], buffer: mmap.mmap) -> None:
        at, size = header_bytes(len(hashes), len(hashes[0])), self._block_bytes
        copy = np.frombuffer(buffer, np.uint8)
        for row in rows:
            copy[at : at + size] = np.frombuffer(row, np.uint8)
            at += size

    def _enqueue(self, jobs: list[_Job]) -> None:
        with self._changed:
            self._jobs.extend(jobs)
            self._changed.notify_all()

    def _give_back(self, jobs: Sequence[_Job]) -> None:
        with self._changed:
            for job in jobs:
                self._free.append(job.buffer)
                self._queued.discard(job.digest)
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            outcome = "failed"
            try:
                outcome = self._carry_out(job)
            except Exception:
                logger.exception("object tier: unexpected error, %d blocks are not written", len(job.hashes))
            finally:
                self._count(outcome)
                with self._changed:
                    self._busy -= 1
                self._give_back([job])

    def _next(self) -> _Job | None:
        with self._changed:
            while True:
                if self._closing.is_set():
                    return None
                pause_s = self._paused_until - self._clock()
                if self._jobs and pause_s <= 0:
                    self._busy += 1
                    return self._jobs.popleft()
                self._changed.wait(pause_s if self._jobs else None)

    def _carry_out(self, job: _Job) -> str:
        """Write one group; return the outcome, a label value of ``gc_object_writes_total``."""
        if self._objects.catalogue.covers(job.note):
            return "flushed"
        data = self._encoded(job)
        for _ in range(TRIES):
            try:
                outcome = self._create(job, data)
            except StoreError as error:
                pause_s = self._failed(error)
                if error.fault not in RETRIED or self._closing.wait(pause_s):
                    return "failed"
            else:
                self._backoff.succeeded()
                return outcome
        return "failed"

    def _failed(self, error: StoreError) -> float:
        self._objects.failed("write", error)
        with self._changed:
            pause_s = self._backoff.failed(self._clock())
            self._paused_until = self._clock() + pause_s
            self._changed.notify_all()
        if self._backoff.failures == 1:
            logger.warning("object tier: %s (%s); pausing", error, error.fault.value)
        return pause_s

    def _encoded(self, job: _Job) -> memoryview:
        """Return the bytes of the object."""
        memory = memoryview(job.buffer)
        head, size = header_bytes(len(job.hashes), len(job.hashes[0])), self._block_bytes
        blocks = [memory[head + index * size : head + (index + 1) * size] for index in range(len(job.hashes))]
        codec, stored = self._smaller(blocks)
        checksums = [checksum_of(block) for block in blocks]
        if codec is Codec.PLAIN:
            data, sizes = memory[: head + len(blocks) * size], [size] * len(blocks)
        else:
            data, sizes = memoryview(bytearray(head) + b"".join(stored)), list(map(len, stored))
        write_header(data, self._objects.identity, job.hashes, checksums, sizes, codec=codec, section=job.note.section)
        return data

    def _smaller(self, blocks: Sequence[memoryview]) -> tuple[Codec, list[bytes]]:
        """Return how blocks are stored, and as what: nothing for those that are stored as they are.

        Blocks that are rounded hold what will be read back, from then on.
        """
        if (fp8 := self._objects.fp8) is not None:
            rounded = [stored for block in blocks if (stored := fp8.encode(block)) is not None]
            if len(rounded) == len(blocks):
                for block, stored in zip(blocks, rounded, strict=True):
                    fp8.decode(memoryview(stored), block)
                return Codec.FP8, rounded
        elif self._to_compress(blocks[0]):
            compressed = [compression.compress(block) for block in blocks]
            if max(map(len, compressed)) <= self._block_bytes:
                return Codec.ZSTD_SHUFFLED, compressed
        return Codec.PLAIN, []

    def _to_compress(self, block: memoryview) -> bool:
        if self._compress != "auto":
            return self._compress == "always"
        measured = self._objects.write_rate.measured
        return measured and self._choice.pays(
            block, write_bytes_s=self._objects.write_rate.bytes_s, read_bytes_s=self._objects.read_rate.bytes_s
        )

    def _create(self, job: _Job, data: memoryview) -> str:
        name = self._objects.name_of(job.digest)
        outcome, stored_bytes = "written", len(data)
        began = self._clock()
        if self._objects.store.create(name, data):
            self._objects.write_rate.add(len(data), self._clock() - began)
        else:
            existing = None if self._is_outdated(name, job) else self._existing_bytes(name, job)
            if existing is not None:
                outcome, stored_bytes = "existed", existing
            elif not self._objects.store.create(name, data):
                outcome = "existed"
        if self._objects.catalogue.covers(job.note):
            self._objects.store.delete([name])
            return "flushed"
        if outcome == "written":
            self._objects.recorder.inc("gc_object_written_bytes_total", stored_bytes)
        self._objects.note(structs.replace(job.note, stored_bytes=stored_bytes))
        return outcome

    def _is_outdated(self, name: str, job: _Job) -> bool:
        """Return whether an object that stands there must not stand for these blocks; then it is out of the way now.

        Nobody knows when one was written of which no note says so: a flush or a reset may have meant it.
        """
        known = self._objects.catalogue.look(job.digest)
        fresh_from = max(job.since, self._objects.catalogue.flushed_at)
        if fresh_from == 0.0 or (known is not None and known.changed_at > job.since):
            return False
        self._objects.store.delete([name])
        return True

    def _existing_bytes(self, name: str, job: _Job) -> int | None:
        """Return the size of the object that stands there already; None when it was none, and is out of the way now."""
        head = self._objects.store.read(name, header_bytes(len(job.hashes), len(job.hashes[0])))
        try:
            last = read_header(head, self._objects.identity, job.hashes).blocks[-1]
        except Damage as damage:
            if not self._objects.quarantine.put_aside(name, damage):
                raise StoreError(StoreFault.REFUSED, f"{name} is damaged and cannot be moved") from damage
            return None
        return last.offset + last.stored_bytes

    def _count(self, outcome: str, count: int = 1) -> None:
        if count:
            self._objects.recorder.inc("gc_object_writes_total", count, outcome=outcome)
