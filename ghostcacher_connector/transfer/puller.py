"""The pulls of one rank, carried out beside the engine: a bounded queue, a few daemon threads, and results to poll.

Life of a job: `submit` queues it, a thread asks its sources in order, `poll` returns its result. It ends in exactly one
of DONE, STALE, FAILED and CANCELLED, and once its result is out nothing lands in its local slots any more (rule 5 of
base.py): a job with a READ that may still land is asked of nobody else, and its result is kept back until it cannot.
The thread is free meanwhile.

    owner of the local slots:   caller --submit--> puller --poll--> caller

`submit`, `poll`, `cancel`, `update_peers` and `links` never wait for a peer and may be called from any thread. One more
thread connects to new peers. Where the rank has host slots, another takes loads from them alone: those never wait for
a peer that hangs.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from ghostcacher_connector.core.errors import PeerUnreachable
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import MissReason, SlotMemory, WorkerRecord
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.base import (
    Probe,
    PullOutcome,
    PullRequest,
    PullResult,
    Transport,
    Validity,
    checked_result,
    failed_result,
    joined_result,
)
from ghostcacher_connector.transfer.jobs import (
    BlockFailure,
    JobResult,
    LinkStats,
    PullJob,
    PullSource,
    SourceResult,
    unread_result,
)
from ghostcacher_connector.transfer.peers import Peer, Peers
from ghostcacher_connector.transfer.shares import Share

logger = logging.getLogger(__name__)

QUEUE_MAX = 256
CLOSE_S = 5.0
RETRY_ELSEWHERE = {MissReason.PEER_UNREACHABLE, MissReason.TRANSFER_FAILED}
"""After these failures the next transport to the same peer is tried: it may not share them."""


class Puller:
    """Owns the transports of a rank, in order of preference; see the module's docstring."""

    def __init__(
        self,
        transports: Sequence[Transport],
        memory: SlotMemory,
        *,
        namespace: str,
        share: Share,
        pull_threads: int = 2,
        loads: bool = False,
        queue_max: int = QUEUE_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the threads. loads: whether the rank has host slots of its own to load from (`Peers.know_own`).

        share: of the rank, which its peers have, too.
        """
        self._transports = tuple(transports)
        self._clock = clock
        self._queue_max = queue_max
        self.peers = Peers(self._transports, memory, namespace=namespace, share=share, clock=clock)
        self._changed = threading.Condition()
        self._queue: collections.OrderedDict[str, PullJob] = collections.OrderedDict()
        self._running: set[str] = set()
        self._finished: list[JobResult] = []
        self._quarantined: list[tuple[JobResult, threading.Event]] = []
        self._to_connect: dict[str, Peer] = {}
        self._closing = False
        self._threads = [daemon_thread(f"gc-pull-{number}", self._pull_loop) for number in range(pull_threads)]
        if loads:
            self._threads.append(daemon_thread("gc-load", partial(self._pull_loop, loads_only=True)))
        self._threads.append(daemon_thread("gc-connect", self._connect_loop))
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        with self._changed:
            return f"Puller({len(self._queue)} queued, {len(self._running)} running, {len(self._finished)} finished)"

    def submit(self, job: PullJob) -> None:
        """Take over a job and, until its result is polled, its local slots. A full queue ends it as FAILED at once."""
        with self._changed:
            assert job.job_id not in self._queue, f"job {job.job_id} is queued already"
            assert job.job_id not in self._running, f"job {job.job_id} is running already"
            assert all(job.job_id != result.job_id for result, _ in self._quarantined), f"job {job.job_id} is not over"
            if self._closing:
                self._finished.append(unread_result(job, PullOutcome.CANCELLED, MissReason.CANCELLED))
            elif len(self._queue) >= self._queue_max:
                self._finished.append(unread_result(job, PullOutcome.FAILED, MissReason.TIMEOUT))
            else:
                self._queue[job.job_id] = job
                self._changed.notify_all()

    def poll(self, *, wait_s: float = 0.0) -> list[JobResult]:
        """Return the jobs that ended since the last call; each is returned once. Waits for one for `wait_s` at most.

        A job that no thread has taken by its deadline ends here: the threads may all be held by READs that hang.
        """
        with self._changed:
            if wait_s > 0:
                self._changed.wait_for(lambda: bool(self._finished), wait_s)
            for job in [job for job in self._queue.values() if job.deadline <= self._clock()]:
                del self._queue[job.job_id]
                self._finished.append(unread_result(job, PullOutcome.FAILED, MissReason.TIMEOUT))
            self._end_quarantines()
            finished, self._finished = self._finished, []
        return finished

    @property
    def quarantined_count(self) -> int:
        """How many jobs no thread works on any more, and into whose slots something may still land."""
        with self._changed:
            return sum(not over.is_set() for _, over in self._quarantined)

    def cancel(self, job_id: str) -> bool:
        """End a job that has not started as CANCELLED; a running one runs to its end. Return whether it was ended."""
        with self._changed:
            job = self._queue.pop(job_id, None)
            if job is None:
                return False
            self._finished.append(unread_result(job, PullOutcome.CANCELLED, MissReason.CANCELLED))
            return True

    def update_peers(self, records: Iterable[WorkerRecord]) -> None:
        """Take over the list of live workers; connects to new ones in the background and forgets gone ones."""
        fresh = self.peers.update(records)
        with self._changed:
            self._to_connect.update({peer.worker: peer for peer in fresh})
            self._changed.notify_all()

    def links(self) -> dict[str, LinkStats]:
        """Return what is known of the way to each peer, by worker."""
        return self.peers.links()

    def probe(self, worker: str, slots: Slots, *, timeout_s: float = 2.0) -> Probe:
        """Time the way to a peer with a few slots, into private memory. Waits; raises TransferError."""
        peer = self.peers.find(worker)
        if peer is None:
            raise PeerUnreachable(f"{worker} is unknown: {self.peers.refused.get(worker, 'no live record')}")
        transport = self.peers.transport_to(peer.endpoint)
        if transport is None:
            raise PeerUnreachable(f"no transport reaches {worker}")
        return transport.probe(peer.endpoint, slots, timeout_s=timeout_s)

    def close(self) -> bool:
        """End queued jobs as CANCELLED, wait a bounded time for running ones, close the transports. Idempotent.

        Returns whether nothing is in flight any more; if something is, its memory and transports must stay.
        """
        with self._changed:
            self._closing = True
            for job in self._queue.values():
                self._finished.append(unread_result(job, PullOutcome.CANCELLED, MissReason.CANCELLED))
            self._queue.clear()
            self._to_connect.clear()
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        landed = [over.wait(max(0.0, until - time.monotonic())) for _, over in self._quarantined]
        if not all(landed) or any(thread.is_alive() for thread in self._threads):
            # Closing a transport under a READ in flight could free what the READ writes to.
            logger.warning("a pull did not end within %.0f s; its transport stays open", CLOSE_S)
            return False
        for transport in self._transports:
            transport.close()
        return True

    def _pull_loop(self, *, loads_only: bool = False) -> None:
        while True:
            with self._changed:
                while (job := self._next(loads_only)) is None and not self._closing:
                    self._changed.wait()
                if self._closing or job is None:
                    return
                del self._queue[job.job_id]
                self._running.add(job.job_id)
            result, over = self._run_safely(job)
            with self._changed:
                self._running.discard(job.job_id)
                if over is None:
                    self._finished.append(result)
                else:
                    self._quarantined.append((result, over))
                self._changed.notify_all()

    def _next(self, loads_only: bool) -> PullJob | None:
        """Return the job that waits for longest, of those that ask this rank itself first if they alone are wanted."""
        wanted = (job for job in self._queue.values() if not loads_only or self._is_load(job))
        return next(wanted, None)

    def _is_load(self, job: PullJob) -> bool:
        return bool(job.sources) and self.peers.is_own(job.sources[0].worker)

    def _end_quarantines(self) -> None:
        """Give out the results of jobs in whose slots nothing can land any more."""
        self._finished.extend(result for result, over in self._quarantined if over.is_set())
        self._quarantined = [entry for entry in self._quarantined if not entry[1].is_set()]

    def _connect_loop(self) -> None:
        while True:
            with self._changed:
                while not self._to_connect and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                _, peer = self._to_connect.popitem()
            try:
                self.peers.connect(peer)
            except Exception:
                logger.exception("connecting to %s failed: unexpected error", peer.worker)

    def _run_safely(self, job: PullJob) -> tuple[JobResult, threading.Event | None]:
        """Carry out a job; a bug of ours ends it as FAILED, since a job without a result would hang its request."""
        try:
            return self._run(job)
        except Exception:
            logger.exception("job %s failed: unexpected error", job.job_id)
            return unread_result(job, PullOutcome.FAILED, MissReason.TRANSFER_FAILED), None

    def _run(self, job: PullJob) -> tuple[JobResult, threading.Event | None]:
        """Ask the sources; return the result and, if something may still land in the slots, what tells its end."""
        started = self._clock()
        count = len(job.local_slots)
        valid = np.zeros(count, dtype=np.bool_)
        why: dict[int, MissReason | None] = dict.fromkeys(range(count), MissReason.NOT_INDEXED)
        tries: list[SourceResult] = []
        for number, source in enumerate(job.sources):
            wanted = np.flatnonzero(~valid[: len(source.remote_slots)])
            if len(wanted) == 0:
                continue
            if self._clock() >= job.deadline:
                why.update(dict.fromkeys(np.flatnonzero(~valid).tolist(), MissReason.TIMEOUT))
                break
            last = number == len(job.sources) - 1
            result = self._pull_from(job, source, wanted, self._deadline_of(job, last))
            valid[wanted] = result.valid
            why.update(dict.fromkeys(wanted.tolist(), result.reason))
            tries.append(SourceResult(source.worker, len(wanted), int(result.valid.sum()), result))
            if result.reason is not None:
                logger.debug(
                    "job %s: %s delivered %d of %d blocks: %s: %s",
                    job.job_id,
                    source.worker,
                    tries[-1].valid,
                    len(wanted),
                    result.reason.value,
                    result.detail,
                )
            if result.over is not None:
                break  # what still lands would overwrite what another source delivers
        over = tries[-1].result.over if tries else None
        return _job_result(job, valid, why, tries, self._clock() - started), over

    def _deadline_of(self, job: PullJob, last: bool) -> float:
        """A source that hangs may take half of what is left, so that the next one has a chance."""
        now = self._clock()
        return job.deadline if last else now + (job.deadline - now) / 2

    def _pull_from(self, job: PullJob, source: PullSource, wanted: Slots, deadline: float) -> PullResult:
        peer = self.peers.ready(source.worker)
        if peer is None:
            known = self.peers.find(source.worker)
            detail = f"{source.worker} is unknown"
            if known is not None:
                detail = f"{source.worker} is backed off from after {known.failures} failures: {known.last_error}"
            return failed_result(len(wanted), "none", MissReason.PEER_UNREACHABLE, detail)
        if peer.incarnation != source.incarnation:
            # Generations start anew with each incarnation: these may be met again, with other content.
            nothing = np.zeros(len(wanted), dtype=np.bool_)
            return checked_result(nothing, "none", 0, 0.0)
        result: PullResult | None = None
        for endpoint, part in peer.pieces:
            slots, generations = source.remote_slots[wanted], source.generations[wanted]
            request = PullRequest(endpoint, slots, job.local_slots[wanted], generations, deadline, part)
            piece = self._pull_piece(source.worker, request)
            result = piece if result is None else joined_result(result, piece)
            if result.over is not None or not result.valid.any():
                break  # what still lands, or is missing, makes the other parts worthless
        assert result is not None, "a peer of which nothing is read"
        self.peers.record(peer, result)
        return result

    def _pull_piece(self, worker: str, request: PullRequest) -> PullResult:
        detail = f"no transport reaches {worker}"
        result = failed_result(len(request.local_slots), "none", MissReason.PEER_UNREACHABLE, detail)
        for transport in self._transports:
            if not transport.reaches(request.peer):
                continue
            result = transport.pull(request)
            if result.over is not None or result.reason not in RETRY_ELSEWHERE:
                break
        return result


def _job_result(
    job: PullJob,
    valid: Validity,
    why: Mapping[int, MissReason | None],
    tries: Sequence[SourceResult],
    seconds: float,
) -> JobResult:
    missing = np.flatnonzero(~valid)
    blocks_by_reason: dict[MissReason, list[int]] = {}
    for block in missing.tolist():
        blocks_by_reason.setdefault(why[block] or MissReason.TRANSFER_FAILED, []).append(block)
    failures = tuple(
        BlockFailure(reason, np.asarray(blocks, dtype=np.int64)) for reason, blocks in blocks_by_reason.items()
    )
    if len(missing) == 0:
        outcome = PullOutcome.DONE
    elif any(entry.result.outcome is PullOutcome.STALE for entry in tries):
        outcome = PullOutcome.STALE
    else:
        outcome = PullOutcome.FAILED
    moved = sum(entry.result.bytes for entry in tries)
    return JobResult(job.job_id, outcome, valid, failures, moved, seconds, tuple(tries))
