"""Keeps the index in step with the blocks that this worker holds, beside the engine and never in its way.

Life of a change:
1. The engine's thread calls `publish` or `withdraw`, and `HeldBlocks` notes it, in about a microsecond.
2. The publisher's thread wakes, waits `interval_s` for more, and takes a batch.
3. The batch is applied to the index. When the index is away, the same batch is tried again, after pauses that grow,
   while changes go on gathering.

Every third of a lease the lease is renewed. The index answers with the number of entries that it holds. When that is
not the number expected (after a flush, a failover or an eviction), the partition is cleared and entered anew.

A worker whose namespace and incarnation change begins another life (`move`): what it held is forgotten at once, and the
thread leaves the index under the old record before it joins under the new one.

One daemon thread does all I/O. `step` is its whole behaviour and takes the time from `clock`, so that a test can drive
it without a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import IndexRefused, IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex, ref_of
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.core.types import BlockHash, OwnerProcess, WorkerRecord
from ghostcacher_connector.publish.held_blocks import Batch, HeldBlocks
from ghostcacher_connector.publish.worker_name import RETRY_S, WorkerName

logger = logging.getLogger(__name__)

INTERVAL_S = 0.005
"""How long changes gather before they are sent, about as long as a step of an engine takes. A peer sees a block so much
later; with less, each block costs a round trip of its own."""

BATCH = 512
"""Entries sent at once: some 50 KiB, and Redis is busy with it for about a millisecond."""

QUEUE_MAX = 100_000
"""Changes that wait to be sent: some 20 MiB. When more come, all entries are sent anew instead (held_blocks.py)."""

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 2.0
RENEWALS_PER_LEASE = 3
REPAIR_PAUSE_MAX = 16
"""Most renewals between two repairs of one partition: an index that keeps evicting is not flooded."""


class PublisherStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher has done since its start, and its present state."""

    published: int
    """Entries that the index has taken."""

    withdrawn: int
    """Entries that the index has dropped at our word."""

    dropped: int
    """Changes that were never sent since too many waited; a resync makes each good."""

    resyncs: int
    """How often entries were entered anew, of one partition or of all."""

    errors: int
    """Exchanges with the index that failed."""

    publish_lag_s: float
    """Age of the oldest change in the last batch when the index had applied it."""

    blocks_held: int
    """Blocks that the worker holds now, each counted once."""

    available: bool
    """Whether the last exchange with the index went well."""


class _Life(NamedTuple):
    """One incarnation of the worker."""

    record: WorkerRecord
    """As it is entered in the index."""
    held_blocks: HeldBlocks
    """What it has published."""


class Publisher:
    """Publishes one worker's blocks, its record and its lease."""

    available: bool
    """Whether the last exchange with the index went well, and the worker was entered."""

    def __init__(
        self,
        index: BlockIndex,
        record: WorkerRecord,
        *,
        lease_ttl_s: float = 10.0,
        interval_s: float = INTERVAL_S,
        batch: int = BATCH,
        queue_max: int = QUEUE_MAX,
        has_ended: Callable[[OwnerProcess], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        schema.worker_key(record.namespace, record.worker)  # refuse names that make no key here, not in the thread
        self._index = index
        self._queue_max = queue_max
        self._lease_ttl_s = lease_ttl_s
        self._interval_s = interval_s
        self._batch_max = batch
        self._clock = clock
        # The engine's thread replaces `_life`; the publisher's follows with `_entered`, and works with that alone.
        self._life = self._entered = self._new_life(record)
        self._dropped_before = 0
        self._thread = Periodic("gc-publisher", self.step, gather_s=interval_s, at_end=self._leave)
        self._has_ended = has_ended
        self._name = self._name_of(record)
        self._joined = False
        self._renew_at = clock()
        self._backoff = Backoff(BACKOFF_MIN_S, BACKOFF_MAX_S)
        self._unapplied: Batch | None = None
        self._sending = False
        self._repair_pause = [0] * index.partitions
        self._repair_wait = [0] * index.partitions
        self._published = self._withdrawn = self._resyncs = self._errors = 0
        self._publish_lag_s = 0.0
        self.available = False

    def __repr__(self) -> str:
        return f"Publisher(worker={self._life.record.worker}, available={self.available}, {self.held_blocks!r})"

    @property
    def held_blocks(self) -> HeldBlocks:
        """What the worker has published in its present life."""
        return self._life.held_blocks

    @property
    def name_taken(self) -> bool:
        """Whether another live engine has this worker's name: then nobody finds this one."""
        return self._name.taken

    def publish(self, slot: int, block: BlockHash, root: BlockHash, generation: int) -> None:
        """Advertise a block whose KV is complete on every rank. Never blocks, never raises for the index."""
        self.held_blocks.publish(slot, block, root, generation)
        self._wake()

    def withdraw(self, slot: int) -> None:
        """Stop advertising what a slot holds. Never blocks, never raises for the index."""
        self.held_blocks.withdraw(slot)
        self._wake()

    def withdraw_from(self, first_slot: int) -> None:
        """Stop advertising what this slot and all with higher numbers hold. Never blocks, as `withdraw`."""
        self.held_blocks.withdraw_from(first_slot)
        self._wake()

    def move(self, record: WorkerRecord) -> None:
        """Begin another life: publish from now on under this record, and nothing of what was published before.

        Peers must have been made to refuse that already. Never blocks, never raises for the index.
        """
        self._dropped_before += self.held_blocks.dropped
        self._life = self._new_life(record)
        self._wake()

    def applied(self, before: float) -> bool:
        """Return whether the index holds every change that was made before a time on this publisher's clock.

        The race: a batch that was taken is in neither place. So the held blocks are asked first: what no longer waits
        there was taken after `_sending` was set, which is reset only when the index or `_unapplied` has the batch.
        """
        life = self._life
        taken = life.held_blocks.taken(before) and life is self._entered
        return taken and not self._sending and self._unapplied is None

    def stats(self) -> PublisherStats:
        return PublisherStats(
            published=self._published,
            withdrawn=self._withdrawn,
            dropped=self._dropped_before + self.held_blocks.dropped,
            resyncs=self._resyncs,
            errors=self._errors,
            publish_lag_s=self._publish_lag_s,
            blocks_held=len(self.held_blocks),
            available=self.available,
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Leave the index and end the thread, within `timeout_s`. Idempotent."""
        self._thread.stop(timeout_s)

    def step(self) -> float:
        """Do what is due; return how long nothing else is, in seconds, unless a change arrives."""
        began = self._clock()
        try:
            if (life := self._life) is not self._entered:
                self._enter(life)
            self._joined = self._joined or self._name.take()
            if not self._joined:
                return self._refused()
            self._exchange()
        except IndexUnavailable as exc:
            return self._failed(exc)
        except Exception:
            self.available = False
            raise
        if not self.available:
            logger.info("worker %s: Redis answers, sharing with the fleet", self._entered.record.worker)
        self._backoff.succeeded()
        # In this order: a change wakes the thread from here on, and an earlier one is pending.
        self.available = True
        if self.held_blocks.pending:
            return max(0.0, self._interval_s - (self._clock() - began))
        return max(0.0, self._renew_at - self._clock())

    def _exchange(self) -> None:
        held_blocks = self._entered.held_blocks
        if held_blocks.resync:
            self._clear_all()
        self._sending = True
        try:
            self._send(self._unapplied or held_blocks.take(self._batch_max))
        finally:
            self._sending = False
        if self._clock() >= self._renew_at:
            self._renew()

    def _new_life(self, record: WorkerRecord) -> _Life:
        index = self._index
        held_blocks = HeldBlocks(
            partitions=index.partitions,
            partition_of=index.partition,
            engine_slots=record.ranks[0].memories[0].slot_count,
            dirty_max=self._queue_max,
            clock=self._clock,
        )
        return _Life(record, held_blocks)

    def _name_of(self, record: WorkerRecord) -> WorkerName:
        return WorkerName(self._index, record, lease_ttl_s=self._lease_ttl_s, has_ended=self._has_ended)

    def _enter(self, life: _Life) -> None:
        """Leave the index under the old record. One that cannot be reached now is left once it answers."""
        if self._joined:
            self._index.leave(ref_of(self._entered.record))
            self._joined = False
        self._unapplied = None
        self._repair_pause = [0] * self._index.partitions
        self._repair_wait = [0] * self._index.partitions
        self._renew_at = self._clock()
        self._name = self._name_of(life.record)
        self._entered = life

    def _send(self, batch: Batch) -> None:
        if not batch:
            return
        # Kept until applied: whether a batch that failed arrived is unknown, and sending it again makes it known.
        self._unapplied = batch
        self._index.apply(ref_of(self._entered.record), batch.entries, batch.drops, lease_ttl_s=self._lease_ttl_s)
        self._unapplied = None
        self._published += len(batch.entries)
        self._withdrawn += len(batch.drops)
        if batch.oldest_since is not None:
            self._publish_lag_s = self._clock() - batch.oldest_since

    def _renew(self) -> None:
        record, held_blocks = self._entered
        counts, holder = self._index.renew(record, lease_ttl_s=self._lease_ttl_s)
        self._name.seen(holder)
        for partition, count in enumerate(counts):
            if count == held_blocks.expected(partition):
                self._repair_pause[partition] = self._repair_wait[partition] = 0
            else:
                self._repair(partition, count)
        self._renew_at = self._clock() + self._lease_ttl_s / RENEWALS_PER_LEASE

    def _repair(self, partition: int, count: int) -> None:
        if self._repair_wait[partition] > 0:
            self._repair_wait[partition] -= 1
            return
        record, held_blocks = self._entered
        logger.info(
            "worker %s: partition %d: expected %d entries, found %d; entering all again",
            record.worker,
            partition,
            held_blocks.expected(partition),
            count,
        )
        self._index.clear(ref_of(record), partition)
        held_blocks.mark_all_dirty(partition)
        self._resyncs += 1
        self._repair_wait[partition] = self._repair_pause[partition]
        self._repair_pause[partition] = min(REPAIR_PAUSE_MAX, max(1, 2 * self._repair_pause[partition]))

    def _clear_all(self) -> None:
        for partition in range(self._index.partitions):
            self._index.clear(ref_of(self._entered.record), partition)
        self._entered.held_blocks.mark_all_dirty()
        self._unapplied = None
        self._resyncs += 1

    def _refused(self) -> float:
        """Another engine has the name: changes go on gathering, and nothing is sent."""
        self._backoff.succeeded()
        self._thread.forget_wakes()
        return RETRY_S

    def _failed(self, exc: IndexUnavailable) -> float:
        self._errors += 1
        if self.available or self._errors == 1:
            what = "Redis refuses it" if isinstance(exc, IndexRefused) else "no Redis"
            logger.warning("worker %s: %s, serving alone and retrying: %s", self._entered.record.worker, what, exc)
        self.available = False
        # Whatever came back may be empty: compare as soon as it answers.
        self._renew_at = self._clock()
        self._thread.forget_wakes()
        return self._backoff.failed(self._clock())

    def _wake(self) -> None:
        # While the index is away changes go on gathering, and nothing cuts the pause short.
        if self.available:
            self._thread.wake()

    def _leave(self) -> None:
        if not self._joined:
            return
        try:
            self._index.leave(ref_of(self._entered.record))
        except IndexUnavailable as exc:
            logger.info("worker %s: could not leave, the lease will run out: %s", self._entered.record.worker, exc)
        self.available = False
