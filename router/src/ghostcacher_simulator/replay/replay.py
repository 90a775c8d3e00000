"""One run: a load through a policy at a fleet, in virtual time. Alike whenever it is run.

    arrival -> policy chooses -> worker: queue, prefill -> first token -> decode -> answered
                    ^                 | died
                    '---- another ----'      died while answering: the client has a part of an answer, "broken"

A request ends exactly once, in one `Ending`. Between the arrival and the first token lie all attempts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_router.types import NoWorker, Outcome, Turn
from ghostcacher_simulator.engine import Prefilled, Refused
from ghostcacher_simulator.load.requests import Load, Request
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.processor import Processor, Seat
from ghostcacher_simulator.replay.objects import Objects
from ghostcacher_simulator.replay.policies import Choice, Entrant, GhostCacher
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import REPORT_S, Pulled, SimulatedWorker
from ghostcacher_simulator.text import TOKEN_BYTES

SETTLE_S = 2.5
"""Until routers know of each other."""
REPORTS = "reports"
"""The step that tells of them."""
PROBE_S = 2.0
"""Until a worker's death is known by its probes, where no request has met it before."""
ATTEMPTS_MAX = 3
"""Of one request: the first one and the router's retries."""


class Ending(str, Enum):
    """How a request ended."""

    ANSWERED = "answered"
    """The whole answer came."""
    BROKEN = "broken"
    """Its worker died while it answered."""
    FAILED = "failed"
    """Every attempt met a worker that died before the first token."""
    UNPLACED = "unplaced"
    """No worker was there."""
    TOO_LONG = "too long"
    """Prompt and answer are larger than a worker's KV cache: an engine refuses them."""
    REFUSED = "refused"
    """The queue of its router was full, or another request took its place there: 429."""
    TIMED_OUT = "timed out"
    """It has waited for its turn for as long as anybody may: 503."""
    LATE = "late"
    """Its deadline passed before a worker had it: 504."""


FLOW_ENDINGS = {
    "queue_full": Ending.REFUSED,
    "queue_timeout": Ending.TIMED_OUT,
    "deadline_passed": Ending.LATE,
}
"""By the code of flow control's error."""


class Served(NamedTuple):
    """What became of one request. Tokens are of its prompt, but for `answer_tokens`."""

    request: Request
    ending: Ending
    worker: str | None = None
    """Where it was last; None where it was nowhere."""
    attempts: int = 0
    """How many workers it was sent to."""
    ttft_s: float | None = None
    """From its arrival to the first token; None where none came."""
    itl_s: float | None = None
    """Between two tokens of its answer, in the mean; None where there are no two."""
    local_tokens: int = 0
    """Found in the worker's own cache."""
    loaded_tokens: int = 0
    """Loaded from the worker's host tier."""
    pulled_tokens: int = 0
    """Pulled from a peer."""
    stored_tokens: int = 0
    """Read from the object tier."""
    computed_tokens: int = 0
    queued_s: float = 0.0
    """How long it waited for its turn in a router."""
    living_left: tuple[str, ...] = ()
    """Of a request that found no worker: those that lived then, were not drained and had not refused it."""


class Run(NamedTuple):
    """What became of a load."""

    entrant: Entrant
    load: Load
    fleet: FleetSpec
    served: Sequence[Served]
    """In the order in which requests ended."""
    took_s: float
    """From the first arrival to the last ending."""
    computed_tokens: int
    """Prompt tokens that all workers computed, also for answers that never came."""
    pulls: int
    """Prompts of which a part was pulled."""
    stale_blocks: int
    """Blocks that were read from a peer and had become others meanwhile: dropped, and computed."""
    stored_bytes: int = 0
    """In the object tier at the end."""

    def __repr__(self) -> str:
        return f"Run({self.entrant.key}, {self.load.name}, {len(self.served)} served, {self.took_s:.3f} s)"


class Replay:
    """A run while it goes on. On the event loop of virtual time alone."""

    def __init__(self, entrant: Entrant, load: Load, fleet: FleetSpec, *, clients: int | None = None) -> None:
        """clients: that send one request after the other, whatever the load says of times; None: as the load says."""
        self.entrant, self.load, self.fleet = entrant, load, fleet
        self._clients = clients
        self.clock = asyncio.get_running_loop().time
        self.stores = self._make_stores() if entrant.reports else None
        self._processor = None if fleet.cores is None else Processor(fleet.cores)
        self._lives: Counter[str] = Counter()
        self._gone: list[SimulatedWorker] = []
        self.workers = [self._worker(f"w{number}") for number in range(fleet.workers)]
        self.served: list[Served] = []
        self.outstanding: dict[str, Request] = {}
        """Requests that have come and not ended, by id."""
        self.observe: Callable[[str], None] = lambda _: None
        """Told of each thing that has happened. What it raises ends the run."""
        self.on_pulled: Callable[[Pulled], None] = lambda _: None
        """Told what workers have read of peers and believed. What it raises ends the run."""
        self.come = 0
        """How many requests have come."""
        # Each of them would find the same.
        refs = [ref_of(record) for record in self.stores.index.workers()] if self.stores is not None else []
        for worker in self.workers:
            worker.know(refs)
        self.policy = entrant.make(self.workers, self.stores)
        self.begun = asyncio.Event()
        """Set when the first request comes, at `began_at`."""
        self.began_at = 0.0

    async def run(self) -> Run:
        """Send all requests at their time, and return what became of them."""
        try:
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report())
                await asyncio.sleep(SETTLE_S)
                self.began_at = self.clock()
                self.begun.set()
                async with asyncio.TaskGroup() as sending:
                    if self._clients is None:
                        for request in self.load.requests:
                            await asyncio.sleep(max(0.0, self.began_at + request.arrival_s - self.clock()))
                            sending.create_task(self._send(request))
                    else:
                        left = iter(self.load.requests)
                        for _ in range(self._clients):
                            sending.create_task(self._client(left))
                took_s = self.clock() - self.began_at
                reporting.cancel()
        except BaseExceptionGroup as exc:
            raise first_of(exc) from exc
        workers = [*self.workers, *self._gone]
        return Run(
            self.entrant,
            self.load,
            self.fleet,
            self.served,
            took_s,
            sum(worker.computed_tokens for worker in workers),
            sum(worker.pull_count for worker in workers),
            sum(worker.stale_blocks for worker in workers),
            0 if self.stores is None or self.stores.objects is None else self.stores.objects.bytes,
        )

    def worker(self, name: str) -> SimulatedWorker:
        """Return the worker of a name as it is now."""
        return self.workers[self._place(name)]

    def kill(self, name: str) -> None:
        """Let a worker die, as a process does: its requests break, and its probes find nobody."""
        worker = self.worker(name)
        worker.die()
        self.observe(f"{name} died")

        def probe() -> None:
            if self.worker(name) is worker:
                self.policy.probe_failed(name)

        asyncio.get_running_loop().call_later(PROBE_S, probe)

    def revive(self, name: str) -> None:
        """Let a worker that is dead live anew, with an empty cache."""
        self._gone.append(self.worker(name))
        self._lives[name] += 1
        worker = self.workers[self._place(name)] = self._worker(name)
        for each in self.workers:
            each.meet()
        self.policy.came_back(worker)
        self.observe(f"{name} came back")

    def drain(self, name: str, draining: bool) -> None:
        """Let a worker get no requests, or take it back; one that is dead or lives anew meanwhile is not drained."""
        worker = self.worker(name)
        if not worker.dead:
            worker.drain(draining)
            self.policy.drained(name)
            self.observe(f"{name} is {'drained' if draining else 'taken back'}")

    def restart(self, number: int) -> None:
        """Put a new router that knows nothing in the place of one, which ends what it has."""
        if isinstance(self.policy, GhostCacher):
            self.policy.restart(number)
            self.observe(f"router {number} is restarted")

    def _make_stores(self) -> Stores:
        objects = self.fleet.objects and Objects(self.fleet.objects, self.fleet.worker.profile.block_bytes)
        return Stores(pulls=self.entrant.pulls, objects=objects)

    def _place(self, name: str) -> int:
        return int(name.removeprefix("w"))

    def _worker(self, name: str) -> SimulatedWorker:
        spec, metrics = self.fleet.worker, self.entrant.metrics
        worker = SimulatedWorker(name, spec, self.stores, metrics=metrics, life=self._lives[name])
        worker.on_pulled = self._was_pulled
        if self.fleet.cores is not None and self._processor is not None:
            worker.seat = Seat(self._processor, self.fleet.cores.of_workers[self._place(name)])
            worker.steps.one_by_one = True
        return worker

    def _was_pulled(self, pulled: Pulled) -> None:
        self.on_pulled(pulled)

    async def _client(self, left: Iterator[Request]) -> None:
        """Send what is left, one request after the other."""
        for request in left:
            await self._send(request._replace(arrival_s=self.clock() - self.began_at))

    async def _send(self, request: Request) -> None:
        self.come += 1
        self.outstanding[request.request_id] = request
        served = await self._serve(request)
        del self.outstanding[request.request_id]
        self.served.append(served)
        self.observe(f"{request.request_id} {served.ending.value}")

    async def _serve(self, request: Request) -> Served:
        if self.workers[0].slots_of(request.prompt) > self.fleet.worker.profile.kv_blocks:
            return Served(request, Ending.TOO_LONG)
        served = Served(request, Ending.FAILED)
        exclude: frozenset[str] = frozenset()
        turn = Turn(self.clock(), request.prompt.tokens * TOKEN_BYTES)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                choice = await self._choose(request, exclude, turn)
            except NoWorker as exc:
                return self._not_placed(exc, served._replace(queued_s=turn.queued_s), exclude)
            served = served._replace(attempts=attempt, worker=choice.worker, queued_s=turn.queued_s)
            served = await self._attempt(choice, served)
            if served.ending is not Ending.FAILED:
                return served
            exclude |= {choice.worker}
        return served

    async def _choose(self, request: Request, exclude: frozenset[str], turn: Turn) -> Choice:
        policy = self.policy
        if isinstance(policy, GhostCacher) and policy.flow is not None:
            return await policy.place(request, exclude, turn)
        return await policy.place(request, exclude)

    def _not_placed(self, exc: NoWorker, served: Served, exclude: frozenset[str]) -> Served:
        if (ending := FLOW_ENDINGS.get(exc.kind)) is not None:
            return served._replace(ending=ending)
        living = (worker.name for worker in self.workers if worker.takes_requests and worker.name not in exclude)
        return served._replace(ending=Ending.UNPLACED, living_left=tuple(living))

    async def _attempt(self, choice: Choice, served: Served) -> Served:
        """Have a request served where it was placed. FAILED: it died there before its first token."""
        request, first_at = served.request, None

        def first_token(found: Prefilled) -> None:
            nonlocal served, first_at
            first_at = self.clock()
            served = served._replace(
                ttft_s=first_at - self.began_at - request.arrival_s,
                local_tokens=found.local_tokens,
                loaded_tokens=found.loaded_tokens,
                pulled_tokens=found.pulled_tokens,
                stored_tokens=found.stored_tokens,
                computed_tokens=found.computed_tokens,
            )
            choice.first_byte()

        worker = self.worker(choice.worker)
        was_dead = worker.dead
        choice.sent()
        try:
            await worker.serve(request, first_token)
        except Refused:
            if first_at is not None:
                choice.ended(Outcome.FAILED, 200)
                return served._replace(ending=Ending.BROKEN)
            choice.ended(Outcome.REFUSED if was_dead else Outcome.BROKE, None)
            return served
        choice.ended(Outcome.DONE, 200)
        later_tokens = request.prompt.answer_tokens - 1
        itl_s = (self.clock() - first_at) / later_tokens if later_tokens and first_at is not None else None
        return served._replace(ending=Ending.ANSWERED, itl_s=itl_s)

    async def _report(self) -> None:
        while True:
            for worker in self.workers:
                worker.report()
            if isinstance(self.policy, GhostCacher):
                self.policy.reported()
            self.observe(REPORTS)
            await asyncio.sleep(REPORT_S)


def first_of(exc: BaseException) -> BaseException:
    """Return the first error of a group, however deep."""
    return first_of(exc.exceptions[0]) if isinstance(exc, BaseExceptionGroup) else exc


async def replay(entrant: Entrant, load: Load, fleet: FleetSpec, *, clients: int | None = None) -> Run:
    """Send all requests of a load through one policy, from empty caches: at their time, or by so many clients."""
    return await Replay(entrant, load, fleet, clients=clients).run()
