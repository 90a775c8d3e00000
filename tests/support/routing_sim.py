"""A fleet in virtual time: engines that compute, cache, pull, report and publish, and routers over one store.

The engines are simple (one prompt is prefilled at a time), but what they tell is what real ones tell, through the same
store and index, and the routers are the real ones.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain, StampedLoad
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.worker import Worker
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
from tests.support.index_parts import NAMESPACE, entries, make_record

T = TypeVar("T")

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * BYTES_PER_TOKEN
CHAIN_STEP = 8
RATE = 10_000.0
ARRIVAL_S, PUBLISH_S, ROUND_TRIP_S, REPORT_S = 0.003, 0.005, 0.0005, 0.15
ATTEMPTS_MAX = 3


class Refused(Exception):
    """The engine is not there, or not any more."""


class Served(NamedTuple):
    """waited_s: in the router, before the last attempt. ttft_s: from the request's arrival. attempts: from 1."""

    worker: str
    reason: Reason
    waited_s: float
    ttft_s: float
    attempts: int


@cache
def blocks_of(text: bytes) -> list[bytes]:
    """Return the chain hashes of a text's whole blocks."""
    running, hashes = hashlib.blake2b(digest_size=32), []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        running.update(text[end - BLOCK_BYTES : end])
        hashes.append(running.digest())
    return hashes


def text_of(name: str, tokens: int) -> bytes:
    """Return a text of so many tokens; texts of different names share nothing."""
    unit = hashlib.sha256(name.encode()).hexdigest().encode()
    size = tokens * BYTES_PER_TOKEN
    return (unit * (size // len(unit) + 1))[:size]


def prompt_of(text: bytes, ends: Sequence[tuple[SectionType, int]] = ()) -> Prompt:
    prompt = hash_prompt(text, (), [*ends, (SectionType.USER, len(text))], preamble=b"", seed=7)
    assert prompt is not None
    return prompt


class Engine:
    """One engine server, and its connector. shares_prefill: as in its WorkerRecord."""

    def __init__(self, sim: Sim, name: str, *, namespace: str, rate: float, plain: bool, shares_prefill: bool) -> None:
        self.sim, self.rate, self.name, self.shares_prefill = sim, rate, name, shares_prefill
        self.cache: set[bytes] = set()
        self.computed_tokens = 0
        self.stalled = self.dead = False
        self.extra_tokens = 0
        self._waiting_tokens = self._running = 0
        self._one = asyncio.Lock()
        self._hung = asyncio.Event()
        self._requests: set[asyncio.Task[object]] = set()
        made = replace(make_record(name, namespace=namespace), block_tokens=BLOCK_TOKENS, shares_prefill=shares_prefill)
        record = None if plain else made
        self.worker = Worker(name, Endpoint("127.0.0.1", 1, False, ""), record, sim.now())
        self.worker.state, self.worker.models = WorkerState.READY, frozenset({"m"})
        if record is not None:
            sim.index.join(record, lease_ttl_s=1e6)

    async def prefill(self, request_id: str, text: bytes) -> None:
        """Compute a prompt, or what of it is nowhere; raise Refused when the engine dies meanwhile."""
        if self.dead:
            raise Refused
        task: asyncio.Task[object] | None = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        self._running += 1
        try:
            await self._prefill(request_id, text)
        except asyncio.CancelledError:
            if self.dead and task.uncancel() == 0:
                raise Refused from None
            raise
        finally:
            self._running -= 1
            self._requests.discard(task)

    def die(self) -> None:
        """Break all connections, and refuse new ones."""
        self.dead = True
        for task in list(self._requests):
            task.cancel()

    def hang(self) -> None:
        """Compute nothing from now on, not even what was begun; tell nothing; keep all connections open."""
        self.stalled = True
        self._hung.set()

    def report(self) -> None:
        if self.worker.record is None or self.stalled or self.dead:
            return
        load = LoadReport(
            running=self._running,
            waiting=0,
            waiting_tokens=self._waiting_tokens + self.extra_tokens,
            kv_blocks_used=0,
            kv_blocks_total=1 << 20,
            block_tokens=BLOCK_TOKENS,
            block_bytes=16_384,
            prefill_tokens_per_s=self.rate,
            pull_bytes_per_s=1e9,
            pull_fixed_s=0.004,
        )
        self.worker.load, self.worker.load_received_at = StampedLoad(self.sim.now(), load), self.sim.now()

    async def _prefill(self, request_id: str, text: bytes) -> None:
        blocks, tokens = blocks_of(text), len(text) // BYTES_PER_TOKEN
        self._waiting_tokens += tokens
        try:
            await asyncio.sleep(ARRIVAL_S)
            counts = tuple(range(CHAIN_STEP, len(blocks) + 1, CHAIN_STEP)) or (len(blocks),)
            self._tell([PromptChain(request_id, tokens, counts, tuple(blocks[count - 1] for count in counts))], [])
            on_arrival = self._found(blocks)
            async with self._one:
                local, pulled = self._found(blocks) if self.shares_prefill else on_arrival
                todo = tokens - pulled * BLOCK_TOKENS
                if pulled > local:
                    await asyncio.sleep(0.004 + (pulled - local) * 16_384 / 1e9)
                self.computed_tokens += todo
                self.sim.computed.update(blocks[pulled:])
                await self._compute(todo / self.rate)
                self.cache.update(blocks)
        finally:
            self._waiting_tokens -= tokens
        asyncio.get_running_loop().call_later(PUBLISH_S, self._publish, request_id, blocks)

    def _found(self, blocks: list[bytes]) -> tuple[int, int]:
        """Return how many blocks are here, and how many are here or can be pulled."""
        local = _run(self.cache, blocks)
        return local, max(local, self.sim.published(self, blocks))

    async def _compute(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hung.wait()
        except TimeoutError:
            return
        await asyncio.get_running_loop().create_future()

    def _publish(self, request_id: str, blocks: list[bytes]) -> None:
        if self.worker.record is not None and not self.dead and self.sim.index.reachable:
            self.sim.index.apply(ref_of(self.worker.record), entries(blocks), [], lease_ttl_s=1e6)
            self._tell([], [request_id])

    def _tell(self, chains: Sequence[PromptChain], computed: Sequence[str]) -> None:
        if self.worker.record is not None and self.sim.store.reachable:
            self.sim.store.publish(ref_of(self.worker.record), None, chains, computed, ttl_s=10)


class SimFleet:
    """The workers, as one router sees them."""

    def __init__(self, engines: dict[str, Engine]) -> None:
        self.workers = {name: engine.worker for name, engine in engines.items()}
        self._down: set[str] = set()
        self._serving: list[Worker] | None = None

    def serving(self, model: str | None) -> list[Worker]:
        if model not in (None, "m"):
            return []
        if self._serving is None:
            self._serving = [worker for name, worker in self.workers.items() if name not in self._down]
        return self._serving

    def models(self) -> list[str]:
        return ["m"]

    def refused(self, name: str) -> None:
        self._down.add(name)
        self._serving = None

    def answered(self, name: str) -> None:
        assert name in self.workers


class Router:
    """A router, without its front."""

    def __init__(self, sim: Sim, name: str, options: Options) -> None:
        self.sim, self.name = sim, name
        self.fleet = SimFleet(sim.engines)
        self.text = PrefixMap(name, clock=sim.now)
        self.metrics = RouterMetrics()
        self.store = None if sim.plain else sim.store.client()
        dependencies = Dependencies(
            self.fleet,
            self.text,
            PendingPrompts(clock=sim.now),
            self.metrics,
            sim.now,
            Random(5),
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
                await self.sim.engines[placed.worker].prefill(ask.request_id, text)
            except Refused:
                placed.ended(Outcome.REFUSED, None)
                ask = ask._replace(exclude=ask.exclude | {placed.worker})
                continue
            except asyncio.CancelledError:
                placed.ended(Outcome.CANCELLED, None)
                raise
            ttft_s = self.sim.now() - started
            placed.first_byte()
            await asyncio.sleep(0.02)
            placed.ended(Outcome.DONE, 200)
            return Served(placed.worker, placed.reason, placed_at - started, ttft_s, attempt)
        raise AssertionError("every attempt was refused")

    async def _offload(self, call: Callable[[], T], /) -> T:
        await asyncio.sleep(ROUND_TRIP_S)
        if self.dead:
            await asyncio.get_running_loop().create_future()
        return call()


class Sim:
    """Engines, a store, an index and routers. computed: how often each block was computed in the fleet."""

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
    ) -> None:
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.plain = plain
        self.store = MemoryCoordinationStore(clock=self.now)
        self.index = MemoryIndex(clock=self.now)
        self.computed: Counter[bytes] = Counter()
        self.engines: dict[str, Engine] = {}
        for number in range(engines):
            rate = RATE if rates is None else rates[number]
            name = f"w{number}"
            namespace = NAMESPACE if namespaces is None else namespaces[number]
            self.engines[name] = Engine(
                self, name, namespace=namespace, rate=rate, plain=plain, shares_prefill=shares_prefill
            )
        self.routers = [Router(self, f"r{number}", options or Options()) for number in range(routers)]
        self._reporting = asyncio.ensure_future(self._report())

    async def settle(self, seconds: float = HEARTBEAT_S + 0.5) -> None:
        """Let time pass: routers say hello and hear of each other, engines report and publish."""
        await asyncio.sleep(seconds)

    def evict(self) -> None:
        """Every engine loses its cache, and withdraws it from the index."""
        for engine in self.engines.values():
            engine.cache.clear()
            if engine.worker.ref is not None:
                self.index.clear(engine.worker.ref, 0)

    def published(self, reader: Engine, blocks: list[bytes]) -> int:
        """Return how many blocks from the first one a peer has published, as far as a reader can know."""
        if not self.index.reachable:
            return 0
        refs = [engine.worker.ref for engine in self.engines.values() if engine is not reader and not engine.dead]
        peers = [ref for ref in refs if ref is not None and ref.namespace == reader.worker.namespace]
        hits = self.index.lookup(peers, blocks, locations_for=0)
        return max((hit.length for hit in hits), default=0)

    def times_computed(self, text: bytes) -> int:
        """Return how often the most often computed block of a text was computed."""
        return max(self.computed[block] for block in blocks_of(text))

    async def _report(self) -> None:
        while True:
            for engine in self.engines.values():
                engine.report()
            await asyncio.sleep(REPORT_S)


def _run(cache: set[bytes], blocks: Sequence[bytes]) -> int:
    for number, block in enumerate(blocks):
        if block not in cache:
            return number
    return len(blocks)


async def all_of(tasks: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for every task."""
    return list(await asyncio.gather(*tasks))


async def make_sim(engines: int = 3, **more: object) -> Sim:
    """Return a simulation in which routers and engines have heard of each other."""
    sim = Sim(engines, **more)  # type: ignore[arg-type]
    await sim.settle()
    return sim
