"""Assesses a request's candidates: what each has of the prompt, what is ahead there, and what TTFT follows from both.

These are the first four steps of a decision (see picker.py). Nothing here chooses, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np

from ghostcacher_router.placement.agreed_worker import with_agreed_worker
from ghostcacher_router.placement.candidates import CandidateFinder, Candidates
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.prefix_locations import WAIT_S
from ghostcacher_router.signals.prefix_match import (
    BYTES_PER_TOKEN_GUESS,
    NOBODY,
    LookupNeeded,
    PrefixMatch,
    PrefixMatcher,
)
from ghostcacher_router.signals.queue_columns import QueueList, Queues, QueueView
from ghostcacher_router.signals.ranking import ColumnRanking, ListRanking, Ranking
from ghostcacher_router.signals.ttft_forecast import (
    NO_MATCH,
    Column,
    MatchColumns,
    WorkerMatch,
    forecast,
    totals,
    totals_of_few,
)
from ghostcacher_router.signals.worker_queue import QueueEstimate
from ghostcacher_router.signals.working_sets import (
    FREE,
    Displacement,
    Displacements,
    Room,
    displacements,
    is_large,
    may_crowd,
    older_copies,
)
from ghostcacher_router.types import Ask, Forecast, Prompt

FREE_EVERYWHERE = Displacements(FREE)


class Assessment:
    """What is known of a request's candidates at one moment. To be used before anything else happens."""

    __slots__ = ("adapter_ms", "candidates", "displacement", "match", "now", "queues")

    def __init__(
        self,
        candidates: Candidates,
        match: PrefixMatch | None,
        queues: Queues,
        adapter_ms: Sequence[float] | None,
        now: float,
        displacement: Displacements,
    ) -> None:
        """Put together what is known.

        candidates: the workers that may take the request, and their namespaces.
        match: None when there is no prompt, or when no candidate shares its blocks.
        queues: the queue of each candidate, in their order.
        adapter_ms: how long each candidate takes to get the request's LoRA adapter ready; None where it needs none.
        now: loop clock, s.
        displacement: what the prompt costs others in the cache of each worker, by name.
        """
        self.candidates, self.match, self.queues = candidates, match, queues
        self.adapter_ms, self.now, self.displacement = adapter_ms, now, displacement

    def estimate_at(self, place: int) -> QueueEstimate:
        """Return the queue of a candidate, given by its place. Getting the adapter ready is part of it."""
        found = self.queues.estimate_at(place)
        return found.later(self.adapter_ms[place]) if self.adapter_ms and self.adapter_ms[place] else found

    def forecast_at(self, place: int, then: WorkerMatch | None = None) -> Forecast:
        """Return the TTFT forecast of a candidate, given by its place; without a match, of one token.

        then: what it will have of the prompt, where that is not what it has now.
        """
        worker, found, match = self.candidates.workers[place], self.estimate_at(place), self.match
        if match is None:
            return forecast(found.engine, found.queue_ms, 1, NO_MATCH)
        if then is None:
            then = match.at(worker)
        displacement = self.displacement[worker.name]
        return forecast(found.engine, found.queue_ms, match.tokens, then, found.prefilling, displacement, found.link_ms)

    def find(self, name: str) -> tuple[int, WorkerPort] | None:
        """Return the place of a worker among the candidates, and itself; None when it is not one of them."""
        place = self.queues.listed.places.get(name)
        return None if place is None else (place, self.candidates.workers[place])

    def ranking(self) -> Ranking:
        """Return these forecasts to choose from, at the price of a few for hundreds of candidates."""
        queues, match, (workers, namespaces, _, _) = self.queues, self.match, self.candidates
        if isinstance(queues, QueueList):
            return self.few(queues)
        places = queues.listed.places
        if match is None:
            total_ms = totals(
                queues.engines,
                self._queue_ms(queues),
                1,
                MatchColumns(0.0, 0.0),
                delayed=0.0,
                link_ms=0.0,
                brought=0.0,
                kept=0.0,
            )
            return ColumnRanking(total_ms, workers, places, self.forecast_at)
        columns = MatchColumns(match.local_column(places), match.pullable_column(workers, namespaces))
        total_ms = self._totals(queues, match.tokens, columns)
        return ColumnRanking(total_ms, workers, places, self.forecast_at)

    def best_pull(self, namespace: str, tokens: int, ready_ms: float, without: str) -> Forecast | None:
        """Return the least forecast at workers of a namespace that can pull so many tokens in a while.

        ready_ms: until these are there. without: the worker that has them then; it is left out. None when all others
        would sooner compute a part of them.
        """
        match, queues, workers = self.match, self.queues, self.candidates.workers
        assert match is not None, "who has no prompt encounters no lock"
        pullable, best = max(match.pullable.get(namespace, 0), tokens), None
        enough = min(tokens, match.tokens - 1)
        if isinstance(queues, QueueList):
            for place, worker in enumerate(workers):
                if worker.name != without and worker.namespace == namespace:
                    found = self.forecast_at(place, WorkerMatch(match.at(worker).local, pullable, ready_ms))
                    if found.cached_tokens >= enough and (best is None or found.total_ms < best.total_ms):
                        best = found
            return best
        places = queues.listed.places
        columns = MatchColumns(match.local_column(places), float(pullable), ready_ms)
        total_ms = self._totals(queues, match.tokens, columns, match.tokens - enough)
        if self.candidates.namespaces != (namespace,):
            total_ms[[worker.namespace != namespace for worker in workers]] = np.inf
        if without in places:
            total_ms[places[without]] = np.inf
        place = int(total_ms.argmin())
        if total_ms.item(place) == np.inf:
            return None
        return self.forecast_at(place, WorkerMatch(match.at(workers[place]).local, pullable, ready_ms))

    def _queue_ms(self, queues: QueueView) -> Column:
        return queues.queue_ms + np.array(self.adapter_ms) if self.adapter_ms else queues.queue_ms

    def _totals(self, queues: QueueView, tokens: int, match: MatchColumns, computed_max: int | None = None) -> Column:
        """Return the totals of the forecasts, with such a match: see `totals`."""
        usual, others = self.displacement.usual, self.displacement
        brought: Column | float = usual.brought
        kept: Column | float = usual.kept
        if others:
            brought = np.full(len(queues.queue_ms), usual.brought)
            kept = np.full(len(queues.queue_ms), usual.kept)
            for name, cost in others.items():
                if (place := queues.listed.places.get(name)) is not None:
                    brought[place], kept[place] = cost
        return totals(
            queues.engines,
            self._queue_ms(queues),
            tokens,
            match,
            delayed=queues.prefilling,
            link_ms=queues.link_ms,
            brought=brought,
            kept=kept,
            computed_max=computed_max,
        )

    def few(self, queues: QueueList) -> ListRanking:
        """Return the same for a few candidates. queues: theirs."""
        (workers, namespaces, _, _), match, places = self.candidates, self.match, queues.listed.places
        estimates = queues.estimates
        if self.adapter_ms:
            estimates = [self.estimate_at(place) for place in range(len(workers))]
        if match is None:
            # Nobody waits for one token, and it takes no room.
            alone = [QueueEstimate(found.engine, found.queue_ms, found.reported) for found in estimates]
            total_ms = totals_of_few(alone, 1, repeat(0), repeat(0), FREE)
        else:
            here, local = self.displacement, match.local_list(places)
            others = [here[worker.name] for worker in workers] if here else None
            total_ms = totals_of_few(
                estimates, match.tokens, local, match.pullable_list(workers, namespaces), here.usual, others
            )
        return ListRanking(total_ms, workers, places, self.forecast_at)


class Assessor:
    """Assesses requests. On the event loop only."""

    def __init__(self, dependencies: Dependencies, state: RoutingState) -> None:
        self._prefix_map, self._clock = dependencies.prefix_map, dependencies.clock
        self._queues, self._locations, self._locks = state.queues, state.locations, state.locks
        self._sent_caches, self._regret, self._several = state.sent_caches, state.regret, state.several
        self._adapters, self._history = state.adapters, state.history
        self._finder = CandidateFinder(dependencies.fleet, state.stored, state.queues.in_flight)
        dependencies.fleet.when_reported(lambda workers: state.queues.take_reports(workers, dependencies.clock()))
        self._matcher = PrefixMatcher(dependencies.fleet, dependencies.prefix_map, state.locations, state.history)

    def hands_over(self, model: str | None) -> bool:
        """Say whether one worker computes the prompts of a model's requests and another one answers."""
        return self._finder.hands_over(model)

    def assess(self, ask: Ask, *, may_look_up: bool, newer_than: float | None = None) -> Assessment | LookupNeeded:
        """Return the assessment of a request. Raises NoWorker.

        may_look_up: whether LookupNeeded is an answer; otherwise what is known must do.
        newer_than: loop clock, s; what the index said before that time does not count.
        """
        candidates, prompt, now = self._finder.find(ask), ask.shape.prompt, self._clock()
        match: PrefixMatch | None = None
        if prompt is not None and candidates.shares:
            # Before the queues are estimated: where the index has to be asked, all of this is done again.
            may_look_up = may_look_up and len(candidates.workers) > 1
            found = self._match(prompt, candidates, now, may_look_up=may_look_up, newer_than=newer_than)
            if isinstance(found, LookupNeeded):
                return found
            match = found
        return self._assessment(candidates, match, now)

    def own_memory(self, prompt: Prompt, found: Assessment) -> Assessment:
        """Return an assessment by what this router itself has sent the candidates, for when no worker reports."""
        names = list(found.queues.listed.places)
        tokens = found.match.tokens if found.match is not None else 0
        tokens = max(1, prompt.tokens or tokens or prompt.size // BYTES_PER_TOKEN_GUESS)
        held = self._sent_caches.held_bytes(prompt, names)
        if self._several():
            held = with_agreed_worker(prompt, held, names)
        local = {name: tokens * size // prompt.size for name, size in held.items()}
        match = PrefixMatch(prompt, tokens, NOBODY, local, {}, {}, False)
        return Assessment(found.candidates, match, found.queues, found.adapter_ms, found.now, found.displacement)

    async def look_up(self, needed: LookupNeeded, timeout_s: float) -> None:
        """Ask the index what an assessment lacks, and wait for that at most `timeout_s`."""
        known = self._prefix_map.known(needed.namespace, needed.prompt)
        if known:
            await self._locations.fetch(needed.namespace, known, timeout_s)

    async def explain(self, ask: Ask) -> list[dict[str, object]]:
        """Return what each candidate would cost and why, best first. Raises NoWorker."""
        candidates, prompt = self._finder.find(ask), ask.shape.prompt
        match = None if prompt is None else self._match(prompt, candidates, self._clock(), may_look_up=True)
        if isinstance(match, LookupNeeded):
            await self.look_up(match, WAIT_S)
            match = self._match(match.prompt, candidates, self._clock(), may_look_up=False)
        assert not isinstance(match, LookupNeeded)
        assessment = self._assessment(candidates, match, self._clock())
        rows, queues = [], assessment.queues
        priced = assessment.match is not None and queues.reported
        prices = queues.share_prices(assessment.now) if priced else None
        for place, worker in enumerate(candidates.workers):
            cost, reported = assessment.forecast_at(place), assessment.estimate_at(place).reported
            if prices is not None:
                price_ms = float(prices[place])
                cost = cost._replace(total_ms=cost.total_ms + price_ms, others_ms=cost.others_ms + price_ms)
            terms: dict[str, object] = {"endpoint": worker.endpoint.url, "load_reported": reported}
            terms["in_flight"] = self._queues.in_flight(worker.name)
            terms["adapter_ms"] = self._adapters.cost_ms(worker, candidates.adapter)
            rows.append((cost.total_ms, worker.name, cost._asdict() | terms))
        return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]

    def _match(
        self, prompt: Prompt, candidates: Candidates, now: float, *, may_look_up: bool, newer_than: float | None = None
    ) -> PrefixMatch | LookupNeeded:
        pulls = self._locations.available and not self._locks.broken
        workers, namespaces = candidates.workers, candidates.namespaces
        return self._matcher.match(
            prompt, workers, namespaces, now, pulls=pulls, may_look_up=may_look_up, newer_than=newer_than
        )

    def _assessment(self, candidates: Candidates, match: PrefixMatch | None, now: float) -> Assessment:
        queues = self._queues.at(candidates.workers, now)
        costs: list[float] | None = None
        if candidates.adapter is not None:
            costs = [self._adapters.cost_ms(worker, candidates.adapter) for worker in candidates.workers]
        displacement = FREE_EVERYWHERE if match is None else self._displacement(candidates, match, queues)
        return Assessment(candidates, match, queues, costs, now, displacement)

    def _displacement(self, candidates: Candidates, match: PrefixMatch, queues: Queues) -> Displacements:
        """Return what the prompt costs others in the cache of each worker."""
        # Whoever computes again what is evicted for this request delays others, too, wherever that will be.
        # What each token that is brought into a cache costs on average, as a multiple of computing a token.
        price, tokens = self._regret.price, match.tokens
        regret = price * (1.0 + queues.delayed) if price else 0.0
        rooms: list[Room] = []
        if is_large(tokens, queues.capacity_min):
            rooms = [
                Room(worker.name, capacity, self._regret.working_set_tokens(worker.name), 0.0)
                for worker, capacity in zip(candidates.workers, queues.capacities(), strict=True)
            ]
        if not rooms or not may_crowd(rooms, tokens):
            # Without regret nobody may know what the caches hold either.
            return Displacements(Displacement(regret), self._copies(match, regret)) if regret else FREE_EVERYWHERE
        own: dict[str, float] = {}
        for namespace in candidates.namespaces:
            if namespace is not None:
                known = self._prefix_map.known(namespace, match.prompt)
                own |= self._regret.home_tokens([boundary.block_hash for boundary in known])
        rooms = [room._replace(own=own.get(room.worker, 0.0)) for room in rooms]
        return displacements(rooms, tokens, regret)

    def _copies(self, match: PrefixMatch, regret: float) -> Mapping[str, Displacement]:
        """Return what a prompt costs others at workers with a copy of it that was used before another one was."""
        has, sent = match.held.tokens, match.sent
        found = self._history.find(match.prompt, self._clock()) if len(has) + len(sent) > 1 else None
        if found is None:
            return {}
        used = {one.worker: one.used for one in reversed(found.holders) if one.worker in sent or one.worker in has}
        return older_copies(used, regret, self._regret.held)
