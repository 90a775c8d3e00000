"""Ways to choose an engine for a request: the project's routers, and simple policies to compare them with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import takewhile
from random import Random
from typing import NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.types import NoWorker, Outcome, Turn
from ghostcacher_simulator.load.requests import Request
from ghostcacher_simulator.replay.routers import SimulatedRouter
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import SimulatedWorker

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


Workers = Sequence[SimulatedWorker]
"""The workers of a fleet; one that lives anew takes its place in the same sequence."""


class Policy(Protocol):
    """A way to choose a worker. One object serves one run."""

    async def place(self, request: Request, exclude: frozenset[str]) -> Choice:
        """Choose a worker that is not excluded. Raises NoWorker where there is none."""

    def probe_failed(self, name: str) -> None:
        """Learn that a worker answers no probe."""

    def came_back(self, worker: SimulatedWorker) -> None:
        """Learn that a worker lives anew."""

    def drained(self, name: str) -> None:
        """Learn that a worker is to get no requests, or is again."""


class Entrant(NamedTuple):
    """A policy to measure."""

    key: str
    """What names it on a command line."""
    name: str
    """What it is, for people."""
    make: Callable[[Workers, Stores | None], Policy]
    """Returns the policy, for one run. Without stores the workers are plain."""
    reports: bool = True
    """Whether workers have connectors."""
    pulls: bool = True
    """Whether they pull from each other."""
    own: bool = False
    """Whether it is the project's."""
    metrics: bool = True
    """Whether workers say in their metrics how much their caches hold."""
    weak: bool = False
    """Whether it is known to be bad, and shown for that."""


class Simple:
    """Base of policies that look at the workers themselves, and know at once who is dead."""

    def __init__(self, workers: Workers, stores: Stores | None) -> None:  # noqa: ARG002 - some policies want them
        self.workers = workers

    def living(self, exclude: frozenset[str]) -> list[SimulatedWorker]:
        """Return the workers that can be chosen, in order. Raises NoWorker where there is none."""
        found = [worker for worker in self.workers if worker.takes_requests and worker.name not in exclude]
        if not found:
            raise NoWorker(503, "no worker is there", kind="no_worker")
        return found

    def probe_failed(self, name: str) -> None: ...

    def came_back(self, worker: SimulatedWorker) -> None: ...

    def drained(self, name: str) -> None: ...


class RoundRobin(Simple):
    """One after the other."""

    _count = -1

    async def place(self, request: Request, exclude: frozenset[str]) -> Choice:  # noqa: ARG002 - whatever it is
        self._count += 1
        living = self.living(exclude)
        return Chosen(living[self._count % len(living)].name)


class ConsistentHashing(Simple):
    """By the conversation, where a request says to which one it belongs, else by the beginning of the prompt."""

    async def place(self, request: Request, exclude: frozenset[str]) -> Choice:
        key = (request.session or request.segments[0]).encode()
        living = self.living(exclude)
        return Chosen(max(living, key=lambda worker: xxh3_64_intdigest(key + worker.name.encode())).name)


class LeastCost(Simple):
    """Chooses the worker with the least of some cost; among equals at random."""

    def __init__(self, workers: Workers, stores: Stores | None) -> None:
        super().__init__(workers, stores)
        self._rng = Random(3)  # noqa: S311 - no secret

    async def place(self, request: Request, exclude: frozenset[str]) -> Choice:
        return Chosen(self.cheapest(request, exclude).name)

    def cheapest(self, request: Request, exclude: frozenset[str]) -> SimulatedWorker:
        """Return the worker to choose."""
        return min(self.living(exclude), key=lambda worker: (self.cost(worker, request), self._rng.random()))

    def cost(self, worker: SimulatedWorker, request: Request) -> float:
        """Return what the request would cost at a worker, in any unit."""
        raise NotImplementedError


class PrefixAndLoad(LeastCost):
    """Tokens to compute there, and those that are waiting: exactly known, without delay."""

    def cost(self, worker: SimulatedWorker, request: Request) -> float:
        held = worker.pool.match(request.prompt.blocks) * request.block_tokens
        return request.prompt.tokens - held + worker.uncomputed_tokens()


class SentPrefixAndLoad(LeastCost):
    """The same, from what the router has itself sent to each worker: nothing is ever evicted in this view."""

    def __init__(self, workers: Workers, stores: Stores | None) -> None:
        super().__init__(workers, stores)
        self._sent: dict[str, set[BlockHash]] = {worker.name: set() for worker in workers}
        self._outstanding = dict.fromkeys(self._sent, 0)

    async def place(self, request: Request, exclude: frozenset[str]) -> Choice:
        name = self.cheapest(request, exclude).name
        tokens = self._unsent(name, request)
        self._outstanding[name] += tokens
        self._sent[name].update(request.prompt.blocks)

        def computed() -> None:
            self._outstanding[name] -= tokens

        return Chosen(name, computed)

    def cost(self, worker: SimulatedWorker, request: Request) -> float:
        return self._unsent(worker.name, request) + self._outstanding[worker.name]

    def _unsent(self, name: str, request: Request) -> int:
        held = sum(1 for _ in takewhile(self._sent[name].__contains__, request.prompt.blocks))
        return request.prompt.tokens - held * request.block_tokens


class GreedyOracle(LeastCost):
    """The least time to first token of this request, from exact knowledge of every queue and cache."""

    def cost(self, worker: SimulatedWorker, request: Request) -> float:
        rate, prompt, block_tokens = worker.profile.prefill_tokens_per_s, request.prompt, request.block_tokens
        queue_s = worker.uncomputed_tokens() / rate
        local = worker.pool.match(prompt.blocks)
        missing = prompt.tokens - local * block_tokens
        compute_s = missing / rate
        held = max(other.pool.match(prompt.blocks) for other in self.workers)
        if held > local:
            pull_s = max(0.0, worker.pull_s(held - local) - queue_s)
            compute_s = min(compute_s, pull_s + (prompt.tokens - held * block_tokens) / rate)
        fits = worker.slots_of(prompt) <= worker.pool.slot_count - worker.pool.referenced
        decode_s = worker.requests * worker.batching.decode_s * (1 + missing / worker.batching.step_tokens)
        return queue_s + compute_s + (0.0 if fits else FULL_S) + decode_s + RUNNING_S * worker.requests


class GhostCacher:
    """Routers of the project, which get the requests in turns."""

    def __init__(
        self, workers: Workers, stores: Stores | None, *, routers: int = 1, flow: FlowSettings | None = None
    ) -> None:
        """flow: flow control of each of them; None: there is none."""
        self._workers, self._stores, self.flow = workers, stores, flow
        self.routers = [SimulatedRouter(f"r{number}", workers, stores, routers, flow) for number in range(routers)]
        self.leaving: list[SimulatedRouter] = []
        """Those that get no requests any more, and have some."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = -1
        self._restarts = 0

    async def place(self, request: Request, exclude: frozenset[str], turn: Turn | None = None) -> Choice:
        """Choose a worker. turn: how far the request has come in waiting for it, over all its attempts."""
        self._count += 1
        return await self.routers[self._count % len(self.routers)].place(request, exclude, turn)

    def restart(self, number: int) -> None:
        """Put a new router in the place of one, which ends what it has."""
        self._restarts += 1
        name = f"r{number}.{self._restarts}"
        old, new = (
            self.routers[number],
            SimulatedRouter(name, self._workers, self._stores, len(self.routers), self.flow),
        )
        self.routers[number] = new
        self.leaving.append(old)
        task = asyncio.ensure_future(self._leave(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave(self, router: SimulatedRouter) -> None:
        await router.leave()
        self.leaving.remove(router)

    def reported(self) -> None:
        """Learn that workers have reported their load."""
        for router in (*self.routers, *self.leaving):
            router.fleet.reported()

    def probe_failed(self, name: str) -> None:
        for router in (*self.routers, *self.leaving):
            router.fleet.probe_failed(name)

    def came_back(self, worker: SimulatedWorker) -> None:
        for router in (*self.routers, *self.leaving):
            router.fleet.came_back(worker)

    def drained(self, name: str) -> None:
        for router in (*self.routers, *self.leaving):
            router.fleet.drained(name)


def entrants(routers: int, flow: FlowSettings | None = None) -> list[Entrant]:
    """Return all policies. routers: so many share the work in one of them. flow: flow control of the project's own."""

    def one(workers: Workers, stores: Stores | None) -> Policy:
        return GhostCacher(workers, stores, flow=flow)

    def several(workers: Workers, stores: Stores | None) -> Policy:
        return GhostCacher(workers, stores, routers=routers, flow=flow)

    shared = f"GhostCacher, {routers} routers"
    return [
        Entrant("round-robin", "round robin", RoundRobin, reports=False),
        Entrant("round-robin-pulls", "round robin, engines pull", RoundRobin),
        Entrant("hashing", "consistent hashing", ConsistentHashing, reports=False),
        Entrant("sent-prefix", "longest sent prefix + load", SentPrefixAndLoad, reports=False),
        Entrant("prefix", "longest prefix + load", PrefixAndLoad),
        Entrant("oracle", "greedy oracle", GreedyOracle),
        Entrant("ghostcacher", "GhostCacher", one, own=True),
        Entrant("ghostcacher-routers", shared, several, own=True),
        Entrant("plain", "GhostCacher, plain engines", one, reports=False, own=True),
        Entrant("plain-routers", f"{shared}, plain engines", several, reports=False, own=True, weak=True),
        Entrant(
            "plain-blind",
            "GhostCacher, plain engines, no metrics",
            one,
            reports=False,
            own=True,
            metrics=False,
        ),
    ]
