"""Plain engines are asked how much their caches hold, over real sockets, and nobody waits for it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.probes import HttpProber, ProbeFailed
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import WorkerState
from ghostcacher_simulator.http_server import Peer, Received
from tests.support.index_parts import make_record
from tests.support.mock_engine import MiniEngine, until

FAST = FleetOptions(health_interval_s=0.05, backoff_first_s=0.02, discover_interval_s=0.02)
PAGE = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="%d",engine="0"} 1.0\n'


class CutMetrics(MiniEngine):
    """An engine whose metrics are cut, once they are told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = False
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.path == "/metrics" and self.fail:
            peer.abort()
        else:
            await self.api(peer, request)


class SlowMetrics(MiniEngine):
    """An engine whose metrics take for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.path == "/metrics":
            await peer.left()
        else:
            await self.api(peer, request)


def test_plain_worker_is_asked_when_it_comes_up_and_when_it_comes_back() -> None:
    """Once each time; another engine at its address may have another cache, or not say what it has."""

    async def main() -> None:
        async with MiniEngine() as engine:
            fleet = Fleet(metrics=RouterMetrics(), static=[engine.endpoint], options=FAST)
            (pages, tokens) = ([PAGE % 100, PAGE % 200, b"nothing", None], [1600, 3200, None, None])
            engine.api.metrics = pages[0]
            await fleet.start()
            (worker,) = fleet.workers.values()
            for times, known in enumerate(tokens, 1):
                await until(lambda: worker.state is WorkerState.READY)
                await until(lambda: engine.asked.count("/metrics") == times)  # noqa: B023
                await until(lambda: worker.cache_tokens == known)  # noqa: B023
                engine.api.status, engine.api.metrics = 503, pages[times % len(pages)]
                await until(lambda: worker.state is WorkerState.DOWN)
                engine.api.status = 200
            await fleet.stop()

    asyncio.run(main())


def test_size_of_an_engine_that_came_back_and_whose_metrics_fail_is_not_known() -> None:
    """What was true of the engine before it went need not be true of the one that came: its answers will tell."""

    async def main() -> None:
        async with CutMetrics() as engine:
            fleet = Fleet(metrics=RouterMetrics(), static=[engine.endpoint], options=FAST)
            engine.api.metrics = PAGE % 100
            await fleet.start()
            (worker,) = fleet.workers.values()
            await until(lambda: worker.cache_tokens == 1600)
            engine.api.status, engine.fail = 503, True
            await until(lambda: worker.state is WorkerState.DOWN)
            engine.api.status = 200
            await until(lambda: worker.state is WorkerState.READY and engine.asked.count("/metrics") > 1)
            await until(lambda: worker.cache_tokens is None)
            await fleet.stop()

    asyncio.run(main())


def test_worker_with_a_connector_is_not_asked() -> None:
    """It reports what it holds."""

    async def main() -> None:
        index = MemoryIndex()
        async with MiniEngine() as engine:
            engine.api.metrics = PAGE % 100
            fleet = Fleet(metrics=RouterMetrics(), index=index, options=FAST)
            index.join(msgspec.structs.replace(make_record("a"), http=engine.endpoint.url), lease_ttl_s=600.0)
            await fleet.start()
            await until(lambda: engine.asked.count("/health") > 3)
            assert "/metrics" not in engine.asked
            await fleet.stop()

    asyncio.run(main())


def test_metrics_that_take_for_ever_hold_up_nothing() -> None:
    """The worker is probed and used all the same, and the router stops without waiting for them."""

    async def main() -> None:
        async with SlowMetrics() as engine:
            prober = HttpProber(timeout_s=3600.0)
            fleet = Fleet(metrics=RouterMetrics(), static=[engine.endpoint], prober=prober, options=FAST)
            await fleet.start()
            await until(lambda: "/metrics" in engine.asked and engine.asked.count("/health") > 3)
            assert fleet.serving("m")
            assert fleet.has_looked
            await fleet.stop()

    asyncio.run(main())


@pytest.mark.parametrize("metrics", [None, b"", b"<html>", bytes(1 << 20)])
def test_server_whose_metrics_do_not_say_it_is_no_trouble(metrics: bytes | None) -> None:
    """None, odd and long pages alike."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.metrics = metrics
            assert await HttpProber().cache_tokens(engine.endpoint) is None

    asyncio.run(main())


def test_endless_metrics_are_given_up() -> None:
    """They cost a bounded number of bytes."""

    async def main() -> None:
        async with MiniEngine() as engine:
            engine.api.metrics = bytes(5 << 20)
            with pytest.raises(ProbeFailed, match="expected at most"):
                await HttpProber().cache_tokens(engine.endpoint)

    asyncio.run(main())
