"""Reads blocks back from the store, into memory of its caller, and says how many of them are right.

Whatever is read lands in memory of ours first, by a thread of ours: a store that hangs can neither hold the caller
beyond its deadline nor write into the caller's memory later. A block counts once its bytes lie where they will be used
and have the checksum there that was taken when they were written.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.objects import compression
from ghostcacher_connector.objects.catalogue import Span
from ghostcacher_connector.objects.fp8 import Fp8
from ghostcacher_connector.objects.object_format import (
    DAMAGED,
    FOREIGN,
    TRUNCATED,
    Codec,
    Damage,
    Identity,
    StoredBlock,
    checksum_of,
    read_header,
)
from ghostcacher_connector.objects.object_notes import Note
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.read_threads import ReadThreads
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault

logger = logging.getLogger(__name__)

THREADS = 4
WAITING_MAX = 256
USED_NOTE_S = 300.0
"""A use is noted for the fleet once in that time: it is there for eviction, which thinks in hours."""

NOTED_MAX = 4096
"""Of as many objects it is remembered; beyond, some are noted more often."""


InTurn = Callable[[Callable[[], None], float], bool]
"""Carries out work that writes to the memory of who reads, and returns when it is done.

Takes the work and the deadline of the read. Returns False where it was not carried out, and never will be."""


def at_once(work: Callable[[], None], _deadline: float) -> bool:
    """Carry work out here and now: nobody else writes to the memory."""
    work()
    return True


class _Reading(NamedTuple):
    span: Span
    data: Future[memoryview]


class ObjectReader:
    """Reads for several callers at a time. Thread-safe."""

    def __init__(self, objects: RankObjects, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects = objects
        self._clock = clock
        self._threads = ReadThreads[memoryview](THREADS, waiting_max=WAITING_MAX)
        self._lock = threading.Lock()
        self._backoff = Backoff()
        self._noted: dict[bytes, float] = {}

    @property
    def failing(self) -> bool:
        """Whether the store failed a moment ago: requests do without it instead of waiting for one time-out each."""
        with self._lock:
            return not self._backoff.ready(self._clock())

    def read(
        self,
        hashes: Sequence[bytes],
        into: Sequence[memoryview],
        deadline: float,
        *,
        written_at: Sequence[float] | None = None,
        in_turn: InTurn = at_once,
    ) -> int:
        """Read the leading blocks of `hashes` into `into`, one after the other; return how many are right.

        into: writable, one block each. deadline: on the monotonic clock. Beyond the returned count the memory holds
        anything. Never raises for what the world does. written_at: as of `Catalogue.plan`.
        """
        if self.failing:
            self._missed("paused", self._objects.catalogue.longest(hashes))
            return 0
        spans = self._objects.catalogue.plan(hashes, written_at)
        readings: list[_Reading] = []
        waiting = iter(spans)
        done, reason = 0, None
        try:
            while reason is None:
                # A few ahead of the one that is waited for, so that memory is bounded and all threads are busy.
                while len(readings) < THREADS and (ahead := next(waiting, None)) is not None:
                    readings.append(_Reading(ahead, self._threads.submit(partial(self._fetch, ahead))))
                if not readings:
                    break
                reading = readings.pop(0)
                places = into[done : done + reading.span.length]
                right, reason = self._finish(reading, places, deadline, in_turn)
                done += right
        except queue.Full:
            reason = "busy"
        for reading in readings:
            reading.data.cancel()
        self._objects.recorder.inc("gc_object_hits_total", done)
        if reason is not None:
            self._missed(reason, sum(span.length for span in spans) - done)
        return done

    def close(self, deadline_s: float) -> None:
        """End the threads, and wait for that for at most `deadline_s`."""
        self._threads.close(deadline_s)

    def _fetch(self, span: Span) -> memoryview:
        size = span.read_bytes(self._objects.identity.block_bytes)
        began = self._clock()
        data = self._objects.store.read(self._objects.name_of(span.object.digest), size)
        self._objects.read_rate.add(len(data), self._clock() - began)
        self._objects.recorder.inc("gc_object_read_bytes_total", len(data))
        return data

    def _finish(
        self, reading: _Reading, into: Sequence[memoryview], deadline: float, in_turn: InTurn
    ) -> tuple[int, str | None]:
        """Wait for one object and put its blocks in place.

        Returns how many leading ones are right, and why the others are not: a label value of
        ``gc_object_misses_total``.
        """
        span = reading.span
        name = self._objects.name_of(span.object.digest)
        if name in self._objects.quarantine:
            return 0, "quarantined"
        try:
            error = reading.data.exception(max(0.0, deadline - self._clock()))
        except (TimeoutError, CancelledError):
            # Nobody wants it any longer, if it has not begun.
            reading.data.cancel()
            return 0, "deadline"
        if error is not None:
            return 0, self._failed(span, error).value
        data = reading.data.result()
        with self._lock:
            self._backoff.succeeded()
        placing = _Placing(self._objects.identity, self._objects.fp8, span, data, into)
        if not in_turn(placing.run, deadline):
            return 0, "deadline"
        if placing.damage is not None:
            self._objects.note(Note("dropped", span.object.digest, span.object.changed_at))
            self._objects.quarantine.put_aside(name, placing.damage)
            return placing.right, placing.damage.reason
        if placing.right:
            self._note_used(span.object.digest)
        return placing.right, None if placing.right else "codec"

    def _failed(self, span: Span, error: BaseException) -> StoreFault:
        if not isinstance(error, StoreError):
            logger.error("object tier: unexpected error in a read, which is a miss", exc_info=error)
            error = StoreError(StoreFault.OTHER, "unexpected error")
        if error.fault is StoreFault.MISSING:
            # Dropped or expired since it was noted. Who writes it anew does so at a later time.
            self._objects.note(Note("dropped", span.object.digest, span.object.changed_at))
            return error.fault
        self._objects.failed("read", error)
        with self._lock:
            self._backoff.failed(self._clock())
        return error.fault

    def _note_used(self, digest: bytes) -> None:
        now = self._objects.wall()
        with self._lock:
            noted_at = self._noted.get(digest, 0.0)
            if now - noted_at < USED_NOTE_S:
                self._objects.catalogue.used(digest, now)
                return
            if len(self._noted) >= NOTED_MAX:
                self._noted.clear()
            self._noted[digest] = now
        self._objects.note(Note("used", digest, now))

    def _missed(self, reason: str, count: int) -> None:
        self._objects.recorder.inc("gc_object_misses_total", count, reason=reason)


class _Placing:
    """Puts the blocks of an object that was read in their places, and looks at them there."""

    def __init__(
        self, identity: Identity, fp8: Fp8 | None, span: Span, data: memoryview, into: Sequence[memoryview]
    ) -> None:
        self._identity, self._fp8, self._span, self._data, self._into = identity, fp8, span, data, into
        self.right = 0
        """How many of them are right; none where the codec is not to be had."""
        self.damage: Damage | None = None

    def run(self) -> None:
        span = self._span
        try:
            header = read_header(self._data, self._identity, span.object.hashes)
            if header.codec is Codec.ZSTD_SHUFFLED and not compression.available():
                return
            if header.codec is Codec.FP8 and self._fp8 is None:
                raise Damage(FOREIGN, "its blocks are rounded, and those of this namespace are exact")
            blocks = header.blocks[span.first : span.first + span.length]
            for block, target in zip(blocks, self._into, strict=True):
                _place(self._data, header.codec, self._fp8, block, target)
                self.right += 1
        except Damage as damage:
            self.damage = damage


def _place(data: memoryview, codec: Codec, fp8: Fp8 | None, block: StoredBlock, into: memoryview) -> None:
    """Put one block in its place and look at it there; raises Damage."""
    stored = data[block.offset : block.offset + block.stored_bytes]
    if len(stored) < block.stored_bytes:
        raise Damage(TRUNCATED, f"expected {block.offset + block.stored_bytes} bytes, got {len(data)}")
    if codec is Codec.PLAIN:
        np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(stored, np.uint8))
    elif not (fp8.decode if codec is Codec.FP8 and fp8 else compression.decompress)(stored, into):
        raise Damage(DAMAGED, "a block cannot be decoded")
    if checksum_of(into) != block.checksum:
        raise Damage(DAMAGED, "a block's checksum is another")
