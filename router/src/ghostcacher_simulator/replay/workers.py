"""One worker of a simulated fleet: an engine that batches, its connector, its host tier, its links to peers.

A pull is what it is in a real worker: the index says where a peer holds what is missing, the blocks are read, and then
the seal is compared. A slot that was given to another block meanwhile has another generation, and the read is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport, StampedLoad
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import (
    INCARNATION_BYTES,
    BlockHash,
    Location,
    PrefixHit,
    Role,
    Tier,
    WorkerRecord,
)
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import Endpoint, WorkerState
from ghostcacher_simulator.batching import BatchingEngine, Fetched, Found
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.engine import Prefilled
from ghostcacher_simulator.load.requests import Request
from ghostcacher_simulator.machines.workers import WorkerSpec
from ghostcacher_simulator.pool import HeldBlock, KvPool
from ghostcacher_simulator.replay.host_blocks import HostBlocks
from ghostcacher_simulator.replay.objects import ObjectWriter
from ghostcacher_simulator.replay.stores import Peer, Stores

MODEL = "m"
REPORT_S = 0.15
"""Between two load reports."""
ASK_AHEAD_S = REPORT_S / 4
"""So long before a report the engine's thread is asked for its load: it looks when it begins a step."""
LEASE_S = 1e9
"""A dead worker is not known by its lease here, but by probes: replay.py."""


class Pulled(NamedTuple):
    """Blocks that were read from a peer, as the reader believes."""

    peer: Peer
    blocks: Sequence[BlockHash]
    """What it has asked for, in order."""
    locations: Sequence[Location]
    """Where it has read them."""


class SimulatedWorker(BatchingEngine):
    """One worker. All methods are for the event loop's thread."""

    def __init__(
        self, name: str, spec: WorkerSpec, stores: Stores | None, *, metrics: bool = True, life: int = 0
    ) -> None:
        """stores: None for a plain engine. metrics: whether it says how much its cache holds without a connector.

        life: tells its incarnation from earlier ones of the same name.
        """
        self.name, self.life = name, life
        self.pull_count = 0
        self._begun = 0
        self._idle_load: tuple[int, LoadReport] | None = None
        """The load of a worker without requests, and how many it had had then."""
        self._measured: tuple[float, LoadReport] | None = None
        """The load as the engine's thread has measured it last, and when; None before that."""
        self._ask_at = 0.0
        """From then on the engine's thread is to measure the load anew, as soon as it begins a step."""
        self.stale_blocks = 0
        """Blocks that were read and did not have the generation any more."""
        self.link_share = 1.0
        """The part of its link that it can use now, above 0."""
        self.on_pulled: Callable[[Pulled], None] = lambda _: None
        """Told what was read and believed."""
        self._clock = asyncio.get_running_loop().time
        self._stores = stores
        self.connector = None if stores is None else self._connect(stores, spec.profile.block_tokens)
        record = None if self.connector is None else self.connector.record
        self.worker = Worker(name, Endpoint("127.0.0.1", 1, False, ""), record, self._clock())
        self.worker.state, self.worker.models = WorkerState.READY, frozenset({MODEL})
        if metrics:
            self.worker.cache_tokens = spec.profile.kv_blocks * spec.profile.block_tokens
        super().__init__(spec.profile, spec.batching, self.connector and _Below(self.connector, self))
        rate, step_tokens_max = spec.profile.prefill_tokens_per_s, spec.batching.step_tokens
        self._forecaster = Forecaster(rate, self._clock, step_tokens_max=step_tokens_max, own_worker=name)
        self.host = None
        if spec.host is not None and self.connector is not None:
            self.host = HostBlocks(spec.host, self._clock, self.pool.__contains__)
        self._writer = None
        if stores is not None:
            stores.workers[name] = self
            if stores.objects is not None and self.host is not None:
                self._writer = ObjectWriter(stores.objects, lambda: self.dead)

    @property
    def incarnation(self) -> bytes | None:
        """Tells one life of it from another; None of a plain engine."""
        return None if self.connector is None else self.connector.ref.incarnation

    @property
    def takes_requests(self) -> bool:
        """Whether it is to get requests."""
        return not self.dead and not self.worker.draining

    def drain(self, draining: bool) -> None:
        """Have routers know that it is to get no requests, or that it is again."""
        self.worker.draining = draining
        self.worker.state = WorkerState.DRAINING if draining else WorkerState.READY

    def meet(self) -> None:
        """Renew its lease, and look for peers to pull from. Nothing, while Redis is away."""
        if self.connector is not None:
            with contextlib.suppress(IndexUnavailable):
                self.connector.renew()

    def know(self, others: Sequence[WorkerRef]) -> None:
        """Take others as peers to pull from, without looking for them."""
        if self.connector is not None:
            self.connector.know(others)

    def report(self) -> None:
        """Tell routers its load, and what it could not tell before, unless it is plain or Redis is away."""
        if self.connector is None or self._stores is None or self.dead:
            return
        if self.host is not None:
            self._withdraw(self.host.expire())
        if self._stores.coordination.reachable:
            with contextlib.suppress(IndexUnavailable):
                self.connector.flush()
            self.worker.load, self.worker.load_measured_at = self._load_last()

    def _load_last(self) -> tuple[StampedLoad, float]:
        """Return the load of the last step that has begun, and when that was; the present one where none computes."""
        now = self._clock()
        if self._measured is None or not self.steps.computes_prompts:
            self._measured = now, self._load_now()
        self._ask_at = now + REPORT_S - ASK_AHEAD_S
        at, load = self._measured
        return StampedLoad(now, load if at == now else replace(load, age_s=now - at)), at

    def load(self) -> LoadReport:
        rate, decode = self._forecaster.prefill_rate, self._forecaster.decode_times
        return replace(
            super().load(),
            prefill_tokens_per_s=rate.tokens_per_s,
            prefill_rate_stale=rate.stale,
            decode_step_s=decode.step_s,
            decode_request_s=decode.request_s,
        )

    def _step_begins(self) -> None:
        if (now := self._clock()) >= self._ask_at:
            self._measured, self._ask_at = (now, self._load_now()), math.inf

    def _step_took(self, prompt_tokens: int, answers: int, seconds: float) -> None:
        if prompt_tokens:
            self._forecaster.observe_step(prompt_tokens, seconds)
        else:
            self._forecaster.decode_times.observe(answers, seconds)

    def _load_now(self) -> LoadReport:
        """Return its load: the same as the last time while nothing comes to a worker that has nothing to do."""
        if self._idle_load is not None and not self.requests and self._idle_load[0] == self._begun:
            return self._idle_load[1]
        load = self.load()
        self._idle_load = None if self.requests else (self._begun, load)
        return load

    async def serve(self, request: Request, first_token: Callable[[Prefilled], None]) -> None:
        """Compute a prompt and its answer. first_token: told what became of the prompt. Raises Refused when it dies."""
        self._begun += 1
        if self.host is not None:
            self.host.asked(request)
        prefilled = await self.prefill_tokens(request.request_id, request.prompt)
        try:
            self.pull_count += prefilled.pulled_tokens > 0
            first_token(prefilled)
            with self.living():
                await self.decode(request.prompt.answer_tokens - 1)
        finally:
            self.release(prefilled)

    def evicted_below(self, blocks: Sequence[HeldBlock]) -> None:
        """Take what the engine's cache has evicted into the host tier, as far as that wants it."""
        assert self.connector is not None
        if self.host is None:
            self.connector.evicted(blocks)
            return
        for each in blocks:
            held, gone = self.host.take(each.block)
            self._withdraw(gone)
            if held is None:
                self.connector.withdrawn([each.block])
            else:
                self.connector.moved([held], Tier.HOST)
                if self._writer is not None:
                    self._writer.offer(each.block)

    def generation(self, location: Location) -> int:
        """Return the generation of a slot now: the seal."""
        return self._memory(location).generation(location.slot)

    def content(self, location: Location) -> BlockHash | None:
        """Return the block that lies in a slot, whatever anybody believes."""
        return self._memory(location).content(location.slot)

    def _memory(self, location: Location) -> HostBlocks | KvPool:
        if location.tier is Tier.HOST:
            assert self.host is not None, f"{self.name} has no host tier"
            return self.host
        return self.pool

    def _withdraw(self, gone: Sequence[BlockHash]) -> None:
        """Withdraw what has left the host tier, unless the engine's cache has it."""
        assert self.connector is not None
        self.connector.withdrawn([block for block in gone if block not in self.pool])

    def _look_up(self, blocks: Sequence[BlockHash]) -> Found:
        local = self.pool.match(blocks)
        below, reads = local, list[BlockHash]()
        if self.host is not None:
            below = self.host.prefix(blocks)
            # What makes room for this prompt in the cache goes to the tier, and must not drive out what it reads there.
            reads = self.host.pin(blocks[local:below])
        hit = self.connector.best_peer(blocks) if self.connector is not None and below < len(blocks) else None
        stored = self._stored(blocks, below, below if hit is None else hit.length)
        if stored:
            return Found(local, stored, reads)
        if hit is None or hit.length <= below:
            return Found(local, below, reads)
        return Found(local, hit.length, reads, hit)

    def _stored(self, blocks: Sequence[BlockHash], below: int, elsewhere: int) -> int:
        """Return the end of what is to be read from the object tier: more than anybody has, and faster than computing.

        below: of these leading blocks nothing is to be read. elsewhere: as many a peer has.
        """
        objects = None if self._stores is None else self._stores.objects
        if objects is None or self.host is None:
            return 0
        end = objects.prefix(blocks, below)
        compute_s = (end - below) * self.profile.block_tokens / self.profile.prefill_tokens_per_s
        return end if end > elsewhere and objects.read_s(end - below) < compute_s else 0

    async def _fetch(self, blocks: Sequence[BlockHash], found: Found) -> Fetched:
        local, below = found.local, found.local
        try:
            async with self._pulls:
                if self.host is not None and found.reads:
                    below = min(found.held, self.host.prefix(blocks))
                    await asyncio.sleep((below - local) * self.profile.block_bytes / self.host.spec.bytes_per_s)
                if found.hit is not None and found.hit.length > below:
                    return Fetched(below - local, await self._read(blocks, below, found.hit))
                return Fetched(below - local, 0, await self._read_objects(blocks, below, found.held))
        finally:
            if self.host is not None:
                self.host.unpin(found.reads)

    async def _read_objects(self, blocks: Sequence[BlockHash], start: int, end: int) -> int:
        """Read the blocks ``[start, end)`` from the object tier; return how many are there."""
        objects = None if self._stores is None else self._stores.objects
        if objects is None or end <= start:
            return 0
        await asyncio.sleep(objects.read_s(end - start))
        found = min(end, objects.prefix(blocks, start)) - start
        objects.use(blocks[start : start + found])
        return found

    async def _read(self, blocks: Sequence[BlockHash], start: int, hit: PrefixHit) -> int:
        """Read the blocks ``[start, hit.length)`` of a peer; return how many of them count: the seal says so."""
        assert self._stores is not None
        peer = self._stores.workers.get(hit.worker)
        share = min(self.link_share, peer.link_share if peer is not None else 1.0)
        count = hit.length - start
        await asyncio.sleep(self.profile.pull_fixed_s + (self.pull_s(count) - self.profile.pull_fixed_s) / share)
        # A peer that died, or lives anew, answers no read of what was looked up before.
        if peer is None or peer.dead or peer.incarnation != hit.incarnation:
            return 0
        locations = hit.locations[start : hit.length]
        fresh = next(
            (place for place, at in enumerate(locations) if peer.generation(at) != at.generation), len(locations)
        )
        self.stale_blocks += count - fresh
        self.pulled_blocks += fresh
        self.on_pulled(Pulled(peer, blocks[start : start + fresh], locations[:fresh]))
        return fresh

    def _connect(self, stores: Stores, block_tokens: int) -> Connector:
        record = WorkerRecord(
            schema=SCHEMA_VERSION,
            worker=self.name,
            incarnation=hashlib.sha256(f"{self.name} {self.life}".encode()).digest()[:INCARNATION_BYTES],
            namespace="replay",
            fingerprint={"model": MODEL},
            role=Role.BOTH,
            http=None,
            block_tokens=block_tokens,
            started_at=0.0,
            ranks=(),
        )
        connector = Connector(
            stores.index,
            stores.coordination,
            record,
            lease_ttl_s=LEASE_S,
            peers=None if stores.pulls else tuple,
            at_once=True,
            keeps_unsent=True,
        )
        with contextlib.suppress(IndexUnavailable):
            connector.join()
        return connector


class _Below:
    """The sharing of an engine with a tier below it: evicted blocks go there first. Implements `Sharing`."""

    def __init__(self, connector: Connector, worker: SimulatedWorker) -> None:
        self.received = connector.received
        self.prefix_at_peers = connector.prefix_at_peers
        self.computed = connector.computed
        self.evicted = worker.evicted_below
