"""Places requests that cannot be forecast: by session, by what was sent where, by hash, or by load alone."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.hash_ring import bound_of, pick
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.signals.ttft_forecast import choose
from ghostcacher_router.types import Ask, Forecast, Prompt, Reason


class Fallback:
    """Places requests without an exact forecast, and counts them in ``gc_router_fallbacks_total``."""

    def __init__(self, dependencies: Dependencies, state: RoutingState, tracker: InFlightTracker) -> None:
        self._fleet, self._metrics = dependencies.fleet, dependencies.metrics
        self._clock, self._rng = dependencies.clock, dependencies.rng
        self._queues, self._history, self._sessions = state.queues, state.history, state.sessions
        self._tracker = tracker

    def least_loaded(self, ask: Ask, workers: Sequence[WorkerPort], forecasts: Sequence[Forecast]) -> PlacedRequest:
        """Place a request that has no prompt, where the queue is shortest. forecasts: of one token at each worker."""
        self._metrics.fallbacks.inc("prompt")
        best = choose(forecasts, self._rng)
        reason = Reason.ONLY if len(workers) == 1 else Reason.LEAST_LOAD
        return self._tracker.reserve(ask, self._fleet.workers[best.worker], reason, None)

    def without_reports(self, ask: Ask, prompt: Prompt, workers: Sequence[WorkerPort]) -> PlacedRequest:
        """Place a prompt while no worker reports its load.

        The first of these that has not too many requests of this router: the session's worker, the one that the
        prompt's longest known part was sent to, the one that consistent hashing names.
        """
        self._metrics.fallbacks.inc("load")
        if len(workers) == 1:
            return self._tracker.reserve(ask, workers[0], Reason.ONLY, None)
        now = self._clock()
        loads = {worker.name: self._queues.occupied(worker.name, now) for worker in workers}
        bound, session = bound_of(list(loads.values())), ask.shape.session
        bound_to = None if session is None else self._sessions.get(session_key(ask.shape.model, session))
        match = self._history.find(prompt, now)
        sent_to = None if match is None else match.holders[0].worker
        for name, reason in ((bound_to, Reason.AFFINITY), (sent_to, Reason.MEMORY)):
            if name is not None and loads.get(name, bound) < bound:
                return self._tracker.reserve(ask, self._fleet.workers[name], reason, None)
        name = pick(prompt.prefix_key, list(loads), loads.__getitem__)
        return self._tracker.reserve(ask, self._fleet.workers[name], Reason.HASH, None)
