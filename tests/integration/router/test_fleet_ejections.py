"""An ejection and what else decides whether a worker is used: over real sockets."""

from __future__ import annotations

import asyncio
import time

import msgspec

from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.outliers import ERRORS_MAX, RETURN_ANSWERS
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import WorkerState
from tests.support.index_parts import make_record
from tests.support.mock_engine import MiniEngine, until

FOR_EVER = FleetOptions(
    health_interval_s=0.05,
    backoff_first_s=0.02,
    backoff_max_s=0.05,
    joining_max_s=0.05,
    discover_interval_s=0.02,
    ejection_first_s=1e6,
    ejection_max_s=1e6,
)
"""An ejection does not end by itself before the test does."""


def served(fleet: Fleet) -> list[str]:
    return [worker.name for worker in fleet.serving(None)]


def eject(fleet: Fleet, name: str) -> None:
    for _ in range(ERRORS_MAX):
        fleet.failed(name, "500", "status 500", sure=True)
    assert name not in served(fleet)
    assert fleet.workers[name].state is WorkerState.READY
    assert fleet.why_ejected(name) is not None


def join(index: MemoryIndex, name: str, engine: MiniEngine) -> None:
    """Enter a new incarnation of a worker."""
    index.join(msgspec.structs.replace(make_record(name), http=engine.endpoint.url), lease_ttl_s=600.0)


def test_worker_that_returns_from_an_ejection_starts_slowly() -> None:
    """Whoever places requests is told how many it may have, until it has answered some."""

    async def main() -> None:
        index = MemoryIndex()
        options = FOR_EVER._replace(ejection_first_s=1000.0, ejection_max_s=1000.0, return_s=1e6)
        passed_s = 0.0
        fleet = Fleet(metrics=RouterMetrics(), index=index, options=options, clock=lambda: time.monotonic() + passed_s)
        async with MiniEngine() as engine, MiniEngine() as other:
            join(index, "a", engine)
            join(index, "b", other)
            await fleet.start()
            await until(lambda: served(fleet) == ["a", "b"])
            assert fleet.limits() == {}
            eject(fleet, "a")
            passed_s = 1000.0
            assert served(fleet) == ["a", "b"]
            limits = []
            for _ in range(RETURN_ANSWERS):
                limits.append(fleet.limits())
                fleet.answered("a")
            assert limits == [{"a": 1}, {"a": 2}, {"a": 4}, {"a": 8}]
            assert fleet.limits() == {}
            await fleet.stop()

    asyncio.run(asyncio.wait_for(main(), 280))


def test_ejection_ends_with_the_life_of_its_worker() -> None:
    """One that goes down has its probes decide from then on; another incarnation has no past. Neither waits."""

    async def main() -> None:
        index = MemoryIndex()
        fleet = Fleet(metrics=RouterMetrics(), index=index, options=FOR_EVER)
        async with MiniEngine() as engine, MiniEngine() as other:
            join(index, "a", engine)
            join(index, "b", other)
            await fleet.start()
            await until(lambda: served(fleet) == ["a", "b"])
            eject(fleet, "a")
            await engine.refuse()
            await until(lambda: fleet.workers["a"].state is WorkerState.DOWN)
            await engine.start()
            await until(lambda: served(fleet) == ["a", "b"])
            eject(fleet, "a")
            join(index, "a", engine)
            await until(lambda: served(fleet) == ["a", "b"])
            await fleet.stop()

    asyncio.run(asyncio.wait_for(main(), 280))
