"""What this router has sent where, so that requests see each other's placement before any report does.

The queue of a worker is its last load report, less what it has computed since, plus what was sent after the report.
A request that was sent before the report was measured is in it, or done; a report that is told again is as old as it
was. Without a fresh report (a plain engine, Redis away) the queue is all that was sent and has not answered; nothing
tells how far the engine has come with it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from statistics import median

from ghostcacher_connector.core.types import Role
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.ttft_forecast import Engine

STALE_S = 2.0
"""A load report that was told longer ago says nothing. Workers tell every 100 to 250 ms; an idle one measures nothing
new, so what it tells may be old, and true."""

PROGRESS_MAX_S = 0.5
"""A worker is trusted to go on computing for so long after its last report was measured, or after an idle one was sent
something, and no longer: it may have stalled."""

ARRIVAL_FIXED_S = 0.02
ARRIVAL_S_PER_TOKEN = 1e-6
"""From a request written until the engine's scheduler, and so a report, knows of it: HTTP and tokenising."""

PREFILL_TOKENS_PER_S_GUESS = 10_000.0
"""While no engine reports a rate: a mid-size model on one accelerator. Only relations matter among such."""

MS_PER_TOKEN_GUESS = 1e3 / PREFILL_TOKENS_PER_S_GUESS

PULL_BYTES_PER_S_GUESS = 1e9
"""Before a worker has measured: a 10 Gbit/s link, the slowest one on which sharing is usually deployed."""

BOOKS_SPARE = 64
"""Books of workers that are gone, kept until there are so many more books than workers."""


class Entry:
    """One request at one worker, from its placement until its end."""

    __slots__ = ("computed", "prefilling", "since", "tokens", "worker")

    def __init__(self, worker: str, tokens: int, computed: int, since: float) -> None:
        self.worker, self.tokens, self.computed, self.since = worker, tokens, computed, since
        self.prefilling = True

    def __repr__(self) -> str:
        return f"Entry({self.worker}, computed={self.computed}/{self.tokens}, prefilling={self.prefilling})"


class QueueEstimate:
    """A worker, as the next request finds it; one object a worker, good until its next reading.

    reported: by a fresh load report, not by our own count alone.
    """

    __slots__ = ("engine", "queue_ms", "reported")

    def __init__(self, engine: Engine, queue_ms: float, reported: bool) -> None:
        self.engine, self.queue_ms, self.reported = engine, queue_ms, reported

    def __repr__(self) -> str:
        return f"QueueEstimate({self.engine.name}, queue={self.queue_ms:.1f} ms, reported={self.reported})"


class _Book:
    """The entries of one worker. unseen: those that its last report cannot have counted. ms_per_token: as it reports,
    None while it does not. Times: loop clock, s; report_at: when it was measured, told_at: when it was told.
    """

    __slots__ = (
        "ahead",
        "busy_until",
        "dirty",
        "entries",
        "load",
        "ms_per_token",
        "prefilling_tokens",
        "report_at",
        "told_at",
        "trusted_until",
        "unseen",
    )

    def __init__(self) -> None:
        self.entries: dict[Entry, None] = {}
        self.unseen: dict[Entry, None] = {}
        self.prefilling_tokens = 0
        self.load: object = None
        self.dirty = True
        self.ms_per_token: float | None = None
        self.report_at = self.told_at = self.trusted_until = self.busy_until = 0.0
        self.ahead: QueueEstimate | None = None


class QueueEstimator:
    """Own requests in flight, by worker. On the event loop only; `now`: the loop's clock, s."""

    def __init__(self) -> None:
        self._books: dict[str, _Book] = {}
        self._rates: list[float] = []
        """ms_per_token of all books that have one, ascending."""
        self._typical_ms_per_token = MS_PER_TOKEN_GUESS

    def __repr__(self) -> str:
        return f"QueueEstimator(in_flight={self.in_flight_total})"

    @property
    def in_flight_total(self) -> int:
        return sum(len(book.entries) for book in self._books.values())

    def in_flight(self, worker: str) -> int:
        """Return how many requests of this router are at a worker, or on their way."""
        book = self._books.get(worker)
        return len(book.entries) if book is not None else 0

    def reserve(self, worker: str, tokens: int, computed: int, now: float) -> Entry:
        """Enter a request that was placed. tokens: of its prompt; computed: those that the worker has to compute."""
        entry = Entry(worker, tokens, computed, now)
        book = self._book(worker)
        book.entries[entry] = book.unseen[entry] = None
        book.prefilling_tokens += computed
        book.dirty = True
        return entry

    def sent(self, entry: Entry, now: float) -> None:
        """The request has been written; a report made before now cannot have counted it."""
        if entry.prefilling:
            entry.since = now
            book = self._books[entry.worker]
            book.unseen[entry] = None
            book.dirty = True

    def first_byte(self, entry: Entry) -> None:
        """The answer has begun: nothing of the prompt is still to be computed. May be called again."""
        if entry.prefilling:
            entry.prefilling = False
            book = self._books[entry.worker]
            book.prefilling_tokens -= entry.computed
            book.unseen.pop(entry, None)
            book.dirty = True

    def ended(self, entry: Entry) -> None:
        """The request is gone, however it went. May be called again."""
        self.first_byte(entry)
        book = self._books[entry.worker]
        if entry in book.entries:
            del book.entries[entry]
            book.dirty = True

    def ahead(self, worker: WorkerPort, now: float) -> QueueEstimate:
        """Return what a request would find at a worker now."""
        book = self._books.get(worker.name) or self._book(worker.name)
        load = worker.load
        if load is not book.load:
            self._take_report(book, worker)
        fresh = load is not None and now - book.told_at <= STALE_S
        found = book.ahead
        if (
            found is None
            or book.dirty
            or found.reported is not fresh
            or (book.ms_per_token is None and found.engine.ms_per_token != self._typical_ms_per_token)
        ):
            found = self._reckon(book, worker, fresh)
        if fresh:
            until = book.trusted_until
            queue_ms = (book.busy_until - (now if now < until else until)) * 1e3
            found.queue_ms = queue_ms if queue_ms > 0.0 else 0.0
        else:
            found.queue_ms = book.prefilling_tokens * found.engine.ms_per_token
        return found

    def keep_only(self, workers: Collection[str]) -> None:
        """Forget workers that are gone and have no request in flight."""
        if len(self._books) > len(workers) + BOOKS_SPARE:
            for name in [name for name, book in self._books.items() if name not in workers and not book.entries]:
                self._note_rate(self._books.pop(name), None)

    def check_invariants(self) -> None:
        """Assert that what is counted is what is there."""
        for name, book in self._books.items():
            assert book.unseen.keys() <= book.entries.keys(), name
            assert all(entry.worker == name for entry in book.entries), name
            assert book.prefilling_tokens == sum(entry.computed for entry in book.entries if entry.prefilling), name
            assert all(entry.prefilling for entry in book.unseen), name
        rates = [book.ms_per_token for book in self._books.values() if book.ms_per_token is not None]
        assert self._rates == sorted(rates), "rates"
        assert self._typical_ms_per_token == (median(rates) if rates else MS_PER_TOKEN_GUESS)

    def _book(self, worker: str) -> _Book:
        return self._books.setdefault(worker, _Book())

    def _take_report(self, book: _Book, worker: WorkerPort) -> None:
        book.load, book.dirty = worker.load, True
        book.report_at = book.told_at = worker.load_received_at
        rate = 0.0
        if worker.load is not None:
            book.told_at += worker.load.load.age_s
            rate = worker.load.load.prefill_tokens_per_s
        self._note_rate(book, 1e3 / rate if rate else None)
        for entry in list(book.unseen):
            arrived = entry.since + ARRIVAL_FIXED_S + entry.tokens * ARRIVAL_S_PER_TOKEN
            if arrived < book.report_at:
                del book.unseen[entry]

    def _note_rate(self, book: _Book, ms_per_token: float | None) -> None:
        if ms_per_token == book.ms_per_token:
            return
        if book.ms_per_token is not None:
            del self._rates[bisect_left(self._rates, book.ms_per_token)]
        if ms_per_token is not None:
            insort(self._rates, ms_per_token)
        book.ms_per_token = ms_per_token
        self._typical_ms_per_token = median(self._rates) if self._rates else MS_PER_TOKEN_GUESS

    def _reckon(self, book: _Book, worker: WorkerPort, fresh: bool) -> QueueEstimate:
        ms_per_token = self._typical_ms_per_token if book.ms_per_token is None else book.ms_per_token
        book.ahead, book.dirty = QueueEstimate(_engine_of(worker, book, fresh, ms_per_token), 0.0, fresh), False
        if worker.load is not None:
            load, trusted_from = worker.load.load, book.report_at
            if book.unseen and not (load.running or load.waiting or load.waiting_tokens):
                # Until the first of these it had nothing to go on with, so its silence says nothing.
                trusted_from = max(trusted_from, min(entry.since for entry in book.unseen))
            until = book.trusted_until = trusted_from + PROGRESS_MAX_S
            busy = book.report_at + load.waiting_tokens * ms_per_token / 1e3
            for entry in book.unseen:
                busy = max(busy, min(entry.since, until)) + entry.computed * ms_per_token / 1e3
            book.busy_until = busy
        return book.ahead


def _engine_of(worker: WorkerPort, book: _Book, fresh: bool, ms_per_token: float) -> Engine:
    if worker.load is None:
        return Engine(worker.name, ms_per_token, len(book.entries) * ms_per_token, None, 0.0, None)
    load = worker.load.load
    running = load.running + load.waiting + len(book.unseen) if fresh else len(book.entries)
    free: int | None = None
    if fresh and load.kv_blocks_total:
        free = (load.kv_blocks_total - load.kv_blocks_used) * load.block_tokens
        free = max(0, free - sum(entry.tokens for entry in book.unseen))
    pulls = worker.record is not None and worker.record.role is not Role.PRODUCER and load.block_tokens > 0
    pull_ms_per_token = None
    if pulls:
        bytes_per_token = load.block_bytes / load.block_tokens
        pull_ms_per_token = bytes_per_token / (load.pull_bytes_per_s or PULL_BYTES_PER_S_GUESS) * 1e3
    return Engine(worker.name, ms_per_token, running * ms_per_token, free, load.pull_fixed_s * 1e3, pull_ms_per_token)
