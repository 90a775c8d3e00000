"""Estimates each worker's queue, so that requests see each other's placement before any load report does.

    queue = the last load report - what was computed since + what this router sent after the report was measured

A request that was sent before the report was measured is in the report, or done. A report that is received again with
an older measurement is as old as that measurement. Without a fresh report (a plain engine, or Redis away) the queue is
everything that this router sent and that has not answered; of a plain engine, less what it has likely done of the first
prompt, at the rate that its answers tell. Where a report is missing, nothing tells how far the engine has come.

Requests whose prompts are computed are no queue, but they are decoded: the *batch*. It is what the last report says,
and what this router sent since then, less what has ended since then. What it costs: engine_speeds.py.

Pulls take turns at a link: until those are done that were placed before, the next one waits (`link_ms`). They are
hardly any work for the engine, so without this a worker that is sent one pull after the other would look idle.

A request that failed keeps its place for as long as one that is answered: a worker that fails fast is not fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import inf, isclose

from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.engine_rates import engine_of, rates_of
from ghostcacher_router.signals.engine_speeds import EngineSpeeds
from ghostcacher_router.signals.queue_columns import ListedQueues, QueueColumns, QueueList, Queues
from ghostcacher_router.signals.reservation import Reservation
from ghostcacher_router.signals.standing import Standing, standing_of
from ghostcacher_router.signals.worker_queue import QueueEstimate, WorkerQueue

STALE_S = 2.0
"""A load report that was received longer ago says nothing. Workers report every 100 to 250 ms. An idle worker measures
nothing new, so that its reports may carry an old measurement and still be true."""

PROGRESS_MAX_S = 0.5
"""A worker is believed to go on computing for so long after its last report was measured, or after an idle one was sent
something, and no longer: it may have stalled."""

ARRIVAL_FIXED_S = 0.02
ARRIVAL_S_PER_TOKEN = 1e-6
"""Time from a request written until the engine's scheduler, and so a load report, knows of it: HTTP and tokenising."""

RATE_TOKENS_MIN = 512
"""What engines that report nothing take for shorter prompts says little of their rate: fixed times prevail."""

STAY_S_GUESS = 1.0
STAY_S_MAX = 5.0
STAY_WEIGHT = 0.1
"""How long requests are at their worker, from sent to answered, is a running mean. Bounded, so that a failure is soon
forgotten."""

FAILED_MAX = 1024
"""Failed requests that are counted in one worker's queue: more say nothing more."""

FEW = 16
"""Of so many workers each one's estimate and forecast are sooner made by themselves than all as columns."""

QUEUES_SPARE = 64
"""Queues of workers that are gone are kept until there are so many more queues than workers."""


class QueueEstimator:
    """Estimates queues from load reports and this router's own requests. On the event loop only.

    `now` is always the loop's clock, in seconds.
    """

    def __init__(self) -> None:
        self._queues: dict[str, WorkerQueue] = {}
        self._columns = QueueColumns()
        self._columns_version = 0
        """Of the speeds that all columns were written with."""
        self._changed: set[WorkerQueue] = set()
        """Queues that are dirty: their slots in the columns have to be written anew."""
        self._reports = 0
        """How many reports have been taken in."""
        self._failing: set[WorkerQueue] = set()
        """Queues in which requests that failed are counted."""
        self._speeds = EngineSpeeds()
        self._stay_s = STAY_S_GUESS
        """How long a request is at its worker until it is answered."""

    def __repr__(self) -> str:
        return f"QueueEstimator(in_flight={self.in_flight_total})"

    @property
    def in_flight_total(self) -> int:
        """Requests of this router at all workers, or on their way."""
        return sum(len(queue.reservations) for queue in self._queues.values())

    def in_flight(self, worker: str) -> int:
        """Return how many requests of this router are at a worker, or on their way."""
        queue = self._queues.get(worker)
        return len(queue.reservations) if queue is not None else 0

    def recent(self, worker: str, now: float) -> float:
        """Return how many requests were placed at a worker of late, as far as known; older ones count less."""
        queue = self._queues.get(worker)
        return queue.recent_requests(now) if queue is not None else 0.0

    def reserve(self, worker: str, tokens: int, computed: int, now: float, *, pull_ms: float = 0.0) -> Reservation:
        """Add a request that was placed.

        tokens: of its prompt; computed: those that the worker has to compute. pull_ms: the time of its pull.
        """
        reservation = Reservation(worker, tokens, computed, now, pull_ms)
        queue = self._queue(worker)
        reservation.alone = not queue.prefilling
        queue.count_recent(now)
        queue.reservations[reservation] = queue.unreported[reservation] = None
        queue.prefilling[reservation] = None
        queue.prefilling_tokens += computed
        if pull_ms:
            queue.pulling_until = max(queue.pulling_until, now) + pull_ms / 1e3
            queue.pulls_ms += pull_ms
        self._touch(queue)
        return reservation

    def sent(self, reservation: Reservation, now: float) -> None:
        """Note that the request has been written; a report that was measured before now cannot have counted it."""
        if reservation.prefilling:
            reservation.since = now
            queue = self._queues[reservation.worker]
            queue.unreported[reservation] = None
            self._touch(queue)

    def reserve_foreign(self, worker: str, tokens: int, computed: int, now: float) -> Reservation:
        """Add a request of another router, of which the worker has told; `foreign_computed` takes it off."""
        reservation = Reservation(worker, tokens, computed, now)
        queue = self._queue(worker)
        queue.count_recent(now)
        queue.foreign[reservation] = queue.unreported[reservation] = None
        self._touch(queue)
        return reservation

    def foreign_computed(self, reservation: Reservation) -> None:
        """Note that a request of another router is computed, or not heard of any more."""
        queue = self._queues.get(reservation.worker)
        if queue is not None:
            reservation.prefilling = False
            queue.foreign.pop(reservation, None)
            queue.unreported.pop(reservation, None)
            self._touch(queue)

    def computed_max(self, reservation: Reservation, now: float) -> int | None:
        """Return how many tokens a worker that reports nothing has computed for a request, at most, if it answers now.

        None of a worker that reports, and of a prompt that is known to be computed.
        """
        if not reservation.prefilling or self._queues[reservation.worker].load is not None:
            return None
        return int((now - reservation.since) * 1e3 / self._speeds.ms_per_token(reservation.worker))

    def answer_began(self, reservation: Reservation, now: float, *, is_new: bool = True) -> None:
        """Note that the answer has begun. What passed since the answer before it tells how fast engines compute.

        is_new: whether the worker was never sent what it has to compute. Otherwise it may have it still.
        """
        queue = self._queues[reservation.worker]
        tells = is_new and reservation.prefilling and reservation.computed >= RATE_TOKENS_MIN
        if tells and queue.load is None:
            self._speeds.computed(reservation.computed, now - max(reservation.since, queue.answered_at))
        queue.answered_at = now
        self.first_byte(reservation)

    def first_byte(self, reservation: Reservation) -> None:
        """Note that nothing of the prompt is still to be computed. May be called again."""
        if reservation.prefilling:
            reservation.prefilling = False
            queue = self._queues[reservation.worker]
            del queue.prefilling[reservation]
            queue.prefilling_tokens -= reservation.computed
            queue.pulls_ms = queue.pulls_ms - reservation.pull_ms if queue.prefilling else 0.0
            self._touch(queue)

    def ended(self, reservation: Reservation) -> None:
        """Remove a request, however it went. May be called again."""
        self.first_byte(reservation)
        queue = self._queues[reservation.worker]
        if reservation in queue.reservations:
            del queue.reservations[reservation]
            if reservation in queue.unreported:
                del queue.unreported[reservation]
            else:
                queue.ended += 1
            self._touch(queue)

    def decoded(self, worker: str, seconds: float) -> None:
        """Note that an answer ended well, so many seconds after its first token."""
        self._speeds.answered(worker, seconds)

    def answered(self, reservation: Reservation, now: float) -> None:
        """Note that a request has been answered as a whole, just before its end: so long others may take, too."""
        self._stay_s += STAY_WEIGHT * (min(STAY_S_MAX, now - reservation.since) - self._stay_s)

    def failed(self, reservation: Reservation, now: float) -> None:
        """Remove a request that has failed; its place stays taken for as long as one that is answered keeps it."""
        self.ended(reservation)
        queue, until = self._queues[reservation.worker], reservation.since + self._stay_s
        if until > now and len(queue.failed) < FAILED_MAX:
            queue.failed.append((until, reservation.computed))
            queue.failed_tokens += reservation.computed
            self._failing.add(queue)
            self._touch(queue)

    def estimate(self, worker: WorkerPort, now: float) -> QueueEstimate:
        """Return what a request would find at a worker now."""
        queue = self._queues.get(worker.name) or self._queue(worker.name)
        if queue.worker is not worker or worker.load is not queue.load:
            self._take_report(queue, worker)
        if queue.failed:
            self._drop_failed(queue, now)
        return self._estimate(queue, now)

    def take_reports(self, workers: Iterable[WorkerPort], now: float) -> None:
        """Take in what workers have reported since the last time: when it comes, so that no request has to do it."""
        for worker in workers:
            queue = self._queues.get(worker.name)
            if queue is not None and worker.load is not queue.load:
                self._take_report(queue, worker)
        if len(self._queues) > FEW:
            self._write_columns(now)

    def at(self, workers: Sequence[WorkerPort], now: float) -> Queues:
        """Return what a request would find at each of some workers now: what `estimate` says of each.

        workers: at least one; the list is not changed after this. Their reports have been taken in.
        """
        listed = self._columns.listed(workers, self._queue_of)
        listed.renew(self._reports, self._speeds.version)
        if self._failing:
            for queue in list(self._failing):
                self._drop_failed(queue, now)
        if len(workers) <= FEW:
            return self._few(listed, now)
        self._write_columns(now)
        return self._columns.view(listed, now, STALE_S, self._estimate)

    def _write_columns(self, now: float) -> None:
        """Write the columns of all queues that have changed."""
        self._columns.begin(now)
        changed: Collection[WorkerQueue] = self._changed
        if self._columns_version != self._speeds.version:
            # What one worker tells of its speed may change what another one is taken for.
            self._columns_version, changed = self._speeds.version, self._queues.values()
        if changed:
            known = [queue for queue in changed if queue.worker is not None]
            for queue in known:
                self._renewed(queue, now)
            self._columns.write(known)
            self._changed.clear()

    def _few(self, listed: ListedQueues, now: float) -> QueueList:
        """Return the estimate of each worker of a list, all of whose reports are taken."""
        since, found = listed.received_from, []
        if since is None or now - since > STALE_S:
            found = [self.estimate(worker, now) for worker in listed.workers]
            counted = [queue.received_at for queue, one in zip(listed.queues, found, strict=True) if one.reported]
            listed.received_from = min(counted, default=inf)
            listed.lacking = [place for place, one in enumerate(found) if not one.reported]
            return QueueList(listed, found, listed.reported)
        for queue in listed.queues:
            one = queue.estimate
            if one is None or queue.dirty:
                one = self._renew_estimate(queue, one is not None and one.reported)
                queue.pass_time(one, now)
            elif one.queue_ms or one.link_ms:
                # An empty queue is empty until something happens.
                queue.pass_time(one, now)
            found.append(one)
        return QueueList(listed, found, listed.reported)

    def compute_s(self, tokens: int) -> float:
        """Return how long a typical engine takes to compute so many prompt tokens."""
        return tokens * self._speeds.typical_ms_per_token / 1e3

    def standing(self, worker: WorkerPort, now: float) -> Standing:
        """Return how full a worker is."""
        found = self.estimate(worker, now)
        return standing_of(worker, self._queues[worker.name], found)

    def keep_only(self, workers: Collection[str]) -> None:
        """Forget workers that are gone and have no request in flight."""
        if len(self._queues) > len(workers) + QUEUES_SPARE:
            gone = [name for name, queue in self._queues.items() if name not in workers and not queue.reservations]
            dropped = [self._queues.pop(name) for name in gone]
            self._columns.drop([queue.slot for queue in dropped])
            self._changed.difference_update(dropped)
            self._failing.difference_update(dropped)
            for name in gone:
                self._speeds.forget(name)

    def check_invariants(self) -> None:
        """Assert that what is counted is what is there."""
        for name, queue in self._queues.items():
            assert queue.unreported.keys() <= queue.reservations.keys() | queue.foreign.keys(), name
            assert queue.foreign.keys().isdisjoint(queue.reservations), name
            assert all(one.worker == name for one in queue.reservations), name
            assert queue.prefilling.keys() == {one for one in queue.reservations if one.prefilling}, name
            assert queue.prefilling_tokens == sum(one.computed for one in queue.reservations if one.prefilling), name
            pulls_ms = sum(one.pull_ms for one in queue.prefilling)
            assert isclose(queue.pulls_ms, pulls_ms, abs_tol=1e-6), f"{name}: {queue.pulls_ms} ms, expected {pulls_ms}"
            assert queue.failed_tokens == sum(tokens for _, tokens in queue.failed), name
        self._speeds.check_invariants()

    def _queue(self, worker: str) -> WorkerQueue:
        queue = self._queues.get(worker)
        if queue is None:
            queue = self._queues[worker] = WorkerQueue(self._columns.add())
            self._changed.add(queue)
        return queue

    def _queue_of(self, worker: WorkerPort) -> WorkerQueue:
        """Return a worker's queue, which is its own from now on and has taken in what it reported before."""
        queue = self._queue(worker.name)
        if queue.worker is not worker or worker.load is not queue.load:
            self._take_report(queue, worker)
        return queue

    def _touch(self, queue: WorkerQueue) -> None:
        queue.dirty = True
        self._changed.add(queue)

    def _drop_failed(self, queue: WorkerQueue, now: float) -> None:
        if queue.drop_failed(now):
            self._touch(queue)
        if not queue.failed:
            self._failing.discard(queue)

    def _take_report(self, queue: WorkerQueue, worker: WorkerPort) -> None:
        """Take in what a worker reports now; queue: its own, of which this is the worker from now on."""
        self._touch(queue)
        self._reports += 1
        queue.worker = worker
        if worker.load is queue.load:
            return
        queue.load, queue.ended, queue.rates = worker.load, 0, None
        queue.measured_at = queue.received_at = worker.load_measured_at
        if worker.load is not None:
            queue.received_at += worker.load.load.age_s
        self._speeds.report(worker.name, worker.namespace, None if worker.load is None else worker.load.load)
        for reservation in list(queue.unreported):
            arrived = reservation.since + ARRIVAL_FIXED_S + reservation.tokens * ARRIVAL_S_PER_TOKEN
            if arrived < queue.measured_at:
                del queue.unreported[reservation]

    def _estimate(self, queue: WorkerQueue, now: float) -> QueueEstimate:
        """Return what a request would find in a queue now, of which all that has happened is noted."""
        found = self._renewed(queue, now)
        queue.pass_time(found, now)
        return found

    def _renewed(self, queue: WorkerQueue, now: float) -> QueueEstimate:
        """Return the estimate of a queue, made anew if need be, but for what passing time alone changes."""
        found, fresh = queue.estimate, queue.load is not None and now - queue.received_at <= STALE_S
        if found is None or queue.dirty or found.reported is not fresh or queue.speeds_version != self._speeds.version:
            return self._renew_estimate(queue, fresh)
        return found

    def _renew_estimate(self, queue: WorkerQueue, fresh: bool) -> QueueEstimate:
        worker, rates, version = queue.worker, queue.rates, self._speeds.version
        assert worker is not None, "nobody has asked for it"
        if rates is None or queue.speeds_version != version or rates.record is not worker.record:
            rates = queue.rates = rates_of(worker, self._speeds)
        engine = engine_of(queue, worker.name, rates, self._speeds.answer_tokens, fresh=fresh)
        # How long it takes is said by `WorkerQueue.pass_time` alone.
        queue.estimate = found = QueueEstimate(engine, inf, fresh, rates.capacity)
        found.prefilling = len(queue.prefilling) + len(queue.foreign)
        queue.dirty, queue.speeds_version = False, version
        if queue.load is not None:
            load, trusted_from, ms_per_token = queue.load.load, queue.measured_at, engine.ms_per_token
            prefilling = [one for one in queue.unreported if one.prefilling]
            if prefilling and not (load.running or load.waiting or load.waiting_tokens):
                # Until the first of these it had nothing to go on with, so its silence says nothing.
                trusted_from = max(trusted_from, min([one.since for one in prefilling]))
            until = queue.trusted_until = trusted_from + PROGRESS_MAX_S
            busy = queue.measured_at + load.waiting_tokens * ms_per_token / 1e3
            for one in prefilling:
                since = one.since if one.since < until else until
                busy = (busy if busy > since else since) + one.computed * ms_per_token / 1e3
            queue.busy_until = busy
        return found
