"""Places requests of which too little is known for a true forecast: by what was sent where, by hash, or by load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostcacher_router.ghostlock.followers import is_bearable
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.hash_ring import bound_of, pick
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.signals.ttft_forecast import best_of
from ghostcacher_router.types import Ask, Forecast, Prompt, Reason

ENOUGH = 2
"""Requests for each worker, counted over all: where there are so many, no worker has to have nothing to do."""

SPARED_TOKENS_MIN = 1024
"""To compute less again is no reason to go anywhere."""


class Fallback:
    """Places requests without an exact forecast, and counts them in ``gc_router_fallbacks_total``."""

    def __init__(self, dependencies: Dependencies, state: RoutingState, tracker: InFlightTracker) -> None:
        self._fleet, self._metrics = dependencies.fleet, dependencies.metrics
        self._clock = dependencies.clock
        self._queues, self._history = state.queues, state.history
        self._tracker = tracker

    def least_loaded(self, ask: Ask, best: Forecast, *, only: bool) -> PlacedRequest:
        """Place a request that has no prompt, where the queue is shortest.

        best: the least forecast of one token. only: whether there was no choice.
        """
        if ask.step is None:
            self._metrics.fallbacks.inc("prompt")
        reason = Reason.ONLY if only else Reason.LEAST_LOAD
        return self._tracker.reserve(ask, self._fleet.workers[best.worker], reason, None)

    def without_reports(self, prompt: Prompt, forecasts: Sequence[Forecast]) -> tuple[Forecast, Reason]:
        """Return the best forecast for a prompt while no worker reports its load, and why it is.

        Their times are guesses, but they tell workers apart: by what each has been sent, and has not answered. Among
        equal ones consistent hashing decides, so that routers that know nothing of each other agree.
        """
        self._metrics.fallbacks.inc("load")
        if len(forecasts) == 1:
            return forecasts[0], Reason.ONLY
        now = self._clock()
        loads = {found.worker: self._queues.occupied(found.worker, now) for found in forecasts}
        owners = self._owners(prompt, forecasts, loads, now)
        chosen, equal = self._of_best(prompt, owners or forecasts, loads)
        idle = [found for found in forecasts if not loads[found.worker]]
        if idle and not owners and loads[chosen.worker] and sum(loads.values()) + 1 >= ENOUGH * len(loads):
            # It computes what others have, once; from then on it takes its share.
            chosen, equal = self._of_best(prompt, idle, loads)
        if chosen.local_tokens:
            return chosen, Reason.MEMORY
        return chosen, Reason.HASH if equal > 1 else Reason.LEAST_LOAD

    def _of_best(self, prompt: Prompt, forecasts: Sequence[Forecast], loads: Mapping[str, int]) -> tuple[Forecast, int]:
        """Return the best forecast, and how many are as good."""
        equal = {found.worker: found for found in best_of(forecasts)}
        return equal[pick(prompt.prefix_key, list(equal), loads.__getitem__)], len(equal)

    def _owners(
        self, prompt: Prompt, forecasts: Sequence[Forecast], loads: Mapping[str, int], now: float
    ) -> list[Forecast]:
        """Return the workers that are just computing much which others would compute again, if that is bearable.

        It is what ghost locks are where workers report: a burst of requests on one new document computes it once, as
        far as its worker is not full.
        """
        match = self._history.find(prompt, now)
        computing = () if match is None else {sent.worker for sent in match.holders if now < sent.computed_at}
        if not computing:
            return []
        best, bound = min(forecasts, key=lambda found: found.total_ms), bound_of(list(loads.values()))
        return [
            found
            for found in forecasts
            if found.worker in computing
            and loads[found.worker] < bound
            and best.computed_tokens - found.computed_tokens >= SPARED_TOKENS_MIN
            and is_bearable(found, best)
        ]
