"""Chooses the worker of each request. `Picker` is the Dispatcher that the HTTP proxy asks.

One decision (`Picker._decide_once`), in steps:

    1. candidates    the ready workers that serve the request's model                        candidates.py
    2. prefix match  how much of the prompt each of them has, and how much it could pull     signals/prefix_match.py
    3. queues        how much prefill work is ahead at each of them                          signals/queue_estimate.py
    4. forecasts     the time to first token at each of them; the least one is the best      signals/ttft_forecast.py
    5. ghost locks   is another request computing this prefix now? Then follow it, wait, or
                     compute all the same                                                    ghostlock/followers.py
    6. session       the worker of the client's session is kept if it is about as good       signals/sessions.py
    7. reservation   the next request finds this one in the worker's queue, and where much
                     is computed, a ghost lock on it                                         in_flight.py

A request without a prompt, and every request while no worker reports its load, goes by fallback.py instead of 5 and 6.

Where another process of this router turns out to compute the prefix at 7, the decision is made anew, with that known.

`place_now` decides, and where something must be awaited, `place` goes on with what was decided. It waits, each time
bounded: for the index (2), for another request's ghost lock (5), and for the store to tell a session's worker (6) or to
confirm a ghost lock (7). After each wait it decides anew. All state is touched on the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_router.ghostlock.followers import (
    Action,
    Choice,
    encountered_locks,
    follow_any,
    recompute_forecast,
    wait_budget_s,
)
from ghostcacher_router.ghostlock.ghost_lock import EncounteredLock, GhostLock, confirm_by
from ghostcacher_router.placement.assessment import Assessment, Assessor
from ghostcacher_router.placement.begun import BegunRequests, Progress
from ghostcacher_router.placement.candidates import ANSWERS
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.fallback import Fallback
from ghostcacher_router.placement.in_flight import CHANGE_MODELS, InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.signals.prefix_locations import WAIT_S
from ghostcacher_router.signals.prefix_match import BYTES_PER_TOKEN_GUESS, LookupNeeded, PrefixMatch
from ghostcacher_router.signals.ranking import Draw, Ranking
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Ask, Endpoint, Forecast, LockWaits, Prompt, Reason, Server

ROUNDS_MAX = 64
"""Decisions about one request: each but the first follows the end of a lock, or an answer of the index. After so many
the request is placed without regard to locks."""

LOOKUP_SHARE = 0.05
"""A request waits for the index for this share of what computing its prompt takes, where that is longer than WAIT_S. By
old knowledge it goes to a worker that has evicted the prefix, or past one that has it: that costs all of it."""

LOOKUP_MAX_S = 0.1
"""But no longer than this. So long it waits after a lock: who has waited for a prefix must not miss it for a slow
answer."""

YIELDS_MAX = 4
"""Decisions in a row that turn out to be in the way of other processes. Then the request is placed without regard to
locks: so many processes compute what it has in common with others."""

AFFINITY_MS = 5.0
"""A session stays at its worker for so small a difference, whatever share of the forecast it is."""

LOCK_MS_MIN = 50.0
"""Computing that is shorter is worth neither a round trip to the store nor that others wait."""

NEW_TOKENS_MIN = 1024
"""Where less of a prompt is new, chance is as good: any worker has the rest, or can have it."""


class Options(NamedTuple):
    """See the router's settings of the same names."""

    affinity_tolerance: float = 0.25
    ghost_lock: bool = True
    ghost_lock_tokens_min: int = 1024


class WaitForLock(NamedTuple):
    """A ghost lock has to change before a request can be placed."""

    lock: GhostLock
    until: float
    """End of the wait; loop clock, s."""
    changed: asyncio.Event
    """Set when the lock is not any more what it was when this was decided."""
    confirmed: bool
    """Whether it was confirmed then."""


class Yielded(NamedTuple):
    """Another process of this router computes the prefix: its lock is known now."""

    lock: GhostLock
    """The one that was taken, and withdrawn."""


_Step = PlacedRequest | WaitForLock | LookupNeeded
"""What a decision comes to."""


class _Begun(NamedTuple):
    """What is known of a request when `place` goes on with it."""

    progress: Progress
    step: _Step


class _Round(NamedTuple):
    """One decision about a request, before locks and its session have their say."""

    ask: Ask
    assessment: Assessment
    match: PrefixMatch
    ranking: Ranking
    """The forecasts of all candidates."""
    best: Forecast
    """The least of them, unless its worker was sent far more than its share."""


class Picker:
    """Chooses workers. See types.Dispatcher."""

    def __init__(
        self, dependencies: Dependencies, state: RoutingState, tracker: InFlightTracker, options: Options
    ) -> None:
        self._fleet, self._metrics = dependencies.fleet, dependencies.metrics
        self._clock, self._rng = dependencies.clock, dependencies.rng
        self._state, self._tracker, self._options = state, tracker, options
        self._locks, self._sessions = state.locks, state.sessions
        self._assessor = Assessor(dependencies, state)
        self._fallback = Fallback(dependencies, state, tracker)
        self._begun: BegunRequests[_Begun] = BegunRequests(self._abandon)

    def __repr__(self) -> str:
        return f"Picker({self._state.queues!r}, {self._state.history!r}, {self._locks!r})"

    def place_now(self, ask: Ask) -> PlacedRequest | None:
        """Return a placement without waiting, or None when something must be awaited. Raises NoWorker."""
        if self._begun.has(ask) or self._session_unknown(ask) or self._holder_unknown(ask) or self._model_unknown(ask):
            return None
        progress = Progress(honours_locks=self._options.ghost_lock)
        step = self._decide(ask, progress)
        if isinstance(step, PlacedRequest) and (step.lock is None or step.lock.confirmed):
            return self._tracker.commit(step)
        self._begun.keep(ask, _Begun(progress, step))
        return None

    async def place(self, ask: Ask) -> PlacedRequest:
        """Return a placement, within the wait budget of ghost locks and the timeouts of Redis. Raises NoWorker."""
        step: _Step | None = None
        begun = self._begun.pop(ask)
        if begun is None:
            progress = Progress(honours_locks=self._options.ghost_lock)
            await self._fetch_unknown(ask)
        else:
            progress, step = begun
        for round_number in range(ROUNDS_MAX + 2):
            if round_number >= ROUNDS_MAX:
                progress.honours_locks = progress.may_look_up = False
            step = step or self._decide(ask, progress)
            if isinstance(step, LookupNeeded):
                await self._assessor.look_up(step, LOOKUP_MAX_S if progress.waited else self._lookup_s(step.prompt))
                # Once: what has not come in time is no reason to wait longer.
                progress.may_look_up = False
            elif isinstance(step, WaitForLock):
                await self._wait(step, progress, ask.trace)
            elif await self._confirmed(step):
                return self._tracker.commit(step)
            step = None
        raise AssertionError(f"{ask.request_id}: without locks and lookups the last round places")

    async def explain(self, ask: Ask) -> list[dict[str, object]]:
        """Return what each candidate would cost and why, best first; place nothing. Raises NoWorker."""
        return await self._assessor.explain(ask)

    def hands_over(self, model: str | None) -> bool:
        """Say whether one worker computes the prompts of a model's requests and another one answers."""
        return self._assessor.hands_over(model)

    def servers(self) -> list[Server]:
        """Return all servers that answer, each once, also those that are drained."""
        found: dict[Endpoint, Server] = {}
        for name, worker in sorted(self._fleet.workers.items()):
            if worker.state in ANSWERS:
                found.setdefault(worker.endpoint, Server(name, worker.endpoint))
        return list(found.values())

    def told_all(self, path: str) -> None:
        """Note that a request to this path has been sent to all servers: it may have changed their models."""
        if path.endswith(CHANGE_MODELS):
            self._fleet.models_changed()

    def _lookup_s(self, prompt: Prompt) -> float:
        """Return how long a request may wait for what the index says of its prompt."""
        tokens = prompt.tokens or prompt.size // BYTES_PER_TOKEN_GUESS
        return min(LOOKUP_MAX_S, max(WAIT_S, LOOKUP_SHARE * self._state.queues.compute_s(tokens)))

    # One decision

    def _decide(self, ask: Ask, progress: Progress) -> _Step:
        """Return a placement, reserved, whose lock the store may have to confirm, or what to wait for."""
        for _ in range(YIELDS_MAX):
            step = self._decide_once(ask, progress)
            if not isinstance(step, Yielded):
                return step
        progress.honours_locks = False
        step = self._decide_once(ask, progress)
        assert not isinstance(step, Yielded), "no lock is taken"
        return step

    def _decide_once(self, ask: Ask, progress: Progress) -> _Step | Yielded:
        found = self._assessor.assess(ask, may_look_up=progress.may_look_up, newer_than=progress.newer_than)
        if isinstance(found, LookupNeeded):
            return found
        candidates, match, prompt = found.candidates, found.match, ask.shape.prompt
        if prompt is None:
            ranking = found.ranking()
            best = ranking.forecast_at(ranking.best_place(self._draw(found)))
            return self._fallback.least_loaded(ask, best, only=len(candidates.workers) == 1)
        if match is None or not found.queues.reported:
            return self._place_without_reports(ask, prompt, self._assessor.own_memory(prompt, found))
        if len(candidates.workers) == 1:
            return self._tracker.reserve(ask, candidates.workers[0], Reason.ONLY, found.forecast_at(0))
        ranking = found.ranking()
        best = self._best(ranking, found)
        this = _Round(ask, found, match, ranking, best)
        if progress.honours_locks and len(self._locks):
            tokens_min = self._options.ghost_lock_tokens_min
            encountered = encountered_locks(self._locks, match, candidates.namespaces, tokens_min)
            if encountered:
                return self._honour(this, encountered, progress)
        chosen, reason = self._keep_session(this, Reason.FOLLOW if progress.waited else Reason.FORECAST)
        return self._reserve(this, chosen, reason, progress)

    def _draw(self, found: Assessment) -> Draw:
        """Return how one of equals is chosen: new text comes to stay where it goes, so it goes to who was sent less."""
        queues, match, now = self._state.queues, found.match, found.now

        def recent(worker: str) -> float:
            return 0.0 if match is None or match.new_tokens < NEW_TOKENS_MIN else queues.recent(worker, now)

        return Draw(self._rng, recent)

    def _best(self, ranking: Ranking, found: Assessment) -> Forecast:
        """Return the best forecast; or, if its worker was sent too much of late, the best with a price for that."""
        draw = self._draw(found)
        place = ranking.best_place(draw)
        prices = found.queues.share_prices(found.now, place)
        return ranking.forecast_at(place if prices is None else ranking.best_place(draw, prices))

    def _place_without_reports(self, ask: Ask, prompt: Prompt, found: Assessment) -> PlacedRequest:
        """Place a prompt while no worker reports its load, by what this router itself has sent, and what it guesses."""
        assert found.match is not None
        ranking = found.ranking()
        best, reason = self._fallback.without_reports(prompt, ranking, found.queues.listed)
        this = _Round(ask, found, found.match, ranking, best)
        chosen, reason = self._keep_session(this, reason)
        return self._tracker.reserve(ask, self._fleet.workers[chosen.worker], reason, None, chosen)

    def _honour(
        self, this: _Round, encountered: Sequence[EncounteredLock], progress: Progress
    ) -> PlacedRequest | WaitForLock | Yielded:
        """Decide about a request that encounters ghost locks."""
        found = this.assessment
        recompute = recompute_forecast(this.ranking, encountered, this.best, self._draw(found))
        if progress.budget_ends_at is None:
            progress.budget_ends_at = found.now + wait_budget_s(recompute, self._tracker.bias)
        for one in encountered:
            if not one.lock.confirmed:
                return _waiting(one.lock, confirm_by(one.lock))
        choice = Choice(this.match, found, recompute, found.now, progress.budget_ends_at)
        lock, step = follow_any(choice, encountered)
        if step.action is Action.WAIT:
            return _waiting(lock, step.until)
        if step.action is Action.FOLLOW:
            return self._reserve(this, step.forecast, Reason.FOLLOW, progress)
        if step.action is Action.TAKE_OVER:
            self._locks.take_over(lock)
            return self._reserve(this, recompute, Reason.FORECAST, progress, replaces=lock)
        return self._reserve(this, recompute, Reason.FORECAST, progress)

    def _keep_session(self, this: _Round, reason: Reason) -> tuple[Forecast, Reason]:
        """Return the forecast of the session's worker when it is about as good as the best, else the best."""
        session, best = this.ask.shape.session, this.best
        if session is None:
            return best, reason
        worker = self._sessions.get(session_key(this.ask.shape.model, session))
        if worker is None or worker == best.worker:
            return best, reason
        limit_ms = best.total_ms * (1.0 + self._options.affinity_tolerance) + AFFINITY_MS
        found = this.ranking.at(worker)
        return (best, reason) if found is None or found.total_ms > limit_ms else (found, Reason.AFFINITY)

    def _reserve(
        self,
        this: _Round,
        chosen: Forecast,
        reason: Reason,
        progress: Progress,
        replaces: GhostLock | None = None,
    ) -> PlacedRequest | Yielded:
        """Reserve a place at the chosen worker, under a ghost lock if much is computed there.

        replaces: an overdue lock that the new one takes over.
        """
        worker, now = self._fleet.workers[chosen.worker], this.assessment.now
        enough = chosen.computed_tokens >= self._options.ghost_lock_tokens_min and chosen.compute_ms >= LOCK_MS_MIN
        locking = progress.honours_locks and enough and worker.namespace is not None
        lock: GhostLock | None = None
        if locking and worker.namespace is not None:
            ready_at, warm = now + chosen.ttft_ms / 1e3, this.match.warm_in(worker.namespace)
            lock = self._locks.take(worker.namespace, this.match.prompt, warm, worker.name, ready_at, replaces)
            if lock is not None and lock.released:
                return Yielded(lock)
        if not self._state.locations.available:
            self._metrics.fallbacks.inc("index")
        placed = self._tracker.reserve(this.ask, worker, reason, chosen)
        placed.lock, placed.replaces = lock, None if lock is None else replaces
        placed.lock_result = _lock_result(reason, progress, replaces, now)
        return placed

    # What is awaited

    async def _fetch_unknown(self, ask: Ask) -> None:
        """Have what must be known of a request before it can be decided."""
        if self._session_unknown(ask):
            await self._sessions.fetch(session_key(ask.shape.model, ask.shape.session or ""))
        if self._model_unknown(ask):
            await self._fleet.refresh_models()
        if self._holder_unknown(ask):
            await self._state.stored.fetch(ask.shape.needs_id or "")

    def _abandon(self, begun: _Begun) -> None:
        """Take back what was begun for a request whose client has left."""
        if isinstance(begun.step, PlacedRequest):
            self._tracker.withdraw(begun.step)

    async def _wait(self, wait: WaitForLock, progress: Progress, trace: LockWaits | None) -> None:
        lock, began_at = wait.lock, self._clock()
        await self._locks.wait(lock, wait.until, wait.changed)
        if trace is not None:
            trace.waited(began_at, self._clock(), worker=lock.worker)
        progress.waited |= wait.confirmed
        if not lock.ours and wait.confirmed:
            # Another router's request: only the index can tell whether the prefix is there now.
            progress.newer_than, progress.may_look_up = self._clock(), True

    async def _confirmed(self, placed: PlacedRequest) -> bool:
        """Return whether a placement stands: it needs no lock, or no other router holds it."""
        if placed.lock is None:
            return True
        try:
            ours = await self._locks.confirm(placed.lock, placed.replaces)
        except BaseException:
            # The client has left meanwhile: nobody will ever send this, or end it.
            self._tracker.withdraw(placed)
            raise
        if not ours:
            self._tracker.withdraw(placed)
        return ours

    def _session_unknown(self, ask: Ask) -> bool:
        session = ask.shape.session
        return session is not None and not self._sessions.known(session_key(ask.shape.model, session))

    def _holder_unknown(self, ask: Ask) -> bool:
        needs_id = ask.shape.needs_id
        return needs_id is not None and self._state.stored.unknown(needs_id)

    def _model_unknown(self, ask: Ask) -> bool:
        """Whether nobody is known to serve the model, and asking the workers may show that somebody does."""
        model = ask.shape.model
        return model is not None and not self._fleet.serving(model) and self._fleet.models_may_be_old


def _waiting(lock: GhostLock, until: float) -> WaitForLock:
    return WaitForLock(lock, until, lock.changed, lock.confirmed)


def _lock_result(reason: Reason, progress: Progress, replaces: GhostLock | None, now: float) -> str | None:
    """Return what became of the lock that a request encountered; None when there was none, or it had no effect."""
    if progress.budget_ends_at is None:
        return None
    if replaces is not None:
        return "taken_over"
    if reason is Reason.FOLLOW:
        return "waited" if progress.waited else "followed"
    return "timed_out" if now >= progress.budget_ends_at else None
