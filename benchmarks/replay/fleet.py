"""A fleet in virtual time: engines that batch, evict and pull, and the router's own routing over them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from benchmarks.replay.requests import BLOCK_TOKENS, Request
from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import INCARNATION_BYTES, Role, SectionType, WorkerRecord
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.types import Ask, Endpoint, Outcome, Placement, RequestShape, WorkerState
from ghostcacher_simulator.batching import Batching, BatchingEngine
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.engine import Profile

T = TypeVar("T")

MODEL = "m"
LEASE_S = 1e9
ROUND_TRIP_S = 0.0005
READ_S = 0.008
"""From the report of a prompt until a router has read it."""
REPORT_S = 0.15
"""Between two load reports."""


class Sizes(NamedTuple):
    """engines: how many. kv_blocks: of each, of 512 tokens. prefill_tokens_per_s: of each."""

    engines: int
    kv_blocks: int
    prefill_tokens_per_s: float

    def profile(self) -> Profile:
        return Profile(
            kv_blocks=self.kv_blocks,
            block_tokens=BLOCK_TOKENS,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            publish_s=0.006,
            block_bytes=64 << 20,
            pull_bytes_per_s=10e9,
        )


class Stores:
    """What engines and routers share. pulls: whether engines pull from each other."""

    def __init__(self, *, pulls: bool) -> None:
        clock = asyncio.get_running_loop().time
        self.pulls = pulls
        self.index = MemoryIndex(clock=clock)
        self.coordination = MemoryCoordinationStore(clock=clock)


class ReplayEngine(BatchingEngine):
    """One engine. worker: as routers see it. pull_count: prompts of which it has pulled a part."""

    def __init__(self, number: int, sizes: Sizes, stores: Stores | None, *, metrics: bool = True) -> None:
        """stores: None for a plain engine. metrics: whether it says how much its cache holds without a connector."""
        self.name = f"w{number}"
        self.pull_count = 0
        self._clock = asyncio.get_running_loop().time
        self._connector = None if stores is None else self._connect(stores)
        record = None if self._connector is None else self._connector.record
        self.worker = Worker(self.name, Endpoint("127.0.0.1", 1, False, ""), record, self._clock())
        self.worker.state, self.worker.models = WorkerState.READY, frozenset({MODEL})
        if metrics:
            self.worker.cache_tokens = sizes.kv_blocks * BLOCK_TOKENS
        super().__init__(sizes.profile(), Batching(), self._connector)

    def meet(self) -> None:
        """Look for peers to pull from."""
        if self._connector is not None:
            self._connector.renew()

    def report(self) -> None:
        """Report its load, unless it is a plain one."""
        if self._connector is not None:
            self.worker.load, self.worker.load_measured_at = StampedLoad(self._clock(), self.load()), self._clock()

    async def serve(self, request: Request, first_token: Callable[[], None]) -> None:
        """Compute a prompt and its answer."""
        prefilled = await self.prefill_tokens(request.request_id, request.prompt)
        self.pull_count += prefilled.pulled_tokens > 0
        first_token()
        await self.decode(request.prompt.answer_tokens - 1)
        self.release(prefilled)

    def _connect(self, stores: Stores) -> Connector:
        record = WorkerRecord(
            schema=SCHEMA_VERSION,
            worker=self.name,
            incarnation=hashlib.sha256(self.name.encode()).digest()[:INCARNATION_BYTES],
            namespace="replay",
            fingerprint={"model": MODEL},
            role=Role.BOTH,
            http=None,
            block_tokens=BLOCK_TOKENS,
            started_at=0.0,
            ranks=(),
        )
        peers = None if stores.pulls else tuple
        connector = Connector(stores.index, stores.coordination, record, lease_ttl_s=LEASE_S, peers=peers, at_once=True)
        connector.join()
        return connector


class ReplayFleet:
    """Engines that are always ready: a FleetPort of the router's ports.py."""

    models_may_be_old = False

    def __init__(self, engines: Sequence[ReplayEngine]) -> None:
        self._serving = [engine.worker for engine in engines]
        self.workers: Mapping[str, Worker] = {engine.name: engine.worker for engine in engines}

    def serving(self, model: str | None) -> Sequence[Worker]:  # noqa: ARG002 - there is one model
        return self._serving

    def models(self) -> Sequence[str]:
        return [MODEL]

    def base_of(self, model: str | None) -> None: ...

    def limits(self) -> Mapping[str, int]:
        return {}

    async def refresh_models(self) -> None: ...

    def models_changed(self) -> None: ...

    def lost(self, name: str, outcome: Outcome) -> None:
        raise AssertionError(f"{name}, {outcome}: no engine fails here")

    def doubts(self, name: str) -> bool:  # noqa: ARG002 - nobody fails
        return False

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:  # noqa: ARG002
        raise AssertionError(f"{name}, {kind}, {why}: no engine fails here")

    def answered(self, name: str) -> None: ...

    def when_down(self, tell: Callable[[str], None]) -> None: ...


class ReplayRouter:
    """The routing of one router, without its front."""

    def __init__(self, name: str, engines: Sequence[ReplayEngine], stores: Stores | None, replicas: int = 1) -> None:
        """stores: None where all engines are plain. replicas: how many routers there are."""
        clock = asyncio.get_running_loop().time
        dependencies = Dependencies(
            ReplayFleet(engines),
            PrefixMap(name, clock=clock),
            PendingPrompts(clock=clock),
            RouterMetrics(),
            clock,
            # One of its own: routers that draw the same numbers pick the same worker.
            Random(name),
            self._call,
            self._read,
        )
        self._routing = Routing(
            dependencies,
            index=None if stores is None else stores.index,
            store=None if stores is None else stores.coordination.client(),
            router=name,
            options=Options(),
            replicas=replicas,
            read_block_s=0.0,
        )
        self._routing.start()

    async def place(self, request: Request) -> Placement:
        text = request.text()
        prompt = hash_prompt(text, (), [(SectionType.USER, len(text))], preamble=b"", seed=7)
        ask = Ask(request.request_id, "POST", "/v1/completions", RequestShape(MODEL, True, prompt, None), {})
        return self._routing.picker.place_now(ask) or await self._routing.picker.place(ask)

    async def _call(self, call: Callable[[], T], /) -> T:
        await asyncio.sleep(ROUND_TRIP_S)
        return call()

    async def _read(self, call: Callable[[], T], /) -> T:
        await asyncio.sleep(READ_S)
        return call()
