"""Assesses a request's candidates: what each has of the prompt, what is ahead there, and what TTFT follows from both.

These are the first four steps of a decision (see picker.py). Nothing here chooses, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

from ghostcacher_connector.core.types import Tier
from ghostcacher_router.placement.agreed_worker import with_agreed_worker
from ghostcacher_router.placement.candidates import CandidateFinder, Candidates
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.ports import WorkerPort
from ghostcacher_router.signals.prefix_locations import WAIT_S
from ghostcacher_router.signals.prefix_match import BYTES_PER_TOKEN_GUESS, LookupNeeded, PrefixMatch, PrefixMatcher
from ghostcacher_router.signals.ttft_forecast import NO_MATCH, forecast
from ghostcacher_router.signals.worker_queue import QueueEstimate
from ghostcacher_router.signals.working_sets import Displacement, Room, displacements, may_crowd
from ghostcacher_router.types import Ask, Forecast, Prompt

_is_reported = attrgetter("reported")


class Assessment(NamedTuple):
    """What is known of a request's candidates at one moment."""

    candidates: Candidates
    """The workers that may take the request, and their namespaces."""
    match: PrefixMatch | None
    """None when there is no prompt, or when no candidate shares its blocks."""
    estimates: list[QueueEstimate]
    """The queue of each candidate, in their order. Getting the request's LoRA adapter ready is part of it."""
    now: float
    """Loop clock, s."""
    displacement: Mapping[str, Displacement]
    """What the prompt costs others in the cache of each worker, by name."""

    @property
    def is_reported(self) -> bool:
        """Whether any of the queues is known from a fresh load report."""
        return any(map(_is_reported, self.estimates))

    def forecasts(self) -> list[Forecast]:
        """Return the TTFT forecast of each candidate, in their order; without a match, of one token."""
        if self.match is None:
            return [forecast(found.engine, found.queue_ms, 1, NO_MATCH) for found in self.estimates]
        tokens, match_at, displacement = self.match.tokens, self.match.at, self.displacement
        return [
            forecast(
                found.engine, found.queue_ms, tokens, match_at(worker), found.prefilling, displacement[worker.name]
            )
            for worker, found in zip(self.candidates.workers, self.estimates, strict=True)
        ]


class Assessor:
    """Assesses requests. On the event loop only."""

    def __init__(self, dependencies: Dependencies, state: RoutingState) -> None:
        self._prefix_map, self._clock = dependencies.prefix_map, dependencies.clock
        self._queues, self._locations, self._locks = state.queues, state.locations, state.locks
        self._sent_caches, self._regret, self._several = state.sent_caches, state.regret, state.several
        self._adapters = state.adapters
        self._finder = CandidateFinder(dependencies.fleet, state.stored, state.queues.in_flight)
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
        names = [worker.name for worker in found.candidates.workers]
        tokens = found.match.tokens if found.match is not None else 0
        tokens = max(1, prompt.tokens or tokens or prompt.size // BYTES_PER_TOKEN_GUESS)
        held = self._sent_caches.held_bytes(prompt, names)
        if self._several():
            held = with_agreed_worker(prompt, held, names)
        local = {name: tokens * size // prompt.size for name, size in held.items()}
        return found._replace(match=PrefixMatch(prompt, tokens, local, {}, {}, False))

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
        rows = []
        for worker, estimate, cost in zip(
            candidates.workers, assessment.estimates, assessment.forecasts(), strict=True
        ):
            terms: dict[str, object] = {"endpoint": worker.endpoint.url, "load_reported": estimate.reported}
            terms["in_flight"] = self._queues.in_flight(worker.name)
            terms["adapter_ms"] = self._adapters.cost_ms(worker, candidates.adapter)
            rows.append((cost.total_ms, worker.name, cost._asdict() | terms))
        return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]

    def _match(
        self, prompt: Prompt, candidates: Candidates, now: float, *, may_look_up: bool, newer_than: float | None = None
    ) -> PrefixMatch | LookupNeeded:
        pulls = self._locations.available and not self._locks.broken
        return self._matcher.match(
            prompt, candidates.namespaces, now, pulls=pulls, may_look_up=may_look_up, newer_than=newer_than
        )

    def _assessment(self, candidates: Candidates, match: PrefixMatch | None, now: float) -> Assessment:
        estimate = self._queues.estimate
        estimates = [estimate(worker, now) for worker in candidates.workers]
        if candidates.adapter is not None:
            costs = [self._adapters.cost_ms(worker, candidates.adapter) for worker in candidates.workers]
            estimates = [found.later(ms) if ms else found for found, ms in zip(estimates, costs, strict=True)]
        # Whoever computes again what is evicted for this request delays others, too, wherever that will be.
        delayed = sum([found.prefilling for found in estimates]) / len(estimates)
        displacement = self._displacement(candidates, match, self._regret.share * (1.0 + delayed))
        return Assessment(candidates, match, estimates, now, displacement)

    def _displacement(
        self, candidates: Candidates, match: PrefixMatch | None, regret: float
    ) -> Mapping[str, Displacement]:
        """Return what the prompt costs others in the cache of each worker.

        regret: what each token that is brought into a cache costs on average, as a multiple of computing a token.
        """
        rooms = [
            # Of plain engines the homes are not known by the hashes of their blocks.
            Room(one.name, capacity_tokens(one) if one.load else 0, self._regret.working_set_tokens(one.name), 0.0)
            for one in candidates.workers
        ]
        tokens = 0 if match is None else match.tokens
        if match is None or not may_crowd(rooms, tokens):
            return dict.fromkeys([room.worker for room in rooms], Displacement(regret))
        own: dict[str, float] = {}
        for namespace in candidates.namespaces:
            if namespace is not None:
                known = self._prefix_map.known(namespace, match.prompt)
                own |= self._regret.home_tokens([boundary.block_hash for boundary in known])
        rooms = [room._replace(own=own.get(room.worker, 0.0)) for room in rooms]
        return displacements(rooms, tokens, regret)


def capacity_tokens(worker: WorkerPort) -> int:
    """Return how many tokens a worker's caches hold, its engine's and its host tier's; 0 when it does not say."""
    if worker.load is None:
        return worker.cache_tokens or 0
    load = worker.load.load
    host_blocks = sum([tier.blocks_max for tier in load.tiers if tier.tier is Tier.HOST])
    return (load.kv_blocks_total + host_blocks) * load.block_tokens
