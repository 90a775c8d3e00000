"""Drains of a fleet over a real Redis: what a router knows when."""

from __future__ import annotations

import asyncio
from contextlib import closing

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.coordination.base import DrainOrder
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.worker import drain_id_of
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import WorkerState
from tests.integration.router.test_router_fleet import FAST, Directory
from tests.support.mock_engine import MiniEngine, until


def test_drain_is_known_before_its_worker_is_used() -> None:
    """A router that starts gives a drained worker nothing, though it looks at drains once an hour only."""

    async def main(url: str) -> None:
        with (
            Directory(url) as directory,
            closing(RedisIndex(url, timeout_s=5.0)) as index,
            closing(RedisCoordinationStore(url, timeout_s=5.0)) as store,
        ):
            async with MiniEngine() as engine:
                record = await directory.join("a", engine)
                now, _ = await asyncio.to_thread(store.drains, [])
                order = DrainOrder(drain_id_of("a", record), True, now, now + 60.0)
                await asyncio.to_thread(store.put_drains, [order])
                options = FAST._replace(drain_interval_s=3600.0)
                fleet = Fleet(metrics=RouterMetrics(), index=index, store=store, options=options)
                await fleet.start()
                await until(lambda: "a" in fleet.workers and fleet.workers["a"].state is not WorkerState.JOINING)
                assert fleet.workers["a"].state is WorkerState.DRAINING
                await fleet.stop()

    with RedisServer(tcp=True) as server:
        asyncio.run(main(server.url))
