"""Routing over a real Redis and real threads: two routers learn from each other, and Redis may go and come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain, StampedLoad
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_router.build import THREADS, Routing
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.store_calls import StoreThreads
from ghostcacher_router.types import Ask, Endpoint, Outcome, Prompt, RequestShape, WorkerState
from ghostcacher_simulator.text import text_of
from tests.support.index_parts import entries, make_record
from tests.support.routing_sim import prompt_of

TEXT = text_of("text", 4000)
BLOCKS = [bytes([number]) * 32 for number in range(250)]
WAIT_S_MAX = 60.0


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


class Fleet:
    """Two workers that report no work, and are so slow that waiting for one is worth it on any machine."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        for name in ("w0", "w1"):
            worker = Worker(
                name, Endpoint("127.0.0.1", 1, False, ""), make_record(name, incarnation=name.encode() * 8), 0
            )
            worker.state = WorkerState.READY
            self.workers[name] = worker
        self._reported: Callable[[Sequence[Worker]], None] = lambda _: None
        self._all = list(self.workers.values())

    def serving(self, model: str | None) -> list[Worker]:
        assert model == "m"
        return self._all

    def base_of(self, model: str | None) -> None: ...

    def models(self) -> list[str]:
        return ["m"]

    def limits(self) -> dict[str, int]:
        return {}

    def lost(self, name: str, outcome: Outcome) -> None:
        raise AssertionError(f"{name}: {outcome}")

    def doubts(self, name: str) -> bool:  # noqa: ARG002 - nobody fails
        return False

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:  # noqa: ARG002
        raise AssertionError(f"{name}: {kind}, {why}")

    def when_down(self, tell: Callable[[str], None]) -> None:
        """Nobody goes down."""

    def when_reported(self, tell: Callable[[Sequence[Worker]], None]) -> None:
        self._reported = tell

    models_may_be_old = False

    async def refresh_models(self) -> None: ...

    def models_changed(self) -> None: ...

    def answered(self, name: str) -> None:
        assert name in self.workers

    def report(self) -> None:
        load = LoadReport(
            running=0,
            waiting=0,
            waiting_tokens=0,
            kv_blocks_used=0,
            kv_blocks_total=10_000,
            block_tokens=16,
            block_bytes=1 << 14,
            prefill_tokens_per_s=200.0,
            pull_bytes_per_s=1e9,
            pull_fixed_s=0.004,
        )
        for worker in self._all:
            worker.load, worker.load_measured_at = StampedLoad(0.0, load), time.monotonic()
        self._reported(self._all)


class Router:
    def __init__(self, name: str, url: str) -> None:
        self.fleet, self.text, self.name = Fleet(), PrefixMap(name), name
        self.index, self.store = RedisIndex(url, timeout_s=5.0), RedisCoordinationStore(url, timeout_s=5.0)
        self.threads = StoreThreads(THREADS, "store", limit_s=60.0), StoreThreads(1, "read", limit_s=60.0)
        dependencies = Dependencies(
            fleet=self.fleet,
            prefix_map=self.text,
            pending=PendingPrompts(),
            metrics=RouterMetrics(),
            clock=time.monotonic,
            rng=Random(3),
            offload=self.threads[0],
            read_offload=self.threads[1],
        )
        self.routing = Routing(dependencies, index=self.index, store=self.store, router=name)
        self.asked = 0

    def ask(self, prompt: Prompt) -> Ask:
        self.asked += 1
        self.fleet.report()
        return Ask(f"{self.name}-{self.asked}", "POST", "/", RequestShape("m", True, prompt, None), {})


@asynccontextmanager
async def routers(url: str, *names: str) -> AsyncIterator[list[Router]]:
    made = [Router(name, url) for name in names]
    for router in made:
        router.routing.start()
    try:
        yield made
    finally:
        for router in made:
            await router.routing.stop()
            router.store.close()
            router.index.close()
            for threads in router.threads:
                threads.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():
            await asyncio.sleep(0.01)


async def compute(router: Router, request_id: str, worker: str, url: str) -> None:
    """Do and publish what the connector of a worker does and publishes."""
    index, store = RedisIndex(url, timeout_s=5.0), RedisCoordinationStore(url, timeout_s=5.0)
    record = router.fleet.workers[worker].record
    assert record is not None
    counts = tuple(range(8, 249, 8))
    chain = PromptChain(request_id, 4000, counts, tuple(BLOCKS[count - 1] for count in counts))

    def publish() -> None:
        index.join(record, lease_ttl_s=60)
        index.apply(ref_of(record), entries(BLOCKS), [], lease_ttl_s=60)
        assert store.publish(ref_of(record), None, [chain], [], ttl_s=5)
        assert store.publish(ref_of(record), None, [], [request_id], ttl_s=5)
        index.close()
        store.close()

    await asyncio.to_thread(publish)


def run(main: Callable[[str], Awaitable[None]], redis: RedisServer) -> None:
    asyncio.run(main(redis.url))  # type: ignore[arg-type]


def test_two_routers_share_locks_map_and_prefix_locations(redis: RedisServer) -> None:
    """One router's worker computes; the other router's request waits for it, and then knows where it lies."""

    async def main(url: str) -> None:
        async with routers(url, "one", "two") as (one, two):
            await until(lambda: one.routing.replicas == two.routing.replicas == 2)
            ask = one.ask(prompt_of(TEXT))
            first = await one.routing.picker.place(ask)
            assert first.lock is not None
            await until(lambda: first.lock is not None and first.lock.token is not None)
            first.sent()
            waiting = asyncio.ensure_future(two.routing.picker.place(two.ask(prompt_of(TEXT + b"more" * 64))))
            await until(lambda: len(two.routing.state.locks) == 1)
            await compute(one, ask.request_id, first.worker, url)
            second = await asyncio.wait_for(waiting, WAIT_S_MAX)
            assert second.worker == first.worker
            await until(lambda: len(two.text) == len(one.text) > 0)
            first.first_byte()
            for placed in (first, second):
                placed.ended(Outcome.DONE, 200)
            third = await two.routing.picker.place(two.ask(prompt_of(TEXT)))
            assert (third.worker, third.forecast and third.forecast.cached_tokens > 3500) == (first.worker, True)
            third.ended(Outcome.CANCELLED, None)

    run(main, redis)


def test_redis_restarts_requests_go_on(redis: RedisServer) -> None:
    """While Redis is down every request is placed; when it is back, the routers find each other again."""

    async def main(url: str) -> None:
        async with routers(url, "one", "two") as (one, two):
            await until(lambda: one.routing.replicas == 2)
            await asyncio.to_thread(redis.kill)
            for number in range(20):
                router = (one, two)[number % 2]
                placed = await asyncio.wait_for(
                    router.routing.picker.place(router.ask(prompt_of(text_of(f"text {number}", 3000)))), WAIT_S_MAX
                )
                placed.sent()
                placed.first_byte()
                placed.ended(Outcome.DONE, 200)
            await asyncio.to_thread(redis.start)
            ask = one.ask(prompt_of(TEXT))

            async def learned() -> bool:
                placed = await one.routing.picker.place(ask)
                try:
                    await compute(one, ask.request_id, placed.worker, url)
                except AssertionError:
                    return False  # No router listens yet.
                finally:
                    placed.ended(Outcome.CANCELLED, None)
                return True

            async with asyncio.timeout(WAIT_S_MAX):
                while not await learned():
                    await asyncio.sleep(0.1)
            await until(lambda: len(two.text) == len(one.text) > 0)

    run(main, redis)
