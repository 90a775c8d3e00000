"""The object tier of one rank: blocks that outlive every engine, in files or in a bucket.

    tier = ObjectTier.open(url, namespace=..., rank=..., block_bytes=..., kv_dtype=..., options=...,
                            recorder=...)
    tier.write(hashes, rows, facts)                           copies, queues, returns at once
    tier.longest(hashes)                                      how many leading blocks are known to be there
    tier.read(hashes, into, deadline)                         how many leading blocks are right in `into` now
    tier.close(deadline_s)

Nothing here is needed for an answer: whatever the store does, a call is bounded, and the worst it says is a miss.
Blocks are checked where they will be used, so that neither the catalogue nor the store has to be right.

Threads (``gc-obj-...``): two write, four read, and one keeps the catalogue (reads and writes notes, enforces the
bounds).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import compression
from ghostcacher_connector.objects.fp8 import Fp8
from ghostcacher_connector.objects.object_format import Identity, namespace_digest
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.object_reader import InTurn, ObjectReader, at_once
from ghostcacher_connector.objects.object_writer import ObjectWriter
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError
from ghostcacher_connector.objects.stores.open_store import open_store
from ghostcacher_connector.objects.sweeper import SWEEP_S, Sweeper
from ghostcacher_connector.objects.tier_options import TierOptions

logger = logging.getLogger(__name__)

REFRESH_S = 15.0
"""How soon a worker knows what others have written."""


class ObjectTier:
    """One rank's way to the store. Every method may be called from any thread."""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        namespace: bytes,
        rank: int,
        block_bytes: int,
        kv_dtype: str,
        options: TierOptions,
        recorder: Recorder,
    ) -> Self:
        """Begin to read what there is, in the background. Raises ConfigError for a URL that is none.

        namespace: what makes blocks the same; another one is another set of objects. rank: of this worker's ranks, each
        of which holds a part of every block. block_bytes: the size of such a part. kv_dtype: the data type of its
        elements; it matters to FP8, which needs "bfloat16", "float16" or "float32", and a namespace of its own.
        """
        if options.compress == "always":
            compression.check_compression()
        return cls(
            open_store(url, timeout_s=options.timeout_s),
            namespace=namespace,
            rank=rank,
            block_bytes=block_bytes,
            kv_dtype=kv_dtype,
            options=options,
            recorder=recorder,
        )

    def __init__(
        self,
        store: ObjectStore,
        *,
        namespace: bytes,
        rank: int,
        block_bytes: int,
        kv_dtype: str,
        options: TierOptions,
        recorder: Recorder,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """As `open`, on a store that is open."""
        identity = Identity(namespace_digest(namespace), rank, block_bytes)
        fp8 = Fp8(kv_dtype, block_bytes) if options.compress == "fp8" else None
        self._objects = objects = RankObjects(store, identity, recorder, fp8=fp8, wall=wall)
        self.catalogue = objects.catalogue
        self._reader = ObjectReader(objects)
        self._writer = ObjectWriter(objects, queue_bytes=options.queue_bytes, compress=options.compress)
        self._sweeper = Sweeper(store, recorder, ttl_s=options.ttl_s, bytes_max=options.bytes_max, wall=wall)
        self._listed = threading.Event()
        self._backoff = Backoff()
        self._refresh_at = self._clock()
        self._sweep_at = self._clock() + random.uniform(0.1, 0.5) * SWEEP_S  # noqa: S311  spread, no secret
        self._keeper = Periodic("gc-obj-keep", self._keep, at_end=self._tell_the_rest)
        self._keeper.start()

    def __repr__(self) -> str:
        return f"ObjectTier({self._objects.store}, {self.catalogue})"

    def wait_listed(self, timeout_s: float) -> bool:
        """Wait until all that was in the store at the start is known; return whether it is."""
        return self._listed.wait(timeout_s)

    def wait_written(self, timeout_s: float) -> bool:
        """Wait until nothing is queued or being written; return whether that is so."""
        return self._writer.wait_idle(timeout_s)

    def longest(self, hashes: Sequence[bytes]) -> int:
        """Return how many leading blocks of a prefix `read` would find; none while the store fails. No I/O."""
        return 0 if self._reader.failing else self.catalogue.longest(hashes)

    def write(
        self,
        hashes: Sequence[bytes],
        rows: Sequence[memoryview],
        facts: RunFacts,
        *,
        still_valid: Callable[[], bool] | None = None,
    ) -> bool:
        """Queue consecutive blocks of one prefix to be written; return whether all are queued, or in the store already.

        rows: the bytes of each block, copied before this returns. still_valid: asked after the copy, where the rows are
        under a seal; what was copied is thrown away when it says no.
        """
        return self._writer.offer(hashes, rows, facts, still_valid=still_valid)

    def read(
        self,
        hashes: Sequence[bytes],
        into: Sequence[memoryview],
        deadline: float,
        *,
        written_at: Sequence[float] | None = None,
        in_turn: InTurn = at_once,
    ) -> int:
        """Read the leading blocks of `hashes` into writable memory, each of a block's size; return how many are right.

        deadline: on the monotonic clock, for all of it. Beyond the returned count the memory holds anything. After this
        returns nothing is written to it any more.
        written_at: as of `Catalogue.plan`. in_turn: carries out what writes to that memory, see `InTurn`.
        """
        return self._reader.read(hashes, into, deadline, written_at=written_at, in_turn=in_turn)

    def read_forecast_s(self, block_count: int) -> float:
        """Return how long reading so many blocks is likely to take, by what was measured lately."""
        return block_count * self._objects.identity.block_bytes / self._objects.read_rate.bytes_s

    def close(self, deadline_s: float) -> None:
        """Write what waits, for at most about `deadline_s`, and end all threads. Idempotent."""
        end = self._clock() + deadline_s
        self._writer.close(0.6 * deadline_s)
        self._keeper.stop(max(0.0, end - self._clock()) / 2)
        self._reader.close(max(0.0, end - self._clock()))

    def _keep(self) -> float:
        """Do what is due, and return in how many seconds something else is."""
        now = self._clock()
        operation = "write"
        try:
            due = self._objects.notes.due_s() <= 0
            if due or now >= self._refresh_at:
                # Before notes are written, too: what was flushed meanwhile is not to be announced.
                operation = "list"
                complete = self._objects.notes.refresh()
                self._refresh_at = now + (REFRESH_S if complete else 0.0)
                if complete:
                    self._listed.set()
            if due:
                operation = "write"
                self._take_back_flushed()
                self._objects.notes.flush()
            operation = "list"
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_S * random.uniform(0.9, 1.1)  # noqa: S311  spread, no secret
                self._sweep()
        except StoreError as error:
            self._failed(operation, error)
            self._set_gauges()
            return self._backoff.failed(now)
        self._backoff.succeeded()
        self._set_gauges()
        return max(0.05, min(self._objects.notes.due_s(), self._refresh_at - now))

    def _tell_the_rest(self) -> None:
        """Write the notes that wait."""
        if not self._objects.notes.pending_count:
            return
        try:
            self._objects.notes.refresh()
            self._take_back_flushed()
            self._objects.notes.flush_all()
        except StoreError as error:
            self._failed("write", error)

    def _take_back_flushed(self) -> None:
        """Delete what was written since it was flushed, and never tell of it. Raises StoreError."""
        late = self._objects.notes.take_back(lambda note: note.what == "wrote" and self.catalogue.covers(note))
        self._objects.store.delete([self._objects.name_of(note.digest) for note in late])

    def _sweep(self) -> None:
        swept = self._sweeper.sweep_if_due()
        if swept is not None:
            self._objects.recorder.set("gc_object_store_bytes", swept.stored_bytes)

    def _set_gauges(self) -> None:
        gauges = {
            "gc_object_known_bytes": self.catalogue.stored_bytes,
            "gc_object_known_objects": self.catalogue.object_count,
            "gc_object_known_blocks": self.catalogue.block_count,
            "gc_object_queue_bytes": self._writer.waiting_bytes,
        }
        rank = str(self._objects.identity.rank)
        for name, value in gauges.items():
            self._objects.recorder.set(name, value, rank=rank)
        for way, rate in (("read", self._objects.read_rate), ("write", self._objects.write_rate)):
            self._objects.recorder.set(
                "gc_object_bytes_per_second", rate.bytes_s if rate.measured else 0.0, rank=rank, way=way
            )

    def _failed(self, operation: str, error: StoreError) -> None:
        self._objects.failed(operation, error)
        logger.warning("object tier: %s (%s)", error, error.fault.value)

    @staticmethod
    def _clock() -> float:
        return time.monotonic()
