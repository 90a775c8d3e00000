"""Placing without forecasts: by the session, by what was sent where, by hash, by load alone."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.hash_ring import bound_of, pick
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.queue_estimate import QueueEstimate
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.signals.ttft_forecast import NOTHING, choose, forecast
from ghostcacher_router.types import Ask, Prompt, Reason


class Fallback:
    """Places what cannot be forecast. Each fallback is counted."""

    def __init__(self, dependencies: Dependencies, state: RoutingState, desk: InFlightTracker) -> None:
        self._fleet, self._metrics, self._clock, self._rng = (
            dependencies.fleet,
            dependencies.metrics,
            dependencies.clock,
            dependencies.rng,
        )
        self._queues, self._sent_history, self._sessions, self._desk = (
            state.queues,
            state.sent_history,
            state.sessions,
            desk,
        )

    def least_loaded(self, ask: Ask, workers: Sequence[WorkerPort], ahead: Sequence[QueueEstimate]) -> PlacedRequest:
        """Place a request of which nothing is known but that it is one. ahead: of each worker."""
        self._metrics.fallbacks.inc("prompt")
        best = choose([forecast(found.engine, found.queue_ms, 1, NOTHING) for found in ahead], self._rng)
        reason = Reason.ONLY if len(workers) == 1 else Reason.LEAST_LOAD
        return self._desk.reserve(ask, self._fleet.workers[best.worker], reason, None)

    def without_reports(self, ask: Ask, prompt: Prompt, workers: Sequence[WorkerPort]) -> PlacedRequest:
        """Place a prompt while no worker reports its load: whichever worker is not full."""
        self._metrics.fallbacks.inc("load")
        if len(workers) == 1:
            return self._desk.reserve(ask, workers[0], Reason.ONLY, None)
        loads = {worker.name: self._queues.in_flight(worker.name) for worker in workers}
        bound, session = bound_of(list(loads.values())), ask.shape.session
        bound_to = None if session is None else self._sessions.get(session_key(ask.shape.model, session))
        remembered = self._sent_history.find(prompt, self._clock())
        sent_to = None if remembered is None else remembered.holders[0].worker
        for name, reason in ((bound_to, Reason.AFFINITY), (sent_to, Reason.MEMORY)):
            if name is not None and loads.get(name, bound) < bound:
                return self._desk.reserve(ask, self._fleet.workers[name], reason, None)
        name = pick(prompt.prefix_key, list(loads), loads.__getitem__)
        return self._desk.reserve(ask, self._fleet.workers[name], Reason.HASH, None)
