"""From an engine's load to the queue that a router sees: reporter, store, fleet and queues, on one clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.reporter import Reporter
from ghostcacher_router.fleet import discovery
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.signals.queue_estimate import PROGRESS_MAX_S, QueueEstimator
from tests.support.coordination_parts import make_load
from tests.support.index_parts import FakeClock, make_record

RATE = make_load().prefill_tokens_per_s


class SilentProber:
    """Never hears anything of any worker."""

    async def health(self, endpoint: object) -> None:  # noqa: ARG002 - whoever it is
        await asyncio.Event().wait()

    async def models(self, endpoint: object) -> tuple[()]:  # noqa: ARG002 - whoever it is
        await asyncio.Event().wait()
        return ()

    async def cache_tokens(self, endpoint: object) -> None:  # noqa: ARG002 - whoever it is
        await asyncio.Event().wait()

    async def adapter_use(self, endpoint: object) -> None:  # noqa: ARG002 - whoever it is
        await asyncio.Event().wait()


class Bench:
    """One worker that reports every 0.2 s, and one router that looks after each report."""

    def __init__(self) -> None:
        self.clock, self.queues = FakeClock(), QueueEstimator()
        self.record = make_record("w")
        self.store, self.index = MemoryCoordinationStore(clock=self.clock), MemoryIndex(clock=self.clock)
        self.index.join(self.record, lease_ttl_s=1e6)
        self.store.heartbeat("router-1", ttl_s=1e6)
        self.reporter = Reporter(
            self.store, ref_of(self.record), Recorder(), interval_s=0.2, applied=lambda _: True, clock=self.clock
        )
        self.fleet = Fleet(
            metrics=RouterMetrics(), index=self.index, store=self.store, prober=SilentProber(), clock=self.clock
        )

    async def run(self, seconds: float) -> None:
        """Let worker and router report and look for so long."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.advance(max(0.001, self.reporter.step()))
            await self.fleet._discovery.read_loads()

    def place(self, computed: int) -> None:
        now = self.clock()
        self.queues.sent(self.queues.reserve("w", computed, computed, now), now)

    @property
    def queue_ms(self) -> float:
        return self.queues.estimate(self.fleet.workers["w"], self.clock()).queue_ms


def test_idle_load_told_again_takes_nothing_off_the_queue() -> None:
    """An engine in a long step tells what it measured before; what it was sent since waits until it measures again."""

    async def main() -> None:
        bench = Bench()
        await bench.fleet._discovery.find_workers()
        bench.reporter.submit_load(make_load(0))
        measured_at = bench.clock()
        await bench.run(1.0)
        for number in range(1, 10):
            bench.place(int(RATE))
            await bench.run(0.5)
            assert bench.queue_ms >= number * 1e3 - PROGRESS_MAX_S * 1e3
            assert bench.fleet.workers["w"].load_measured_at == pytest.approx(measured_at)
        bench.reporter.submit_load(make_load(1, waiting_tokens=int(RATE)))
        await bench.run(0.5)
        assert bench.queue_ms <= 1e3
        await bench.fleet.stop()

    asyncio.run(main())


def test_whoever_waits_for_room_is_told_of_loads_and_of_workers() -> None:
    """Also when loads could not be read: what is known grows old then, and other rules hold."""

    async def main() -> None:
        bench = Bench()
        told: list[float] = []
        bench.fleet.when_changed(lambda: told.append(bench.clock()))
        await bench.fleet._discovery.find_workers()
        assert len(told) == 1
        await bench.fleet._discovery.read_loads()
        assert len(told) == 2
        bench.store.reachable = False
        await bench.fleet._discovery.read_loads()
        assert len(told) == 3
        await bench.fleet.stop()

    asyncio.run(main())


def test_worker_that_was_replaced_meanwhile_leaves_its_successor_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loads of others are handed out; the successor begins with an empty queue."""
    monkeypatch.setattr(discovery, "LOADS_AT_ONCE", 1)

    async def main() -> None:
        bench = Bench()
        other = replace(make_record("x"), http="http://x:8000")
        bench.index.join(other, lease_ttl_s=1e6)
        await bench.fleet._discovery.find_workers()
        before = dict(bench.fleet.workers)
        for record in (bench.record, other):
            bench.store.publish(ref_of(record), make_load(1), [], [], ttl_s=1e6)
        told: list[Worker] = []

        def reported(workers: Sequence[Worker]) -> None:
            if not told:  # The one whose turn is next is started again.
                last = next(record for record in (bench.record, other) if record.worker != workers[0].name)
                kept = [record for record in (bench.record, other) if record is not last]
                renewed = replace(last, incarnation=make_record().incarnation)
                bench.fleet._discovery._roster.reconcile([*kept, renewed])
            told.extend(workers)

        bench.fleet.when_reported(reported)
        await bench.fleet._discovery.read_loads()
        (first,) = told
        assert bench.fleet.workers[first.name] is before[first.name] is first
        (successor,) = (worker for worker in bench.fleet.workers.values() if worker is not first)
        assert successor is not before[successor.name]
        assert successor.load is None
        await bench.fleet.stop()

    asyncio.run(main())


def test_queues_are_told_of_new_loads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time, so that other tasks get their turn between, and before whoever waits for room."""
    monkeypatch.setattr(discovery, "LOADS_AT_ONCE", 2)

    async def main() -> None:
        bench = Bench()
        refs = [ref_of(bench.record)]
        for name in ("x", "y"):
            record = replace(make_record(name), http=f"http://{name}:8000")
            bench.index.join(record, lease_ttl_s=1e6)
            refs.append(ref_of(record))
        told: list[list[str]] = []

        def reported(workers: Sequence[Worker]) -> None:
            told.append(sorted(worker.name for worker in workers))
            asyncio.get_running_loop().call_soon(told.append, ["another task"])

        bench.fleet.when_reported(reported)
        bench.fleet.when_changed(lambda: told.append(["changed"]))
        await bench.fleet._discovery.find_workers()
        for ref in refs:
            bench.store.publish(ref, make_load(1), [], [], ttl_s=1e6)
        del told[:]
        await bench.fleet._discovery.read_loads()
        first, _, second, _, last = told
        assert (len(first), len(second), sorted(first + second), last) == (2, 1, ["w", "x", "y"], ["changed"])
        assert told[1] == told[3] == ["another task"]
        del told[:]
        bench.clock.advance(0.1)
        bench.store.publish(refs[1], make_load(2), [], [], ttl_s=1e6)
        await bench.fleet._discovery.read_loads()
        assert [names for names in told if names and names != ["another task"]] == [["x"], ["changed"]]
        await bench.fleet.stop()

    asyncio.run(main())
