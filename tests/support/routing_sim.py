"""A fleet in virtual time: simulated engines that compute, cache, pull, report and publish, and routers over one store.

What the engines report is what real ones report, through the same store and index, and the routers are the real ones.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import Outliers, usable
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks, shared_file
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.sync import HEARTBEAT_S
from ghostcacher_router.types import (
    Ask,
    Endpoint,
    Outcome,
    Placement,
    Prompt,
    Reason,
    RequestShape,
    SectionType,
    WorkerState,
)
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.engine import Engine, Profile, Refused
from ghostcacher_simulator.text import BLOCK_TOKENS, block_hashes
from tests.support.index_parts import NAMESPACE, make_record

T = TypeVar("T")

RATE = 10_000.0
DECODE_S = 0.02
LEASE_TTL_S = 1e6
ROUND_TRIP_S, REPORT_S = 0.0005, 0.15
ATTEMPTS_MAX = 3


class Served(NamedTuple):
    """waited_s: in the router, before the last attempt. ttft_s: from the request's arrival. attempts: from 1."""

    worker: str
    reason: Reason
    waited_s: float
    ttft_s: float
    attempts: int


def prompt_of(text: bytes, ends: Sequence[tuple[SectionType, int]] = ()) -> Prompt:
    prompt = hash_prompt(text, (), [*ends, (SectionType.USER, len(text))], preamble=b"", seed=7)
    assert prompt is not None
    return prompt


class SimEngine(Engine):
    """One engine server, and its connector.

    worker: as the routers see it. claims: fields of its load report that are not as they should be.
    """

    def __init__(
        self,
        sim: Sim,
        name: str,
        *,
        namespace: str,
        rate: float,
        plain: bool,
        shares_prefill: bool,
        publish_s: float | None,
        kv_blocks: int | None,
    ) -> None:
        self.name = name
        self.claims: dict[str, Any] = {}
        self._now = sim.now
        made = replace(make_record(name, namespace=namespace), block_tokens=BLOCK_TOKENS, shares_prefill=shares_prefill)
        record = None if plain else made
        self.worker = Worker(name, Endpoint("127.0.0.1", 1, False, ""), record, sim.now())
        self.worker.state, self.worker.models = WorkerState.READY, frozenset({"m"})
        connector = None
        if record is not None:
            connector = Connector(
                sim.index,
                sim.store,
                record,
                lease_ttl_s=LEASE_TTL_S,
                peers=lambda: sim.peers_of(self) if sim.index.reachable else (),
                at_once=True,
            )
            connector.join()
        profile = Profile(prefill_tokens_per_s=rate, decode_s=DECODE_S, shares_prefill=shares_prefill)
        if publish_s is not None:
            profile = profile._replace(publish_s=publish_s)
        if kv_blocks is not None:
            profile = profile._replace(kv_blocks=kv_blocks)
        super().__init__(profile, connector)

    def report(self) -> None:
        """Tell its load, unless nobody is there to tell it."""
        if self.worker.record is not None and not self.hung and not self.dead:
            load = replace(self.load(), **self.claims)
            self.worker.load, self.worker.load_measured_at = StampedLoad(self._now(), load), self._now()


class SimFleet:
    """The workers, as one router sees them."""

    def __init__(self, engines: dict[str, SimEngine], now: Callable[[], float]) -> None:
        self.workers = {name: engine.worker for name, engine in engines.items()}
        self.outliers = Outliers(FleetOptions(), now, count=lambda *_: None, changed=self.changed)
        self._now = now
        self._down: set[str] = set()
        self._when_down: list[Callable[[str], None]] = []
        self._serving: list[Worker] | None = None
        self.reported: Callable[[Sequence[Worker]], None] = lambda _: None

    def serving(self, model: str | None) -> list[Worker]:
        if model not in (None, "m"):
            return []
        if self.outliers.due <= self._now():
            self.outliers.settle()
        if self._serving is None:
            up = [worker for name, worker in self.workers.items() if name not in self._down]
            self._serving = usable(up, self.outliers.ejected)
        return self._serving

    def models(self) -> list[str]:
        return ["m"]

    def base_of(self, model: str | None) -> str | None:  # noqa: ARG002 - engines find nothing by themselves
        return None

    def limits(self) -> Mapping[str, int]:
        return self.outliers.limits()

    def lost(self, name: str, outcome: Outcome) -> None:
        """Take a worker out, as the probe does that follows: only engines that are dead lose requests here."""
        assert outcome is not Outcome.DONE
        self._down.add(name)
        self.outliers.forget(name)
        self.changed()
        for tell in self._when_down:
            tell(name)

    def doubts(self, name: str) -> bool:
        return self.outliers.doubts(name)

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:
        if name not in self._down:
            self.outliers.failed(name, kind, why, sure=sure)

    models_may_be_old = False

    async def refresh_models(self) -> None: ...

    def models_changed(self) -> None: ...

    def answered(self, name: str) -> None:
        assert name in self.workers
        self.outliers.answered(name)

    def when_down(self, tell: Callable[[str], None]) -> None:
        self._when_down.append(tell)

    def when_reported(self, tell: Callable[[Sequence[Worker]], None]) -> None:
        self.reported = tell

    def changed(self) -> None:
        """Note that a worker is another one, or in another state."""
        self._serving = None


class Router:
    """A router, without its front."""

    def __init__(self, sim: Sim, name: str, options: Options, siblings: SiblingLocks | None = None) -> None:
        self.sim, self.name = sim, name
        self.fleet = SimFleet(sim.engines, sim.now)
        self.text = PrefixMap(name, clock=sim.now)
        self.metrics = RouterMetrics()
        self.store = None if sim.plain else sim.store.client()
        dependencies = Dependencies(
            self.fleet,
            self.text,
            PendingPrompts(clock=sim.now),
            self.metrics,
            sim.now,
            # One of its own: routers that draw the same numbers pick the same worker, and look as if they had agreed.
            Random(name),
            self._offload,
            self._offload,
        )
        index = None if sim.plain else sim.index
        self.routing = Routing(
            dependencies, index=index, store=self.store, router=name, options=options, read_block_s=0.0
        )
        self.picker = self.routing.picker
        self.clients: set[asyncio.Task[Served]] = set()
        self.dead = False
        self._count = 0
        self.routing.join(None, siblings)
        self.routing.start()

    def ask(self, text: bytes, *, session: str | None = None, ends: Sequence[tuple[SectionType, int]] = ()) -> Ask:
        self._count += 1
        shape = RequestShape("m", True, prompt_of(text, ends), session)
        return Ask(f"{self.name}-{self._count}", "POST", "/v1/completions", shape, {})

    def send(self, text: bytes, **more: object) -> asyncio.Task[Served]:
        """Let a client send a prompt, now."""
        task = asyncio.ensure_future(self._serve(self.ask(text, **more), text))  # type: ignore[arg-type]
        self.clients.add(task)
        task.add_done_callback(self.clients.discard)
        return task

    async def kill(self) -> None:
        """Die as a process does: connections break, nothing is said."""
        self.dead = True
        for task in [*self.routing.sync._tasks, *self.clients] if self.routing.sync else list(self.clients):
            task.cancel()
        await asyncio.sleep(0)

    async def _serve(self, ask: Ask, text: bytes) -> Served:
        started = self.sim.now()
        for attempt in range(1, ATTEMPTS_MAX + 1):
            placed: Placement = self.picker.place_now(ask) or await self.picker.place(ask)
            placed_at = self.sim.now()
            placed.sent()
            try:
                engine = self.sim.engines[placed.worker]
                prefilled = await engine.prefill(ask.request_id, text)
            except Refused:
                placed.ended(Outcome.REFUSED, None)
                ask = ask._replace(exclude=ask.exclude | {placed.worker})
                continue
            except asyncio.CancelledError:
                placed.ended(Outcome.CANCELLED, None)
                raise
            ttft_s = self.sim.now() - started
            placed.first_byte()
            await engine.decode(self.sim.answer_tokens)
            engine.release(prefilled)
            placed.ended(Outcome.DONE, 200)
            return Served(placed.worker, placed.reason, placed_at - started, ttft_s, attempt)
        raise AssertionError("every attempt was refused")

    async def _offload(self, call: Callable[[], T], /) -> T:
        await asyncio.sleep(self.sim.round_trip_s)
        if self.dead:
            await asyncio.get_running_loop().create_future()
        return call()


class Sim:
    """Engines, a store, an index and routers."""

    def __init__(
        self,
        engines: int,
        routers: int = 1,
        *,
        plain: bool = False,
        rates: Sequence[float] | None = None,
        options: Options | None = None,
        shares_prefill: bool = True,
        namespaces: Sequence[str] | None = None,
        publish_s: float | None = None,
        round_trip_s: float = ROUND_TRIP_S,
        pulls: bool = True,
        kv_blocks: int | None = None,
        answer_tokens: int = 1,
        processes: int = 1,
    ) -> None:
        """publish_s: from the end of a prefill until peers can pull its blocks; None: as usual.

        round_trip_s: of a router to Redis, the waiting for a thread included.
        pulls: whether the engines pull; the routers think so in any case.
        kv_blocks: that each engine holds; None: more than any test needs.
        answer_tokens: of each answer.
        processes: each so many of the routers are the processes of one.
        """
        self.round_trip_s, self.pulls, self.answer_tokens = round_trip_s, pulls, answer_tokens
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.plain = plain
        self.store = MemoryCoordinationStore(clock=self.now)
        self.index = MemoryIndex(clock=self.now)
        self.engines: dict[str, SimEngine] = {}
        for number in range(engines):
            rate = RATE if rates is None else rates[number]
            name = f"w{number}"
            namespace = NAMESPACE if namespaces is None else namespaces[number]
            self.engines[name] = SimEngine(
                self,
                name,
                namespace=namespace,
                rate=rate,
                plain=plain,
                shares_prefill=shares_prefill,
                publish_s=publish_s,
                kv_blocks=kv_blocks,
            )
        self.memories = [shared_file() for _ in range(0, routers, processes)] if processes > 1 else []
        for file in self.memories:
            weakref.finalize(self, os.close, file)
        self.routers = [
            Router(
                self,
                f"r{number}",
                options or Options(),
                SiblingLocks(self.memories[number // processes], number, self.now) if processes > 1 else None,
            )
            for number in range(routers)
        ]
        self._reporting = asyncio.ensure_future(self._report())

    async def settle(self, seconds: float = HEARTBEAT_S + 0.5) -> None:
        """Let time pass: routers say hello and hear of each other, engines report and publish."""
        await asyncio.sleep(seconds)

    def evict(self) -> None:
        """Every engine loses its cache, and withdraws it from the index."""
        for engine in self.engines.values():
            engine.evict_all()

    def peers_of(self, reader: SimEngine) -> list[WorkerRef]:
        """Return the engines from which another one can pull."""
        if not self.pulls:
            return []
        refs = [engine.worker.ref for engine in self.engines.values() if engine is not reader and not engine.dead]
        return [ref for ref in refs if ref is not None and ref.namespace == reader.worker.namespace]

    def times_computed(self, text: bytes) -> int:
        """Return how often the most often computed block of a text was computed."""
        computed: Counter[bytes] = Counter()
        for engine in self.engines.values():
            computed.update(engine.computed_blocks)
        return max(computed[block] for block in block_hashes(text))

    async def _report(self) -> None:
        while True:
            for engine in self.engines.values():
                engine.report()
            for router in self.routers:
                router.fleet.reported([engine.worker for engine in self.engines.values()])
            await asyncio.sleep(REPORT_S)


async def all_of(tasks: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for every task."""
    return list(await asyncio.gather(*tasks))


async def make_sim(engines: int = 3, **more: object) -> Sim:
    """Return a simulation in which routers and engines have heard of each other."""
    sim = Sim(engines, **more)  # type: ignore[arg-type]
    await sim.settle()
    return sim
