"""How long the router takes to decide: reading and hashing a prompt, who holds how much of it, 64 forecasts, the pick.

    python -m benchmarks.router_decision [--short] [--workers 64]

A real Redis holds the blocks of 64 workers; the prefix map has learned as in a running router; all requests differ.
"local copy": what the index said less than a second ago is used, as for most requests of a busy router. "round trip":
the router has just forgotten it, and waits for Redis. Both count from the body's last byte to the placement. Target: a
p50 under 0.3 ms with the round trip. A bare PING by the same client, through the same thread, is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import uvloop

from benchmarks.harness import RedisServer
from benchmarks.harness.program import run_program
from benchmarks.harness.report import milliseconds, percentile, table
from benchmarks.proxy.bodies import MARK, chat_body, corpus
from benchmarks.proxy.connectors import LEASE_S, NAMESPACE, Chains, Seen, held_blocks, load_of, record_of
from benchmarks.proxy.running import two_cores
from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_router.build import THREADS, Routing
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.placement.context import Dependencies
from ghostcacher_router.placement.picker import Options
from ghostcacher_router.ports import Offload
from ghostcacher_router.prefix_map import PendingPrompts, PrefixMap
from ghostcacher_router.prompt import parse_body, parse_now
from ghostcacher_router.store_calls import StoreThreads
from ghostcacher_router.types import Ask, Endpoint, Outcome, Placement, Reason, WorkerState
from ghostcacher_simulator.connector import entries_of

KIB = 1 << 10
SIZES = (2 * KIB, 32 * KIB, 256 * KIB)
PATH = "/v1/chat/completions"
SEED = 5
TARGET_S = 0.3e-3
REPORT_DECISIONS = 100
"""Decisions between two reports of every worker's load: some tens of milliseconds."""
LEARNED = 8
"""Prompts of each project that are learned from, and so the projects that are asked for."""


class ReadyWorker(Worker):
    """An engine server that is always ready."""

    def __init__(self, record: WorkerRecord, port: int) -> None:
        super().__init__(record.worker, Endpoint("127.0.0.1", port, False, ""), record, time.monotonic())
        self.state = WorkerState.READY
        self.models = frozenset({"mock"})
        self.report()

    def report(self) -> None:
        """Report its load anew: a report of some seconds ago would count for nothing."""
        self.load = StampedLoad(time.time(), load_of(running=4))
        self.load_measured_at = time.monotonic()


class Fleet:
    """Workers that stay; see ghostcacher_router/ports.py."""

    def __init__(self, count: int) -> None:
        listed = [ReadyWorker(record_of(number, 1000 + number), 1000 + number) for number in range(count)]
        self.listed: Sequence[ReadyWorker] = listed
        self.workers: Mapping[str, ReadyWorker] = {worker.name: worker for worker in listed}
        self._reported: Callable[[Sequence[ReadyWorker]], None] = lambda _: None

    def serving(self, model: str | None) -> Sequence[ReadyWorker]:  # noqa: ARG002 - one model
        return self.listed

    def base_of(self, model: str | None) -> None: ...

    def models(self) -> Sequence[str]:
        return ["mock"]

    def limits(self) -> Mapping[str, int]:
        return {}

    def lost(self, name: str, outcome: Outcome) -> None:
        raise AssertionError(f"{name}, {outcome}: nothing is sent here")

    def doubts(self, name: str) -> bool:  # noqa: ARG002 - nobody fails
        return False

    def failed(self, name: str, kind: str, why: str, *, sure: bool) -> None:  # noqa: ARG002
        raise AssertionError(f"{name}, {kind}, {why}: nothing is sent here")

    def when_down(self, tell: Callable[[str], None]) -> None:
        """Nobody goes down."""

    def when_reported(self, tell: Callable[[Sequence[ReadyWorker]], None]) -> None:
        self._reported = tell

    def report(self) -> None:
        """Have every worker report anew."""
        for worker in self.listed:
            worker.report()
        self._reported(self.listed)

    def answered(self, name: str) -> None:
        """Nobody watches the health of these."""


class Times(NamedTuple):
    """Seconds of each decision, and of the hashing in it. forecast: share of picks that knew all they wanted."""

    decision: list[float]
    hashing: list[float]
    forecast: float


class Bench:
    """A router's routing over one Redis, and what was learned of bodies of one size."""

    def __init__(self, index: RedisIndex, fleet: Fleet, offload: Offload, size: int) -> None:
        self._size, self._index, self._fleet = size, index, fleet
        self._text = PrefixMap("bench")
        self._source = corpus()
        self._bodies = [chat_body(self._source, project, size, stream=True) for project in range(LEARNED)]
        self._number = 0
        dependencies = Dependencies(
            fleet, self._text, PendingPrompts(), RouterMetrics(), time.monotonic, random.Random(1), offload, offload
        )
        self.routing = Routing(dependencies, index=index, store=None, router="bench", options=Options(ghost_lock=False))

    def body(self, project: int) -> bytes:
        """Return a request that was never made before."""
        self._number += 1
        return self._bodies[project].replace(MARK.encode(), b"%016x" % (self._number * 0x9E3779B97F4A7C15 % 2**64))

    def learn(self) -> None:
        """Fill the prefix map from some prompts of each project, and have every worker hold the project's blocks."""
        chains = Chains()
        for project in range(LEARNED):
            for _ in range(LEARNED):
                prompt = parse_body(PATH, self.body(project), {}, SEED).prompt
                assert prompt is not None
                chain, common = chains.of(Seen(0, project, self._size, 1, "id"))
                self._text.learn(prompt, chain, NAMESPACE)
            blocks = held_blocks(chains.shared(project, common))
            for worker in self._fleet.listed:
                self._index.apply(worker.ref, entries_of(blocks), [], lease_ttl_s=LEASE_S)

    async def measure(self, count: int, *, forget: bool) -> Times:
        """Decide `count` times. forget: what the index has said, before each."""
        decision, hashing, forecast = [], [], 0
        for number in range(count):
            body = self.body(number % LEARNED)
            if forget:
                self.routing.state.locations.clear()
            if number % REPORT_DECISIONS == 0:
                self._fleet.report()
            began = time.perf_counter()
            shape = parse_now(PATH, body, {}, SEED)
            assert shape is not None
            hashed = time.perf_counter()
            ask = Ask(f"r{number}", "POST", PATH, shape, {})
            placed: Placement | None = self.routing.picker.place_now(ask)
            if placed is None:
                placed = await self.routing.picker.place(ask)
            decision.append(time.perf_counter() - began)
            hashing.append(hashed - began)
            forecast += placed.reason is Reason.FORECAST
            placed.sent()
            placed.ended(Outcome.DONE, 200)
            await asyncio.sleep(0)
        return Times(decision, hashing, forecast / count)


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99."""
    return percentile(seconds, 50), percentile(seconds, 99)


def report(rows: Sequence[tuple[int, Times, Times]], ping: Sequence[float]) -> str:
    """Return the table. rows: size of the body, decisions by the local copy, decisions with the round trip."""

    def both(seconds: Sequence[float]) -> str:
        return " / ".join(map(milliseconds, quantiles(seconds)))

    lines = []
    for size, local, remote in rows:
        p50 = quantiles(remote.decision)[0]
        verdict = f"0.3 ms {'ok' if p50 < TARGET_S else 'MISSED'}"
        lines.append(
            [
                f"{size // KIB} KiB",
                both(local.hashing),
                both(local.decision),
                both(remote.decision),
                verdict,
                f"{100 * min(local.forecast, remote.forecast):.0f} %",
            ]
        )
    headers = ["p50 / p99", "hashing", "local copy", "with the round trip", "target", "by forecast"]
    return f"{table(headers, lines)}\nPING through the thread: {both(ping)}"


async def timed(call: Callable[[], Coroutine[Any, Any, object]], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times


async def measure_all(index: RedisIndex, workers: int, count: int) -> str:
    fleet = Fleet(workers)
    for worker in fleet.listed:
        assert worker.record is not None
        index.join(worker.record, lease_ttl_s=LEASE_S)
    offload = StoreThreads(THREADS, "bench", limit_s=60.0)

    async def ping() -> None:
        await offload(index.ping)

    pings = await timed(ping, count)
    rows = []
    for size in SIZES:
        bench = Bench(index, fleet, offload, size)
        bench.learn()
        await bench.measure(LEARNED * 8, forget=False)
        local = await bench.measure(count, forget=False)
        rows.append((size, local, await bench.measure(count, forget=True)))
        await bench.routing.stop()
    offload.close()
    return report(rows, pings)


def run(chosen: argparse.Namespace) -> int:
    """Measure and print; return 0."""
    cores = two_cores()
    with RedisServer() as redis:
        os.sched_setaffinity(redis.process.pid, {cores.others})
        os.sched_setaffinity(0, {cores.proxy})
        index = RedisIndex(redis.url, timeout_s=1.0)
        try:
            print(uvloop.run(measure_all(index, chosen.workers, 200 if chosen.short else 2_000)))
        finally:
            index.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_decision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="fewer decisions")
    parser.add_argument("--workers", type=int, default=64)
    chosen = parser.parse_args(argv)
    return run_program(lambda: run(chosen))


if __name__ == "__main__":
    sys.exit(main())
