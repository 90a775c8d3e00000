"""A rank's way from its host slots to objects, and back.

    host slots --store--> object tier (copies, queues, writes on threads of its own)
    host slots <--fetch-- object tier (reads, checks each block's checksum where it lies)

Both take their turn among the copies to the host tier, on the copier's thread: a host slot that is given to a later job
is never filled by an earlier one, and no thread of the engine waits for the store. What is stored was under the seal
of its host slots before and after it was copied; the incarnation is the one of when the store was ordered, so that KV
of weights that have changed since is in no object of the later ones.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import Segment, SlotMemory
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.objects.tier import ObjectTier
from ghostcacher_connector.objects.tier_options import TierOptions
from ghostcacher_connector.slots import Slots, SlotTable, valid_mask
from ghostcacher_connector.transfer.copier import Copier, Turn
from ghostcacher_connector.transfer.jobs import CopyResult, FetchJob, StoreJob
from ghostcacher_connector.transfer.layout import rows_of

CLOSE_S = 2.0
"""What waits to be written when the engine ends gets so long."""

MOVE_CLOSE_S = 0.5
"""The same when the rank leaves the namespace. The engine does not wait for it."""


class HostObjects:
    """See the module's docstring. Owner: the rank's main thread."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        host: SlotMemory,
        table: SlotTable,
        copier: Copier,
        recorder: Recorder,
        *,
        rank: int,
        namespace: str,
    ) -> None:
        """Begin to read what there is, in the background. Raises ConfigError.

        host: the host slots, the last ones of the table, each of which is one row of memory without gaps.
        """
        self._url, self._settings, self._recorder = url, settings, recorder
        self._table, self._copier, self._rank = table, copier, rank
        self._first_slot = table.slot_count - host.slot_count
        self._block_bytes = host.bytes_per_slot
        whole = Segment(host.segments[0].base, host.bytes_per_slot, host.bytes_per_slot)
        self._rows = rows_of(whole, host.slot_count)
        self.tier = self._open(namespace)
        """Of the present namespace."""

    def __repr__(self) -> str:
        return f"HostObjects({self.tier!r})"

    def store(self, job: StoreJob) -> None:
        """Have blocks written, as far as the tier's queue has room for them."""
        self._copier.take_turn(Turn(partial(self._store, self.tier, job, self._table.incarnation)))

    def fetch(self, job: FetchJob) -> None:
        """Have blocks read; the result is polled from the copier."""
        unread = CopyResult(job.copy_id, np.zeros(len(job.hashes), dtype=np.bool_), 0, 0.0)
        deadline = time.monotonic() + job.timeout_s
        self._copier.take_turn(Turn(partial(self._fetch, self.tier, job, deadline), unread))

    def move(self, namespace: str) -> None:
        """Go on in another namespace. What was ordered before stays in the one that is left."""
        left, self.tier = self.tier, self._open(namespace)
        daemon_thread("gc-obj-close", partial(left.close, MOVE_CLOSE_S)).start()

    def close(self) -> None:
        """Write what waits, for a bounded time, and end all threads. Idempotent."""
        self.tier.close(CLOSE_S)

    def _open(self, namespace: str) -> ObjectTier:
        return ObjectTier.open(
            self._url,
            namespace=namespace.encode(),
            rank=self._rank,
            block_bytes=self._block_bytes,
            options=TierOptions.of(self._settings),
            recorder=self._recorder,
        )

    def _store(self, tier: ObjectTier, job: StoreJob, incarnation: bytes) -> None:
        if self._valid(job, incarnation):
            tier.write(
                job.hashes,
                self._views(job.host_slots),
                position=job.position,
                section=job.section,
                still_valid=lambda: self._valid(job, incarnation),
            )

    def _fetch(self, tier: ObjectTier, job: FetchJob, deadline: float) -> CopyResult:
        began = time.monotonic()
        right = tier.read(job.hashes, self._views(job.host_slots), deadline)
        valid = np.arange(len(job.hashes)) < right
        return CopyResult(job.copy_id, valid, right * self._block_bytes, time.monotonic() - began)

    def _valid(self, job: StoreJob, incarnation: bytes) -> bool:
        """Say whether the host slots still hold what they held when the store was ordered."""
        seal = self._table.seal(job.host_slots)
        return bool(valid_mask(seal, incarnation, self._table.slot_count, job.generations).all())

    def _views(self, host_slots: Slots) -> list[memoryview]:
        return [self._rows[slot].data for slot in (host_slots - self._first_slot).tolist()]
