"""Places requests of which too little is known for a true forecast: by what was sent where, by hash, or by load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_router.ghostlock.followers import is_bearable
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.hash_ring import bound_of, pick
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.signals.queue_columns import ListedQueues
from ghostcacher_router.signals.ranking import Ranking
from ghostcacher_router.signals.ttft_forecast import tie_limit
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
        self._history = state.history
        self._tracker = tracker

    def least_loaded(self, ask: Ask, best: Forecast, *, only: bool) -> PlacedRequest:
        """Place a request that has no prompt, where the queue is shortest.

        best: the least forecast of one token. only: whether there was no choice.
        """
        if ask.step is None:
            self._metrics.fallbacks.inc("prompt")
        reason = Reason.ONLY if only else Reason.LEAST_LOAD
        return self._tracker.reserve(ask, self._fleet.workers[best.worker], reason, None)

    def without_reports(self, prompt: Prompt, ranking: Ranking, listed: ListedQueues) -> tuple[Forecast, Reason]:
        """Return the best forecast for a prompt while no worker reports its load, and why it is.

        Their times are guesses, but they tell workers apart: by what each has been sent, and has not answered. Among
        equal ones consistent hashing decides, so that routers that know nothing of each other agree.

        ranking: of the workers, in the order of the list. listed: their queues, which were just estimated.
        """
        self._metrics.fallbacks.inc("load")
        names = list(listed.places)
        if len(names) == 1:
            return ranking.forecast_at(0), Reason.ONLY
        loads = [len(queue.reservations) + len(queue.failed) for queue in listed.queues]
        choice = _Choice(prompt.prefix_key, names, ranking.totals(), loads)
        now, total_ms = self._clock(), choice.total_ms
        least = total_ms.index(min(total_ms))
        best = ranking.forecast_at(least)
        owners = self._owners(prompt, ranking, choice, best, now)
        chosen, equal = choice.best_among(owners or range(len(names)))
        if loads[chosen] and not owners and sum(loads) + 1 >= ENOUGH * len(loads):
            idle = [place for place, load in enumerate(loads) if not load]
            if idle:
                # It computes what others have, once; from then on it takes its share.
                chosen, equal = choice.best_among(idle)
        found = best if chosen == least else ranking.forecast_at(chosen)
        if found.local_tokens:
            return found, Reason.MEMORY
        return found, Reason.HASH if equal > 1 else Reason.LEAST_LOAD

    def _owners(self, prompt: Prompt, ranking: Ranking, choice: _Choice, best: Forecast, now: float) -> list[int]:
        """Return the workers that are just computing much which others would compute again, if that is bearable.

        It is what ghost locks are where workers report: a burst of requests on one new document computes it once, as
        far as its worker is not full. best: the least forecast.
        """
        if best.computed_tokens < SPARED_TOKENS_MIN:
            return []
        match = self._history.find(prompt, now)
        computing = () if match is None else {sent.worker for sent in match.holders if now < sent.computed_at}
        if not computing:
            return []
        loads = choice.loads
        bound = bound_of(loads)
        owners = []
        for place, name in enumerate(choice.names):
            if name in computing and loads[place] < bound:
                found = ranking.forecast_at(place)
                if best.computed_tokens - found.computed_tokens >= SPARED_TOKENS_MIN and is_bearable(found, best):
                    owners.append(place)
        return owners


class _Choice(NamedTuple):
    """The workers that there are to choose from, for one prompt."""

    prefix_key: bytes
    names: Sequence[str]
    total_ms: Sequence[float]
    """Of each one's forecast."""
    loads: Sequence[int]
    """Places that are taken at each: by requests in flight, and by those that failed of late."""

    def best_among(self, places: Sequence[int]) -> tuple[int, int]:
        """Return the best of some workers, and how many are as good. places: theirs, at least one."""
        total_ms = self.total_ms
        limit = tie_limit(min([total_ms[place] for place in places]))
        equal = [place for place in places if total_ms[place] <= limit]
        if len(equal) == 1:
            return equal[0], 1
        by_name = {self.names[place]: place for place in equal}
        load_of = {name: self.loads[place] for name, place in by_name.items()}
        chosen = pick(self.prefix_key, list(by_name), load_of.__getitem__)
        return by_name[chosen], len(equal)
