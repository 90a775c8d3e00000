"""Copies of a rank's engine slots to its host slots, carried out beside the engine.

Life of a copy: `submit` queues it, the thread copies its rows, *after that* compares the seal of the engine's slots
with the generations that were given, and `poll` returns its result.

    owner of the host slots:   caller --submit--> copier --poll--> caller

Why the seal is compared last: the engine bumps a slot's generation before it overwrites the slot, and waits for nobody.
A generation that is unchanged after the rows were copied proves that no overwrite had begun while they were. The
incarnation is the one of when the job was submitted: a rank that has missed bumps has become another one since.

There is one thread, and jobs end in the order in which they were submitted: a host slot that is given to a later job is
never overwritten by an earlier one. So whatever else fills or reads host slots takes its turn here, too (`Turn`).
`submit`, `take_turn`, `poll` and `queue_length` never wait for a copy.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import SlotMemory
from ghostcacher_connector.slots import Slots, SlotTable, valid_mask
from ghostcacher_connector.transfer.base import Validity
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult
from ghostcacher_connector.transfer.row_copy import row_copy

logger = logging.getLogger(__name__)

QUEUE_MAX = 256
"""Jobs of a few MiB: more of them than could be copied in half a second are not worth keeping."""

CLOSE_S = 5.0


class CopierStats(NamedTuple):
    """What a copier has done since its start."""

    valid: int = 0
    """Blocks that were copied, and whose slot was not reused meanwhile."""
    stale: int = 0
    """Blocks whose slot was reused before they were copied, or meanwhile."""
    refused: int = 0
    """Blocks that were never copied: the queue was full, the copier was closed, or the copy failed."""
    bytes: int = 0
    """What was copied, valid or not."""
    seconds: float = 0.0
    """The time that this took."""


class Turn(NamedTuple):
    """Work on host slots, to be carried out once all that was submitted before it has ended."""

    run: Callable[[], CopyResult | None]
    """Carries it out. Its result is polled; None: nobody waits for one."""
    unread: CopyResult | None = None
    """Its result when it is not carried out, or fails."""


class Copier:
    """Copies from the first of a rank's memories to the second; see the module's docstring."""

    def __init__(
        self,
        memories: tuple[SlotMemory, SlotMemory],
        table: SlotTable,
        *,
        queue_max: int = QUEUE_MAX,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """memories: the engine's and the host's. table: of the slots of both. Raises ConfigError, TransferError."""
        engine, host = memories
        self._engine_slots, self._host_slots = engine.slot_count, host.slot_count
        self._bytes_per_slot = engine.bytes_per_slot
        self._rows = row_copy(engine, host)
        self._table = table
        self._queue_max = queue_max
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: collections.deque[Turn] = collections.deque()
        self._finished: list[CopyResult] = []
        self._copying = False
        self._closing = False
        self._stats = CopierStats()
        self.on_submit: Callable[[Slots], None] = lambda _: None
        """Told of the host slots of each job before it is queued: nothing else may fill them behind it."""
        self._thread = daemon_thread("gc-copy", self._loop)
        self._thread.start()

    def __repr__(self) -> str:
        with self._changed:
            return f"Copier({len(self._queue)} queued, {len(self._finished)} finished, {self._stats})"

    @property
    def queue_length(self) -> int:
        """How many jobs have not ended. Read without the lock: a look at one moment."""
        return len(self._queue) + self._copying

    @property
    def stats(self) -> CopierStats:
        """What has been done since the start."""
        with self._changed:
            return self._stats

    def submit(self, job: CopyJob) -> None:
        """Take over a job and, until its result is polled, its host slots. A full queue ends it with nothing valid."""
        assert len(job.engine_slots) == len(job.host_slots) == len(job.generations)
        assert _within(job.engine_slots, 0, self._engine_slots), "a copy is of engine slots"
        assert _within(job.host_slots, self._engine_slots, self._host_slots), "a copy fills host slots"
        count = len(job.engine_slots)
        unread = CopyResult(job.copy_id, np.zeros(count, dtype=np.bool_), 0, 0.0)
        self.on_submit(job.host_slots)
        self.take_turn(Turn(partial(self._run, job, self._table.incarnation), unread))

    def take_turn(self, turn: Turn) -> bool:
        """Queue other work on host slots, which are its own until its result is polled; return False if it is refused.

        A full queue refuses it. What is refused is not carried out, and ends with `Turn.unread`.
        """
        with self._changed:
            accepted = not self._closing and len(self._queue) < self._queue_max
            if accepted:
                self._queue.append(turn)
            else:
                self._refuse(turn)
            self._changed.notify_all()
        return accepted

    def poll(self, *, wait_s: float = 0.0) -> list[CopyResult]:
        """Return the jobs that ended since the last call, each once. Waits for one for `wait_s` at most."""
        with self._changed:
            if wait_s > 0:
                self._changed.wait_for(lambda: bool(self._finished), wait_s)
            finished, self._finished = self._finished, []
        return finished

    def close(self) -> bool:
        """End what is queued with nothing valid, and wait a bounded time for the copy under way. Idempotent.

        Returns whether no copy runs any more; if not, both memories must stay.
        """
        with self._changed:
            self._closing = True
            while self._queue:
                self._refuse(self._queue.popleft())
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("a copy to host memory did not end within %.0f s", CLOSE_S)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                turn = self._queue.popleft()
                self._copying = True
            result = self._run_safely(turn)
            with self._changed:
                self._copying = False
                if result is not None:
                    self._finished.append(result)
                self._changed.notify_all()

    def _run_safely(self, turn: Turn) -> CopyResult | None:
        """Carry out a job; whatever goes wrong ends it with nothing valid: without a result its slots would be lost."""
        try:
            return turn.run()
        except Exception:
            what = f"copy {turn.unread.copy_id}" if turn.unread is not None else "work on host slots"
            logger.exception("%s failed: unexpected error", what)
            with self._changed:
                return self._unread(turn)

    def _run(self, job: CopyJob, incarnation: bytes) -> CopyResult:
        """Copy. incarnation: the table's when the job was submitted."""
        started = self._clock()
        wanted = np.flatnonzero(self._current(job, incarnation))  # what was reused while it waited need not be copied
        self._rows.run(job.engine_slots[wanted], job.host_slots[wanted] - self._engine_slots)
        # Only now, with every byte in place, may the seal be read: earlier it would prove nothing.
        current = self._current(job, incarnation)
        valid = np.zeros(len(job.engine_slots), dtype=np.bool_)
        valid[wanted] = current[wanted]
        result = CopyResult(job.copy_id, valid, len(wanted) * self._bytes_per_slot, self._clock() - started)
        good = int(valid.sum())
        with self._changed:
            self._count(valid=good, stale=len(valid) - good, bytes=result.bytes, seconds=result.seconds)
        return result

    def _current(self, job: CopyJob, incarnation: bytes) -> Validity:
        """Say which engine slots still have the generation that the job gives."""
        seal = self._table.seal(job.engine_slots)
        return valid_mask(seal, incarnation, self._table.slot_count, job.generations)

    def _refuse(self, turn: Turn) -> None:
        if (unread := self._unread(turn)) is not None:
            self._finished.append(unread)

    def _unread(self, turn: Turn) -> CopyResult | None:
        self._count(refused=len(turn.unread.valid) if turn.unread is not None else 0)
        return turn.unread

    def _count(self, **more: float) -> None:
        self._stats = self._stats._replace(**{name: getattr(self._stats, name) + value for name, value in more.items()})


def _within(slots: Slots, first: int, count: int) -> bool:
    return bool(((slots >= first) & (slots < first + count)).all())
