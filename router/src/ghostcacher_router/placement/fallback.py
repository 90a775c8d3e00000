"""Placing without forecasts: by the session, by what was sent where, by hash, by load alone."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_router.placement.context import Around, Books
from ghostcacher_router.placement.hash_ring import bound_of, pick
from ghostcacher_router.placement.in_flight import PlacedDesk
from ghostcacher_router.placement.placement import Placed
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.forecast import NOTHING, choose, forecast
from ghostcacher_router.signals.queue_estimate import Ahead
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Ask, Prompt, Reason


class Fallback:
    """Places what cannot be forecast. Each fallback is counted."""

    def __init__(self, around: Around, books: Books, desk: PlacedDesk) -> None:
        self._fleet, self._metrics, self._clock, self._rng = around.fleet, around.metrics, around.clock, around.rng
        self._ledger, self._memory, self._sessions, self._desk = books.ledger, books.memory, books.sessions, desk

    def least_loaded(self, ask: Ask, workers: Sequence[WorkerPort], ahead: Sequence[Ahead]) -> Placed:
        """Place a request of which nothing is known but that it is one. ahead: of each worker."""
        self._metrics.fallbacks.inc("prompt")
        best = choose([forecast(found.engine, found.queue_ms, 1, NOTHING) for found in ahead], self._rng)
        reason = Reason.ONLY if len(workers) == 1 else Reason.LEAST_LOAD
        return self._desk.reserve(ask, self._fleet.workers[best.worker], reason, None)

    def without_reports(self, ask: Ask, prompt: Prompt, workers: Sequence[WorkerPort]) -> Placed:
        """Place a prompt while no worker reports its load: whichever worker is not full."""
        self._metrics.fallbacks.inc("load")
        if len(workers) == 1:
            return self._desk.reserve(ask, workers[0], Reason.ONLY, None)
        loads = {worker.name: self._ledger.in_flight(worker.name) for worker in workers}
        bound, session = bound_of(list(loads.values())), ask.shape.session
        bound_to = None if session is None else self._sessions.get(session_key(ask.shape.model, session))
        remembered = self._memory.find(prompt, self._clock())
        sent_to = None if remembered is None else remembered.holders[0].worker
        for name, reason in ((bound_to, Reason.AFFINITY), (sent_to, Reason.MEMORY)):
            if name is not None and loads.get(name, bound) < bound:
                return self._desk.reserve(ask, self._fleet.workers[name], reason, None)
        name = pick(prompt.prefix_key, list(loads), loads.__getitem__)
        return self._desk.reserve(ask, self._fleet.workers[name], Reason.HASH, None)
