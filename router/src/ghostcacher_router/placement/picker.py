"""Which worker a request goes to, and why: the Dispatcher.

    look (what is held where) -> forecast each worker -> least wins, unless its session or a ghost lock says otherwise
      | the index must be asked         | no worker reports its load
      v wait, bounded                   v own memory -> bounded-load consistent hashing -> least load

All state is touched on the event loop only. `place_now` decides whatever needs no waiting; `place` waits for the index,
the session's store and ghost locks, each bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import Flush, WorkerEvents
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.ghostlock.followers import Met, Verb, follow_any, patience_s
from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ghostlock.single_flight import CONFIRM_S
from ghostcacher_router.placement.candidates import CandidateFinder, Candidates
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.fallback import Fallback
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.prefix_locations import WAIT_S
from ghostcacher_router.signals.prefix_match import LookupNeeded, PrefixMatch, PrefixMatcher
from ghostcacher_router.signals.queue_estimate import QueueEstimate
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.signals.ttft_forecast import NOTHING, choose, forecast
from ghostcacher_router.types import Ask, Forecast, Prompt, Reason

ROUNDS_MAX = 64
"""Looks at one request: each follows a lock's end or an answer of the index. Then it goes without locks."""

WAITED_S = 0.1
"""Bound of the wait for the index after a lock: who has waited for a prefix must not miss it for a slow answer."""

AFFINITY_MS = 5.0
"""A session stays for so small a difference, whatever share of the forecast it is."""

LOCK_MS_MIN = 50.0
"""Computing that is shorter is not worth a round trip, and others' waits."""


class Options(NamedTuple):
    """See the router's settings of the same names."""

    affinity_tolerance: float = 0.25
    ghost_lock: bool = True
    ghost_lock_tokens_min: int = 1024


class Wait(NamedTuple):
    """A lock must change first. until: loop clock, s."""

    lock: GhostLock
    until: float


class Visit:
    """One request on its way through `place`.

    patient_until: loop clock, s; None before it met a lock. newer_than: loop clock, s; what the index said before does
    not do. asks: whether it may still wait for the index. locking: whether it minds locks.
    """

    __slots__ = ("asks", "locking", "newer_than", "patient_until", "waited")

    def __init__(self, *, locking: bool) -> None:
        self.patient_until: float | None = None
        self.newer_than: float | None = None
        self.asks, self.locking, self.waited = True, locking, False


_is_reported = attrgetter("reported")


class _Look(NamedTuple):
    """What one look at a request found. best: the least forecast, locks left aside. now: loop clock, s."""

    ask: Ask
    sight: PrefixMatch
    workers: Sequence[WorkerPort]
    ahead: list[QueueEstimate]
    forecasts: list[Forecast]
    best: Forecast
    now: float


class Picker:
    """Picks workers. See types.Dispatcher. desk: what was placed."""

    def __init__(self, dependencies: Dependencies, state: RoutingState, options: Options) -> None:
        self._fleet, self._text, self._metrics = dependencies.fleet, dependencies.text, dependencies.metrics
        self._clock, self._rng, self._options = dependencies.clock, dependencies.rng, options
        self._queues, self._sent_history, self._locations, self._sessions, self._locks = state
        self._finder = CandidateFinder(dependencies.fleet)
        self._looker = PrefixMatcher(dependencies.fleet, dependencies.text, state.locations, state.sent_history)
        self.desk = InFlightTracker(dependencies, state)
        self._fallback = Fallback(dependencies, state, self.desk)

    def __repr__(self) -> str:
        return f"Picker({self._queues!r}, {self._sent_history!r}, {self._locks!r})"

    @property
    def in_flight(self) -> int:
        """Requests that are placed and have not ended."""
        return self._queues.in_flight_total

    def place_now(self, ask: Ask) -> PlacedRequest | None:
        """Return a placement without waiting, or None when something must be awaited. Raises NoWorker."""
        if self._session_unknown(ask):
            return None
        step = self._decide(ask, Visit(locking=self._options.ghost_lock), now_only=True)
        return self.desk.hand_out(step) if isinstance(step, PlacedRequest) else None

    async def place(self, ask: Ask) -> PlacedRequest:
        """Return a placement, after at most what computing the prompt would take. Raises NoWorker."""
        visit = Visit(locking=self._options.ghost_lock)
        if self._session_unknown(ask):
            await self._sessions.fetch(session_key(ask.shape.model, ask.shape.session or ""))
        for round_number in range(ROUNDS_MAX + 2):
            if round_number >= ROUNDS_MAX:
                visit.locking = visit.asks = False
            step = self._decide(ask, visit, now_only=False)
            if isinstance(step, LookupNeeded):
                await self._fetch(step, WAITED_S if visit.waited else WAIT_S)
                # Once: what has not come in time is no reason to wait longer.
                visit.asks = False
            elif isinstance(step, Wait):
                await self._wait(step, visit)
            elif step is not None and await self._confirmed(step):
                return self.desk.hand_out(step)
        raise AssertionError(f"{ask.request_id}: without locks and questions the last round places")

    def on_news(self, news: WorkerEvents) -> None:
        """Take note of which prompts a worker has computed."""
        ref = WorkerRef(news.namespace, news.worker, news.incarnation)
        for request_id in news.computed:
            self.desk.on_computed(ref, request_id)

    def on_flush(self, flush: Flush) -> None:
        """Forget what a flush names. What it names in the learned text is the text map's to forget."""
        if flush.scope == "session":
            self._sessions.drop(flush.key)
        else:
            # Own memory cannot be told apart by documents: losing more than was asked for only costs time.
            self._sent_history.clear()
            self._locations.clear()
        if flush.scope == "all":
            self._sessions.clear()

    async def explain(self, ask: Ask) -> list[dict[str, object]]:
        """Return what each worker that serves the model would cost, best first; place nothing. Raises NoWorker."""
        candidates, prompt = self._finder.find(ask), ask.shape.prompt
        sight = None if prompt is None else self._look(prompt, candidates, ask=True)
        if isinstance(sight, LookupNeeded):
            await self._fetch(sight, WAIT_S)
            assert prompt is not None
            sight = self._look(prompt, candidates, ask=False)
        assert not isinstance(sight, LookupNeeded)
        rows = []
        ahead = self._ahead(candidates.workers)
        for worker, found, cost in zip(
            candidates.workers, ahead, _forecasts(candidates.workers, ahead, sight), strict=True
        ):
            terms: dict[str, object] = {"endpoint": worker.endpoint.url, "load_reported": found.reported}
            terms["in_flight"] = self._queues.in_flight(worker.name)
            rows.append((cost.total_ms, worker.name, cost._asdict() | terms))
        return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]

    # One look

    async def _fetch(self, unknown: LookupNeeded, timeout_s: float) -> None:
        known = self._text.known(unknown.namespace, unknown.prompt)
        if known:
            await self._locations.fetch(unknown.namespace, known, timeout_s)

    def _decide(self, ask: Ask, visit: Visit, *, now_only: bool) -> PlacedRequest | Wait | LookupNeeded | None:
        """Return a placement, reserved, or what to wait for. None (now_only): a lock that the store has to confirm."""
        candidates, prompt = self._finder.find(ask), ask.shape.prompt
        workers, now = candidates.workers, self._clock()
        sight: PrefixMatch | None = None
        if prompt is not None and candidates.shares:
            # Before each worker's queue is looked at: where the index must be asked, all of this is done again.
            asks = visit.asks and len(workers) > 1
            seen = self._look(prompt, candidates, ask=asks, newer_than=visit.newer_than)
            if isinstance(seen, LookupNeeded):
                return seen
            sight = seen
        ahead = self._ahead(workers)
        if prompt is None:
            return self._fallback.least_loaded(ask, workers, ahead)
        if sight is None or not any(map(_is_reported, ahead)):
            return self._fallback.without_reports(ask, prompt, workers)
        forecasts = _forecasts(workers, ahead, sight)
        if len(workers) == 1:
            return self.desk.reserve(ask, workers[0], Reason.ONLY, forecasts[0])
        look = _Look(ask, sight, workers, ahead, forecasts, choose(forecasts, self._rng), now)
        mets = self._meet(candidates, look) if visit.locking and len(self._locks) else None
        if mets:
            return self._heed(look, mets, visit, now_only=now_only)
        best, reason = self._stay(look, Reason.FOLLOW if visit.waited else Reason.FORECAST)
        return self._reserve(look, best, reason, visit, now_only=now_only)

    def _look(
        self, prompt: Prompt, candidates: Candidates, *, ask: bool, newer_than: float | None = None
    ) -> PrefixMatch | LookupNeeded:
        pulls = self._locations.available and not self._locks.broken
        now = self._clock()
        return self._looker.look(prompt, candidates.namespaces, now, pulls=pulls, ask=ask, newer_than=newer_than)

    def _ahead(self, workers: Sequence[WorkerPort]) -> list[QueueEstimate]:
        now, ahead = self._clock(), self._queues.ahead
        return [ahead(worker, now) for worker in workers]

    def _stay(self, look: _Look, reason: Reason) -> tuple[Forecast, Reason]:
        """Return the worker of the session when it is about as good as the best, else the best."""
        session, best = look.ask.shape.session, look.best
        if session is None:
            return best, reason
        worker = self._sessions.get(session_key(look.ask.shape.model, session))
        if worker is None or worker == best.worker:
            return best, reason
        limit_ms = best.total_ms * (1.0 + self._options.affinity_tolerance) + AFFINITY_MS
        for found in look.forecasts:
            if found.worker == worker and found.total_ms <= limit_ms:
                return found, Reason.AFFINITY
        return best, reason

    def _reserve(
        self,
        look: _Look,
        best: Forecast,
        reason: Reason,
        visit: Visit,
        *,
        now_only: bool,
        over: GhostLock | None = None,
    ) -> PlacedRequest | None:
        """Place, under a lock if much is computed. over: an overdue lock that the new one replaces."""
        worker, prompt = self._fleet.workers[best.worker], look.sight.prompt
        enough = best.computed_tokens >= self._options.ghost_lock_tokens_min and best.compute_ms >= LOCK_MS_MIN
        locking = visit.locking and enough and worker.namespace is not None
        if locking and now_only and self._locks.shared:
            return None
        if not self._locations.available:
            self._metrics.fallbacks.inc("index")
        placed = self.desk.reserve(look.ask, worker, reason, best)
        if locking and worker.namespace is not None:
            ready_at = look.now + best.total_ms / 1e3
            warm = look.sight.warm_in(worker.namespace)
            placed.lock = self._locks.take(worker.namespace, prompt, warm, worker.name, ready_at)
            placed.took_over = over
        if visit.patient_until is not None:
            placed.lock_result = _result(reason, visit, over, look.now)
        return placed

    # Ghost locks

    def _meet(self, candidates: Candidates, look: _Look) -> list[Met]:
        """Return the locks worth minding, one a namespace at most: those that cover much of what is not there yet."""
        sight, mets = look.sight, []
        for namespace in candidates.namespaces:
            if namespace is None:
                continue
            warm = sight.warm_in(namespace)
            found = self._locks.find(namespace, sight.prompt, warm)
            if found is not None:
                covered = sight.tokens_at(found.boundary) - (sight.tokens_at(warm) if warm >= 0 else 0)
                if covered >= self._options.ghost_lock_tokens_min:
                    mets.append(Met(namespace, found))
        return mets

    def _heed(self, look: _Look, mets: Sequence[Met], visit: Visit, *, now_only: bool) -> PlacedRequest | Wait | None:
        # Computing itself means elsewhere: this router's memory already counts the locked part as local at the owner's.
        owners = {met.found.lock.worker for met in mets}
        others = [cost for cost in look.forecasts if cost.worker not in owners]
        # Where all compute it: at any but the first.
        others = others or [cost for cost in look.forecasts if cost.worker != mets[0].found.lock.worker]
        own = choose(others, self._rng) if others else look.best
        if visit.patient_until is None:
            visit.patient_until = look.now + patience_s(own, self.desk.bias)
        for met in mets:
            if not met.found.lock.confirmed:
                return Wait(met.found.lock, look.now + CONFIRM_S)
        candidates = list(zip(look.workers, look.ahead, strict=True))
        lock, step = follow_any(look.sight, mets, candidates, own, look.now, visit.patient_until)
        if step.verb is Verb.WAIT:
            return Wait(lock, step.until)
        if step.verb is Verb.GO:
            return self._reserve(look, step.forecast, Reason.FOLLOW, visit, now_only=now_only)
        if step.verb is Verb.TAKE_OVER:
            self._locks.take_over(lock)
            return self._reserve(look, own, Reason.FORECAST, visit, now_only=now_only, over=lock)
        return self._reserve(look, own, Reason.FORECAST, visit, now_only=now_only)

    async def _wait(self, wait: Wait, visit: Visit) -> None:
        lock = wait.lock
        followed = lock.confirmed
        await self._locks.wait(lock, wait.until)
        visit.waited |= followed
        if not lock.ours:
            # Another router's request: only the index can tell whether the prefix is there now.
            visit.newer_than, visit.asks = self._clock(), True

    async def _confirmed(self, placed: PlacedRequest) -> bool:
        if placed.lock is None:
            return True
        try:
            ours = await self._locks.confirm(placed.lock, placed.took_over)
        except BaseException:
            # The client has left meanwhile: nobody will ever send this, or end it.
            self.desk.withdraw(placed)
            raise
        if not ours:
            self.desk.withdraw(placed)
        return ours

    def _session_unknown(self, ask: Ask) -> bool:
        session = ask.shape.session
        return session is not None and not self._sessions.known(session_key(ask.shape.model, session))


def _result(reason: Reason, visit: Visit, over: GhostLock | None, now: float) -> str | None:
    """Say what became of the lock that a request has met; None when it paid no heed to it."""
    if over is not None:
        return "taken_over"
    if reason is Reason.FOLLOW:
        return "waited" if visit.waited else "followed"
    return "timed_out" if visit.patient_until is not None and now >= visit.patient_until else None


def _forecasts(
    workers: Sequence[WorkerPort], ahead: Sequence[QueueEstimate], sight: PrefixMatch | None
) -> list[Forecast]:
    """Return the forecast of each worker. sight: None without a prompt."""
    if sight is None:
        return [forecast(found.engine, found.queue_ms, 1, NOTHING) for found in ahead]
    tokens, reach = sight.tokens, sight.reach
    return [
        forecast(found.engine, found.queue_ms, tokens, reach(worker))
        for worker, found in zip(workers, ahead, strict=True)
    ]
