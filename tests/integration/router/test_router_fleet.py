"""The fleet over real sockets and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import msgspec
import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.admin.reports import worker_reports
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import Endpoint, Outcome, WorkerState
from tests.support.index_parts import make_record
from tests.support.mock_engine import MiniEngine, until

LEASE_S = 600.0
FAST = FleetOptions(
    health_interval_s=0.05,
    models_interval_s=0.1,
    backoff_first_s=0.02,
    backoff_max_s=0.05,
    joining_max_s=0.05,
    discover_interval_s=0.02,
    lease_ttl_s=0.5,
    load_interval_s=0.02,
    drain_interval_s=0.02,
)
PATIENT = FAST._replace(lease_ttl_s=LEASE_S)
"""Keeps a worker whose lease Redis has lost for as long as a test lasts."""

LOAD = LoadReport(
    running=1,
    waiting=0,
    waiting_tokens=7,
    kv_blocks_used=1,
    kv_blocks_total=9,
    block_tokens=16,
    block_bytes=1,
    prefill_tokens_per_s=1.0,
    pull_bytes_per_s=0.0,
    pull_fixed_s=0.0,
)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@contextlib.asynccontextmanager
async def fleet_of(*static: Endpoint, url: str | None = None, options: FleetOptions = FAST) -> AsyncIterator[Fleet]:
    index = None if url is None else RedisIndex(url, timeout_s=5.0)
    store = None if url is None else RedisCoordinationStore(url, timeout_s=5.0)
    fleet = Fleet(metrics=RouterMetrics(), static=static, index=index, store=store, options=options)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop()
        for client in (index, store):
            if client is not None:
                await asyncio.to_thread(client.close)


class Directory:
    """Enters workers in Redis, as their connectors do."""

    def __init__(self, url: str) -> None:
        self._index = RedisIndex(url, timeout_s=5.0)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    async def join(self, name: str, engine: MiniEngine | None, rank: int | None = None) -> WorkerRecord:
        http = None if engine is None else engine.endpoint.url
        record = msgspec.structs.replace(make_record(name), http=http, data_parallel_rank=rank)
        await asyncio.to_thread(self._index.join, record, lease_ttl_s=LEASE_S)
        return record

    async def leave(self, record: WorkerRecord) -> None:
        await asyncio.to_thread(self._index.leave, ref_of(record))


def state(fleet: Fleet, name: str) -> WorkerState | None:
    worker = fleet.workers.get(name)
    return None if worker is None else worker.state


def served(fleet: Fleet, model: str | None = None) -> list[str]:
    return [worker.name for worker in fleet.serving(model)]


def test_static_worker_joins_when_it_listens() -> None:
    """A URL whose engine is still loading stays JOINING, and is READY soon after it listens."""

    async def main() -> None:
        engine = MiniEngine(["x", "y"])
        await engine.start()
        await engine.refuse()
        async with fleet_of(engine.endpoint) as fleet:
            name = f"127.0.0.1:{engine.port}"
            await until(lambda: fleet.workers[name].failures > 0)
            assert state(fleet, name) is WorkerState.JOINING
            async with engine:
                await until(lambda: served(fleet, "x") == [name])
                assert (fleet.models(), served(fleet), served(fleet, "z")) == (["x", "y"], [name], [])
                assert fleet.serving("x") is fleet.serving("x")

    run(main())


def test_refused_worker_is_out_and_comes_back_with_other_models() -> None:
    """An engine that goes and comes back as another one serves the other model, without anybody's doing."""

    async def main() -> None:
        async with MiniEngine(["old"]) as engine, fleet_of(engine.endpoint) as fleet:
            name = f"127.0.0.1:{engine.port}"
            await until(lambda: served(fleet, "old") == [name])
            await engine.refuse()
            fleet.lost(name, Outcome.REFUSED)
            await until(lambda: (state(fleet, name), served(fleet)) == (WorkerState.DOWN, []))
            assert fleet.models() == ["old"]
            assert fleet._metrics.downs.by("worker") == {name: 1.0}
            engine.api.models = ["new"]
            await engine.start()
            await until(lambda: served(fleet, "new") == [name])
            assert fleet.models() == ["new"]

    run(main())


def test_ranks_behind_one_server_fail_together_and_are_drained_apart(redis_server: RedisServer) -> None:
    """What their server refuses concerns all of them, and nobody else; a drain is one rank's."""

    async def main() -> None:
        async with MiniEngine() as front, MiniEngine() as other, fleet_of(url=redis_server.url) as fleet:
            with Directory(redis_server.url) as directory:
                for rank in range(2):
                    await directory.join(f"w-dp{rank}", front, rank)
                await directory.join("other", other)
                await until(lambda: served(fleet) == ["other", "w-dp0", "w-dp1"])
                shown = worker_reports(fleet, lambda _: 0, 0.0)
                assert [report.data_parallel_rank for report in shown] == [None, 0, 1]
                fleet.drain("w-dp1", True)
                assert served(fleet) == ["other", "w-dp0"]
                fleet.drain("w-dp1", False)
                await front.refuse()
                fleet.lost("w-dp0", Outcome.BROKE)
                await until(lambda: served(fleet) == ["other"])
                assert (fleet.workers["w-dp0"].refusals, fleet.workers["w-dp1"].refusals) == (1, 0)
                await front.start()
                await until(lambda: served(fleet) == ["other", "w-dp0", "w-dp1"])

    run(main())


def test_silent_failure_is_found_by_probes() -> None:
    """A worker that stops answering well is DOWN though no request was sent to it; other models are noticed as well."""

    async def main() -> None:
        async with MiniEngine() as engine, fleet_of(engine.endpoint) as fleet:
            await until(lambda: len(fleet.serving("m")) == 1)
            engine.api.models = ["m", "adapter"]
            await until(lambda: len(fleet.serving("adapter")) == 1)
            engine.api.status = 503
            await until(lambda: not fleet.serving(None))
            assert next(iter(fleet.workers.values())).error == "/health: expected status 200, got 503"

    run(main())


def test_leases_come_and_go(redis_server: RedisServer) -> None:
    """A worker is found by its lease, out when that is gone, and a new incarnation of it begins afresh."""

    async def main() -> None:
        async with MiniEngine() as one, MiniEngine() as two, fleet_of(url=redis_server.url) as fleet:
            with Directory(redis_server.url) as directory:
                first = await directory.join("a", one)
                await directory.join("b", two)
                await until(lambda: served(fleet, "m") == ["a", "b"])
                assert fleet.workers["a"].ref == ref_of(first)
                assert fleet.redis_available
                await directory.leave(first)
                await until(lambda: served(fleet) == ["b"])
                assert "a" not in fleet.workers
                again = await directory.join("a", one)
                await until(lambda: served(fleet) == ["a", "b"])
                assert fleet.workers["a"].incarnation == again.incarnation

    run(main())


def test_worker_without_address_is_shown(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """It is no member; the setting is named, in the log once."""

    async def main() -> None:
        async with fleet_of(url=redis_server.url) as fleet:
            with Directory(redis_server.url) as directory:
                await directory.join("a", None)
                await until(lambda: "a" in fleet.unroutable)
                async with MiniEngine() as engine:
                    await directory.join("b", engine)
                    await until(lambda: served(fleet) == ["b"])
                assert "http_url" in fleet.unroutable["a"].why

    run(main())
    assert sum("http_url" in line for line in caplog.messages) == 1


def test_fleet_outlasts_redis(redis_server: RedisServer) -> None:
    """Redis killed, and back empty: every worker that answers stays, and one that does not enter itself again goes."""

    async def main() -> None:
        async with MiniEngine() as one, MiniEngine() as two, fleet_of(url=redis_server.url) as fleet:
            with Directory(redis_server.url) as directory:
                await directory.join("a", one)
                await directory.join("b", two)
                await until(lambda: served(fleet) == ["a", "b"])
                workers = dict(fleet.workers)
                redis_server.kill()
                await until(lambda: not fleet.redis_available)
                await asyncio.sleep(FAST.lease_ttl_s * 1.5)  # Longer than any lease of theirs could have lasted.
                assert served(fleet) == ["a", "b"]
                assert {fleet.lease_of(name) for name in "ab"} == {"kept"}
                await two.refuse()
                await until(lambda: served(fleet) == ["a"])
                await asyncio.to_thread(redis_server.start)
                await until(lambda: fleet.redis_available)
                await directory.join("a", one)  # Another incarnation: what matters here is that a lease is there.
                await until(lambda: "b" not in fleet.workers)
                await until(lambda: served(fleet) == ["a"] and fleet.lease_of("a") == "held")
                assert workers["a"] is not fleet.workers["a"]

    run(main())


def test_flush_of_redis_drops_nobody(redis_server: RedisServer) -> None:
    """All leases gone between two looks is a flush: nobody is out for a moment."""

    async def main() -> None:
        async with MiniEngine() as engine, fleet_of(url=redis_server.url, options=PATIENT) as fleet:
            with Directory(redis_server.url) as directory, redis_server.client() as client:
                record = await directory.join("a", engine)
                await until(lambda: served(fleet) == ["a"])
                worker = fleet.workers["a"]
                client.flushall()
                await until(lambda: fleet.lease_of("a") == "kept")
                assert served(fleet) == ["a"]
                await asyncio.to_thread(directory._index.join, record, lease_ttl_s=LEASE_S)
                await until(lambda: fleet.lease_of("a") == "held")
                assert fleet.workers["a"] is worker

    run(main())


def test_flush_of_redis_drops_nobody_who_is_slow_to_come_back(redis_server: RedisServer) -> None:
    """After a flush one worker is in Redis again before the other: the other stays all the same."""

    async def main() -> None:
        async with MiniEngine() as one, MiniEngine() as two, fleet_of(url=redis_server.url, options=PATIENT) as fleet:
            with Directory(redis_server.url) as directory, redis_server.client() as client:
                record = await directory.join("a", one)
                await directory.join("b", two)
                await until(lambda: served(fleet) == ["a", "b"])
                assert await fleet.share_drains()
                # On the loop: nothing that is seen in between is taken in before both are done.
                client.flushall()
                directory._index.join(record, lease_ttl_s=LEASE_S)
                await until(lambda: fleet.lease_of("b") == "kept")
                assert served(fleet) == ["a", "b"]

    run(main())


def test_static_worker_turns_into_its_record(redis_server: RedisServer) -> None:
    """The record of a server that was known by URL takes over its health and its drain, without a gap."""

    async def main() -> None:
        async with MiniEngine() as engine, fleet_of(engine.endpoint, url=redis_server.url) as fleet:
            name = f"127.0.0.1:{engine.port}"
            await until(lambda: served(fleet) == [name])
            with Directory(redis_server.url) as directory:
                await directory.join("a", engine)
                while name in fleet.workers:
                    assert len(fleet.serving("m")) == 1
                    await asyncio.sleep(0)
                assert served(fleet, "m") == ["a"]

    run(main())


def test_drain_of_a_url_is_kept_by_its_record(redis_server: RedisServer) -> None:
    """A drain that was asked for by URL holds for the record that takes over."""

    async def main() -> None:
        async with MiniEngine() as engine, fleet_of(engine.endpoint, url=redis_server.url) as fleet:
            name = f"127.0.0.1:{engine.port}"
            await until(lambda: served(fleet) == [name])
            fleet.drain(name, True)
            with Directory(redis_server.url) as directory:
                await directory.join("a", engine)
            await until(lambda: "a" in fleet.workers)
            assert state(fleet, "a") is WorkerState.DRAINING
            assert await fleet.share_drains()
            assert state(fleet, "a") is WorkerState.DRAINING

    run(main())


def test_drain_is_shared_and_ends_with_the_incarnation(redis_server: RedisServer) -> None:
    """A drain holds at once here and soon in the other replica, can be taken back there, and ends with its worker."""

    async def main() -> None:
        async with (
            MiniEngine() as engine,
            fleet_of(url=redis_server.url) as here,
            fleet_of(url=redis_server.url) as far,
        ):
            with Directory(redis_server.url) as directory:
                await directory.join("a", engine)
                await until(lambda: served(here) == served(far) == ["a"])
                here.drain("a", True)
                assert state(here, "a") is WorkerState.DRAINING
                await until(lambda: state(far, "a") is WorkerState.DRAINING)
                assert served(here) == served(far) == []
                far.drain("a", False)
                await until(lambda: served(here) == served(far) == ["a"])
                here.drain("a", True)
                assert await here.share_drains()
                await until(lambda: state(far, "a") is WorkerState.DRAINING)
                await directory.join("a", engine)
                await until(lambda: served(here) == served(far) == ["a"])

    run(main())


def test_drain_without_redis_is_told_later(redis_server: RedisServer) -> None:
    """A drain asked for while Redis is away holds here, and reaches the others when Redis is back."""

    async def main() -> None:
        async with MiniEngine() as engine:
            static = engine.endpoint
            async with fleet_of(static, url=redis_server.url) as here, fleet_of(static, url=redis_server.url) as far:
                name = f"127.0.0.1:{engine.port}"
                await until(lambda: served(here) == served(far) == [name])
                redis_server.kill()
                here.drain(name, True)
                assert not await here.share_drains()
                assert (state(here, name), served(far)) == (WorkerState.DRAINING, [name])
                await asyncio.to_thread(redis_server.start)
                await until(lambda: state(far, name) is WorkerState.DRAINING)
                assert state(here, name) is WorkerState.DRAINING

    run(main())


def test_load_reaches_the_worker(redis_server: RedisServer) -> None:
    """What a worker tells the store of its load is there, with when; a plain engine has none."""

    async def main() -> None:
        async with (
            MiniEngine() as engine,
            MiniEngine() as plain,
            fleet_of(plain.endpoint, url=redis_server.url) as fleet,
        ):
            with Directory(redis_server.url) as directory:
                record = await directory.join("a", engine)
            with contextlib.closing(RedisCoordinationStore(redis_server.url, timeout_s=5.0)) as store:
                await asyncio.to_thread(store.publish, ref_of(record), LOAD, (), (), ttl_s=60.0)
            await until(lambda: "a" in fleet.workers and fleet.workers["a"].load is not None)
            worker = fleet.workers["a"]
            assert worker.load is not None
            assert worker.load.load == LOAD
            assert worker.load_measured_at <= asyncio.get_running_loop().time()
            assert fleet.workers[f"127.0.0.1:{plain.port}"].load is None

    run(main())
