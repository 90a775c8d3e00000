"""Ways to choose an engine for a request: the project's routers, and simple policies to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from random import Random
from typing import NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from benchmarks.replay.fleet import ReplayEngine, ReplayRouter, Stores
from benchmarks.replay.requests import BLOCK_TOKENS, Request
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_router.types import Outcome

FULL_S = 5.0
"""What the oracle takes waiting for room in an engine's KV pool to cost."""
RUNNING_S = 1e-6
"""Among equals it takes the engine with fewer requests."""


class Choice(Protocol):
    """A request's engine, told how the request goes on."""

    @property
    def worker(self) -> str: ...
    def sent(self) -> None: ...
    def first_byte(self) -> None: ...
    def ended(self, outcome: Outcome, status: int | None) -> None: ...


class Chosen:
    """A choice of a policy that learns nothing, or only when a prompt is computed. worker: the engine's name."""

    def __init__(self, worker: str, computed: Callable[[], None] = lambda: None) -> None:
        self.worker = worker
        self._computed = computed

    def sent(self) -> None: ...

    def first_byte(self) -> None:
        self._computed()

    def ended(self, outcome: Outcome, status: int | None) -> None: ...


class Policy(Protocol):
    async def place(self, request: Request) -> Choice: ...


class Entrant(NamedTuple):
    """A policy to measure.

    reports: whether engines have connectors. pulls: whether they pull from each other. own: it is the project's.
    metrics: whether engines say in their metrics how much their caches hold.
    weak: what is known to be bad, and shown for that; the check leaves it out.
    """

    name: str
    make: Callable[[Sequence[ReplayEngine], Stores | None], Policy]
    reports: bool = True
    pulls: bool = True
    own: bool = False
    metrics: bool = True
    weak: bool = False


class RoundRobin:
    def __init__(self, engines: Sequence[ReplayEngine], _: Stores | None) -> None:
        self._engines, self._count = engines, -1

    async def place(self, request: Request) -> Choice:  # noqa: ARG002 - whatever it is
        self._count += 1
        return Chosen(self._engines[self._count % len(self._engines)].name)


class ConsistentHashing:
    """By the beginning of the prompt."""

    def __init__(self, engines: Sequence[ReplayEngine], _: Stores | None) -> None:
        self._engines = engines

    async def place(self, request: Request) -> Choice:
        key = request.segments[0].encode()
        return Chosen(max(self._engines, key=lambda engine: xxh3_64_intdigest(key + engine.name.encode())).name)


class LeastCost:
    """Chooses the engine with the least of some cost; among equals at random."""

    def __init__(self, engines: Sequence[ReplayEngine], _: Stores | None) -> None:
        self.engines, self._rng = engines, Random(3)

    async def place(self, request: Request) -> Choice:
        return Chosen(self.cheapest(request).name)

    def cheapest(self, request: Request) -> ReplayEngine:
        return min(self.engines, key=lambda engine: (self.cost(engine, request), self._rng.random()))

    def cost(self, engine: ReplayEngine, request: Request) -> float:
        raise NotImplementedError


class PrefixAndLoad(LeastCost):
    """Tokens to compute there, and those that are waiting: exactly known, without delay."""

    def cost(self, engine: ReplayEngine, request: Request) -> float:
        held = engine.pool.match(request.prompt.blocks) * BLOCK_TOKENS
        return request.prompt.tokens - held + engine.uncomputed_tokens()


class SentPrefixAndLoad(LeastCost):
    """The same, from what the router has itself sent to each engine: nothing is ever evicted in this view."""

    def __init__(self, engines: Sequence[ReplayEngine], stores: Stores | None) -> None:
        super().__init__(engines, stores)
        self._sent: dict[str, set[BlockHash]] = {engine.name: set() for engine in engines}
        self._outstanding = dict.fromkeys(self._sent, 0)

    async def place(self, request: Request) -> Choice:
        name = self.cheapest(request).name
        tokens = self._unsent(name, request)
        self._outstanding[name] += tokens
        self._sent[name].update(request.prompt.blocks)

        def computed() -> None:
            self._outstanding[name] -= tokens

        return Chosen(name, computed)

    def cost(self, engine: ReplayEngine, request: Request) -> float:
        return self._unsent(engine.name, request) + self._outstanding[engine.name]

    def _unsent(self, name: str, request: Request) -> int:
        held = sum(1 for _ in takewhile(self._sent[name].__contains__, request.prompt.blocks))
        return request.prompt.tokens - held * BLOCK_TOKENS


class GreedyOracle(LeastCost):
    """The least time to first token of this request, from exact knowledge of every queue and cache."""

    def cost(self, engine: ReplayEngine, request: Request) -> float:
        rate, prompt = engine.profile.prefill_tokens_per_s, request.prompt
        queue_s = engine.uncomputed_tokens() / rate
        local = engine.pool.match(prompt.blocks)
        missing = prompt.tokens - local * BLOCK_TOKENS
        compute_s = missing / rate
        held = max(other.pool.match(prompt.blocks) for other in self.engines)
        if held > local:
            pull_s = max(0.0, engine.pull_s(held - local) - queue_s)
            compute_s = min(compute_s, pull_s + (prompt.tokens - held * BLOCK_TOKENS) / rate)
        fits = engine.slots_of(prompt) <= engine.pool.slot_count - engine.pool.referenced
        decode_s = engine.requests * engine.batching.decode_s * (1 + missing / engine.batching.step_tokens)
        return queue_s + compute_s + (0.0 if fits else FULL_S) + decode_s + RUNNING_S * engine.requests


class GhostCacher:
    """Routers of the project, which get the requests in turns."""

    def __init__(self, engines: Sequence[ReplayEngine], stores: Stores | None, *, routers: int = 1) -> None:
        self._routers = [ReplayRouter(f"r{number}", engines, stores, routers) for number in range(routers)]
        self._count = -1

    async def place(self, request: Request) -> Choice:
        self._count += 1
        return await self._routers[self._count % len(self._routers)].place(request)


def entrants(routers: int) -> list[Entrant]:
    """Return all policies. routers: so many share the work in one of them."""

    def several(engines: Sequence[ReplayEngine], stores: Stores | None) -> Policy:
        return GhostCacher(engines, stores, routers=routers)

    return [
        Entrant("round robin", RoundRobin, reports=False),
        Entrant("round robin, engines pull", RoundRobin),
        Entrant("consistent hashing", ConsistentHashing, reports=False),
        Entrant("longest sent prefix + load", SentPrefixAndLoad, reports=False),
        Entrant("longest prefix + load", PrefixAndLoad),
        Entrant("greedy oracle", GreedyOracle),
        Entrant("GhostCacher", GhostCacher, own=True),
        Entrant(f"GhostCacher, {routers} routers", several, own=True),
        Entrant("GhostCacher, plain engines", GhostCacher, reports=False, own=True),
        Entrant(f"GhostCacher, {routers} routers, plain engines", several, reports=False, own=True, weak=True),
        Entrant("GhostCacher, plain engines, no metrics", GhostCacher, reports=False, own=True, metrics=False),
    ]
