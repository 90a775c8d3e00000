"""A rank's way from its host slots to objects, and back.

    host slots --store--> object tier (copies, queues, writes on threads of its own)
    host slots <--fetch-- object tier (reads, checks each block's checksum where it lies)

Whatever reads or fills host slots takes its turn among the copies to the host tier, on the copier's thread. What waits
for the store does not: a fetch reads into memory of its own, and takes a turn for each object that has come. So a store
that hangs holds up neither a copy nor a thread of the engine.

    fetch threads --read--> memory of their own --turns--> host slots

A host slot that is given to a later job is never filled by an earlier one: a fetch that has not put its blocks in place
by the time at which somebody else is given one of its slots puts none there any more (`_Fetch.give_up`). What is stored
was under the seal of its host slots before and after it was copied; the incarnation is the one of when the store was
ordered, so that KV of weights that have changed since is in no object of the later ones.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import Segment, SlotMemory
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.read_threads import ReadThreads
from ghostcacher_connector.objects.tier import ObjectTier
from ghostcacher_connector.objects.tier_options import TierOptions
from ghostcacher_connector.slots import Slots, SlotTable, valid_mask
from ghostcacher_connector.transfer.copier import Copier, Turn
from ghostcacher_connector.transfer.jobs import CopyResult, FetchJob, StoreJob
from ghostcacher_connector.transfer.layout import rows_of

logger = logging.getLogger(__name__)

CLOSE_S = 2.0
"""What waits to be written when the engine ends gets so long."""

FETCH_THREADS = 4
"""As many fetches wait for the store at once: of a store that hangs each holds one until its deadline."""

FETCHES_MAX = 64
"""Of those that wait for a thread. Requests wait no longer than a pull may take."""

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
        kv_dtype: str,
    ) -> None:
        """Begin to read what there is, in the background. Raises ConfigError.

        kv_dtype: the data type of the blocks' elements.
        host: the host slots, the last ones of the table, each of which is one row of memory without gaps.
        """
        self._url, self._settings, self._recorder = url, settings, recorder
        self._table, self._copier, self._rank, self._kv_dtype = table, copier, rank, kv_dtype
        self._first_slot = table.slot_count - host.slot_count
        self._block_bytes = host.bytes_per_slot
        whole = Segment(host.segments[0].base, host.bytes_per_slot, host.bytes_per_slot)
        self._rows = rows_of(whole, host.slot_count)
        self._fetches: deque[_Fetch] = deque()
        self._threads = ReadThreads[None](FETCH_THREADS, waiting_max=FETCHES_MAX, name="gc-obj-fetch")
        copier.on_submit = self._give_up_slots
        self.tier = self._open(namespace)
        """Of the present namespace."""

    def __repr__(self) -> str:
        return f"HostObjects({self.tier!r})"

    def store(self, job: StoreJob) -> None:
        """Have blocks written, as far as the tier's queue has room for them."""
        self._copier.take_turn(Turn(partial(self._store, self.tier, job, self._table.incarnation)))

    def fetch(self, job: FetchJob) -> None:
        """Have blocks read; the result is polled from the copier."""
        fetch = _Fetch(job, time.monotonic() + job.timeout_s, self._copier)
        self._give_up_slots(job.host_slots)
        self._fetches.append(fetch)
        try:
            self._threads.submit(partial(self._fetch, self.tier, fetch))
        except queue.Full:
            self._end(fetch, 0, 0.0)

    def move(self, namespace: str) -> None:
        """Go on in another namespace. What was ordered before stays in the one that is left."""
        left, self.tier = self.tier, self._open(namespace)
        daemon_thread("gc-obj-close", partial(left.close, MOVE_CLOSE_S)).start()

    def close(self) -> None:
        """Write what waits, for a bounded time, and end all threads. Idempotent."""
        for fetch in tuple(self._fetches):
            fetch.give_up()
        self.tier.close(CLOSE_S)
        self._threads.close(CLOSE_S)

    def _open(self, namespace: str) -> ObjectTier:
        return ObjectTier.open(
            self._url,
            namespace=namespace.encode(),
            rank=self._rank,
            block_bytes=self._block_bytes,
            kv_dtype=self._kv_dtype,
            options=TierOptions.of(self._settings),
            recorder=self._recorder,
        )

    def _store(self, tier: ObjectTier, job: StoreJob, incarnation: bytes) -> None:
        if self._valid(job, incarnation):
            facts = RunFacts(
                job.position, job.section, job.parent, job.session, job.after_tools, job.ordered_at, job.since
            )
            rows = self._views(job.host_slots)
            tier.write(job.hashes, rows, facts, still_valid=lambda: self._valid(job, incarnation))

    def _fetch(self, tier: ObjectTier, fetch: _Fetch) -> None:
        began, right = time.monotonic(), 0
        try:
            if began < fetch.deadline:
                into, written_at = self._views(fetch.job.host_slots), fetch.job.written_at
                right = tier.read(fetch.job.hashes, into, fetch.deadline, written_at=written_at, in_turn=fetch.in_turn)
        except Exception:
            logger.exception("a fetch of objects failed: unexpected error")
        self._end(fetch, right, time.monotonic() - began)

    def _end(self, fetch: _Fetch, right: int, seconds: float) -> None:
        """Have a fetch reported, behind all that it has put in place."""
        self._fetches.remove(fetch)
        count = len(fetch.job.hashes)
        result = CopyResult(fetch.job.copy_id, np.arange(count) < right, right * self._block_bytes, seconds)
        self._copier.take_turn(Turn(lambda: result, CopyResult(fetch.job.copy_id, np.zeros(count, np.bool_), 0, 0.0)))

    def _give_up_slots(self, host_slots: Slots) -> None:
        """Note that slots are given to somebody else from now on: called before that has its turn."""
        for fetch in tuple(self._fetches):
            if not fetch.slots.isdisjoint(host_slots.tolist()):
                fetch.give_up()

    def _valid(self, job: StoreJob, incarnation: bytes) -> bool:
        """Say whether the host slots still hold what they held when the store was ordered."""
        seal = self._table.seal(job.host_slots)
        return bool(valid_mask(seal, incarnation, self._table.slot_count, job.generations).all())

    def _views(self, host_slots: Slots) -> list[memoryview]:
        return [self._rows[slot].data for slot in (host_slots - self._first_slot).tolist()]


class _Fetch:
    """A fetch under way, whose host slots may be given to somebody else meanwhile."""

    def __init__(self, job: FetchJob, deadline: float, copier: Copier) -> None:
        self.job, self.deadline = job, deadline
        self.slots = frozenset(job.host_slots.tolist())
        self._copier = copier
        self._lock = threading.Lock()
        self._given_up = False

    def give_up(self) -> None:
        """Take no further turn: the slots are somebody else's from now on."""
        with self._lock:
            self._given_up = True

    def in_turn(self, work: Callable[[], None], deadline: float) -> bool:
        """Carry out work on the host slots in its turn; return False if it was not, and never will be."""
        piece = _Piece(work)
        with self._lock:  # whoever is given the slots either comes behind this turn, or has it never taken
            if self._given_up or not self._copier.take_turn(Turn(piece.run)):
                return False
        return piece.wait(deadline)


class _Piece:
    """Work that is carried out on another thread, or is called off."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._done, self._called_off = threading.Event(), False

    def run(self) -> None:
        with self._lock:
            if not self._called_off:
                self._work()
                self._done.set()

    def wait(self, deadline: float) -> bool:
        """Wait until it is done; at the deadline what has not begun is called off. Return whether it is done."""
        self._done.wait(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._called_off = True
            return self._done.is_set()
