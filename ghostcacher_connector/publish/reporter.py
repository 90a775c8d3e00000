"""Publishes this worker's load and the prompts that it has, for routers, beside the engine and never in its way.

    every interval_s            the load that the engine's thread has submitted last, with its age; it is asked for
                                shortly before, and until it is there: an engine looks once a step. Less often while
                                the engine is idle, or no router listens
    within some milliseconds    prompt chains and computed prompts, while a router listens; while none does, they cost
                                the engine's thread one read of an attribute

A prompt is published as computed only when the index holds its blocks: a router that reads it may look at once.

One daemon thread does all I/O. `step` is its whole behaviour and takes the time from `clock`, so that a test can drive
it without a thread. Everything here is a hint; what is lost is learned with the next prompt.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.coordination.base import CoordinationStore, LoadReport, PromptChain
from ghostcacher_connector.core.errors import IndexRefused, IndexUnavailable
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import PrefillRate

logger = logging.getLogger(__name__)

QUEUE_MAX = 4_096
"""Events of each kind that wait to be published: seconds of the busiest engine."""
BATCH = 64
"""Events of each kind in one call: some 200 KiB when every prompt is long."""
GATHER_S = 0.003
"""How long events wait for more: what arrives with one step of the engine is published with one call."""
IDLE_INTERVAL_S = 0.5
"""How often the load of an idle engine is published again: routers take a worker that is silent for 2 s for unknown."""
UNHEARD_INTERVAL_S = 1.0
"""How often the load is published while no router listens: whether one does comes with the answer."""
LOAD_TTL_S_MIN = 5.0
"""The load outlives a few lost reports, also at the pace of a worker to which no router listens."""
REPORTS_PER_TTL = 5
LISTENING_S = 5.0
"""While the store does not answer, a router is taken to listen for so long after the last answer that said so: one call
that took too long must not cost the events of a prompt, which may come only once."""
ASK_AHEAD_S_MAX = 0.05
"""The load is asked for so long before it is published, a step of most engines: it is fresh, and measured once."""
UNAPPLIED_S_MAX = 1.0
"""A computed prompt waits no longer than this for the index; then it is published although its blocks are not."""
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 2.0


class _Computed(NamedTuple):
    request: str
    at: float


class _Measured(NamedTuple):
    load: LoadReport
    at: float


class Reporter:
    """Publishes one worker's load and prompts."""

    listening: bool
    """Whether a router listened when the store last took a report, not long ago."""

    def __init__(
        self,
        store: CoordinationStore,
        ref: WorkerRef,
        recorder: Recorder,
        *,
        interval_s: float,
        applied: Callable[[float], bool],
        prefill_rate: Callable[[], PrefillRate] | None = None,
        name_taken: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the reporter; `start` starts it.

        interval_s: how often the load is published while a router listens.
        applied: returns whether the index holds all that was published before a time on `clock`.
        prefill_rate: returns the present rate, since the load that an idle engine has submitted grows old.
            None: the rate in the load counts.
        name_taken: returns whether another live engine has this worker's name; then nothing is said under it.
        """
        self.listening = False
        self._measured: _Measured | None = None
        self._store = store
        self._ref = ref
        self._recorder = recorder
        self._interval_s = interval_s
        self._applied = applied
        self._prefill_rate = prefill_rate
        self._name_taken = name_taken
        self._clock = clock
        self._load_ttl_s = max(LOAD_TTL_S_MIN, REPORTS_PER_TTL * interval_s)
        self._load_at = self._rest_until = self._answered_at = clock()
        self._ask_ahead_s = min(ASK_AHEAD_S_MAX, interval_s / 4)
        self._ask_at = math.inf
        # The load of an idle engine, once published: until another one is submitted, it is published less often.
        self._rests_on: _Measured | None = None
        # Appended to by the engine's thread, taken from by the reporter's alone; an item leaves when it was published.
        self._chains: deque[PromptChain] = deque()
        self._computed: deque[_Computed] = deque()
        self._backoff = Backoff(BACKOFF_MIN_S, BACKOFF_MAX_S)
        self._thread = Periodic("gc-reporter", self.step, gather_s=GATHER_S)

    def __repr__(self) -> str:
        return f"Reporter(worker={self._ref.worker}, listening={self.listening}, chains={len(self._chains)})"

    @property
    def load_wanted(self) -> bool:
        """Whether the engine's thread is asked to submit its load. Only `submit_load` takes it back."""
        # Told by the time, and not by the reporter's thread: that would have to wake for it, as often as to publish.
        measured, ask_at = self._measured, self._ask_at
        return ask_at <= self._clock() and (measured is None or measured.at < ask_at)

    def submit_load(self, load: LoadReport) -> None:
        """Take the engine's load, measured now: when it is `load_wanted`, or the engine became idle. Never blocks."""
        self._measured = _Measured(load, self._clock())
        if self._rests_on is not None:
            self._wake()

    def chain(self, chain: PromptChain) -> None:
        """Publish, if a router listens, a prompt that has arrived. Never blocks, never raises for the store."""
        if self.listening and self._room(len(self._chains)):
            self._chains.append(chain)
            self._wake()

    def computed(self, request: str) -> None:
        """Publish, if a router listens, that a prompt is computed and its blocks are published. Never blocks."""
        if self.listening and self._room(len(self._computed)):
            self._computed.append(_Computed(request, self._clock()))
            self._wake()

    def move(self, ref: WorkerRef) -> None:
        """Report for another incarnation of the worker from now on."""
        self._ref = ref

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread, within `timeout_s`. Idempotent. The load expires by itself."""
        self._thread.stop(timeout_s)
        self.listening = False

    def step(self) -> float:
        """Do what is due; return how long nothing else is, in seconds, unless an event arrives."""
        now = self._clock()
        if self._name_taken():
            self.listening = False
            return UNHEARD_INTERVAL_S
        measured = self._measured  # one object throughout: the engine's thread may submit another meanwhile
        due = now >= self._next_load_at()
        chains = list(islice(self._chains, BATCH))
        computed = self._settled(now)
        if due or chains or computed:
            try:
                self._publish(self._load(measured, now) if due else None, chains, computed)
            except IndexUnavailable as exc:
                return self._failed(exc)
            except Exception:
                self.listening = False
                raise
            # Before the queues are looked at: what arrives from here on wakes the thread.
            self._backoff.succeeded()
            self._answered_at = now
            if due:
                self._plan_next(measured, now)
        pause_s = max(0.0, self._next_load_at() - now)
        return min(GATHER_S, pause_s) if self._chains or self._computed else pause_s

    def _next_load_at(self) -> float:
        """Return when the load is to be published next, if no other one is submitted."""
        rests_on = self._rests_on
        return self._rest_until if rests_on is not None and rests_on is self._measured else self._load_at

    def _plan_next(self, measured: _Measured | None, now: float) -> None:
        """Set when the load is published next, now that this one was, and when the engine is asked for it.

        An engine that was asked and has not answered yet remains asked.
        """
        self._load_at = now + (self._interval_s if self.listening else max(self._interval_s, UNHEARD_INTERVAL_S))
        self._rest_until = max(self._load_at, now + IDLE_INTERVAL_S)
        idle = measured is not None and not (measured.load.running or measured.load.waiting)
        self._rests_on = measured if idle else None
        if now < self._ask_at or (measured is not None and measured.at >= self._ask_at):
            self._ask_at = self._load_at - self._ask_ahead_s

    def _load(self, measured: _Measured | None, now: float) -> LoadReport | None:
        """Return a load with its present age, by which routers know which requests it cannot have counted."""
        if measured is None:
            return None
        load = replace(measured.load, age_s=max(0.0, now - measured.at))
        if self._prefill_rate is None:
            return load
        rate = self._prefill_rate()
        return replace(load, prefill_tokens_per_s=rate.tokens_per_s, prefill_rate_stale=rate.stale)

    def _publish(self, load: LoadReport | None, chains: list[PromptChain], computed: list[str]) -> None:
        self.listening = self._store.publish(self._ref, load, chains, computed, ttl_s=self._load_ttl_s)
        for _ in chains:
            self._chains.popleft()
        for _ in computed:
            self._computed.popleft()
        if self.listening and chains:
            self._recorder.inc("gc_prompt_reports_total", len(chains))

    def _settled(self, now: float) -> list[str]:
        """Return the requests, oldest first, whose blocks the index holds by now."""
        settled = []
        for request, at in islice(self._computed, BATCH):
            if now - at < UNAPPLIED_S_MAX and not self._applied(at):
                break
            settled.append(request)
        return settled

    def _room(self, waiting: int) -> bool:
        if waiting < QUEUE_MAX:
            return True
        self._recorder.inc("gc_prompt_reports_dropped_total")
        return False

    def _failed(self, exc: IndexUnavailable) -> float:
        self._recorder.inc("gc_report_errors_total")
        if self._backoff.failures == 0:
            # That Redis is away, the publisher says.
            level = logging.WARNING if isinstance(exc, IndexRefused) else logging.DEBUG
            logger.log(level, "worker %s: reports are kept back: %s", self._ref.worker, exc)
        self.listening &= self._clock() - self._answered_at < LISTENING_S
        pause_s = self._backoff.failed(self._clock())
        self._thread.forget_wakes()
        return pause_s

    def _wake(self) -> None:
        # While the store is away events go on gathering, and nothing cuts the pause short.
        if self._backoff.failures == 0:
            self._thread.wake()
