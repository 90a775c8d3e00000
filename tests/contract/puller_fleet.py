"""A puller among owners on one fabric, for the suites of pullers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ghostcacher_connector.core.types import RankEndpoint, WorkerRecord
from ghostcacher_connector.transfer.base import Transport
from ghostcacher_connector.transfer.jobs import JobResult, PullJob, PullSource
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory

NAMESPACE = "n" * 32
SLOTS = 64


def record(worker: str, endpoint: RankEndpoint, namespace: str = NAMESPACE) -> WorkerRecord:
    return rank_record(worker, endpoint, namespace)


class Fleet:
    """Two owners on one fabric, and a puller with its own memory. own: the first owner is the puller's rank itself."""

    def __init__(self, *, own: bool = False, **options: Any) -> None:
        self.fabric = Fabric()
        self.memory = KvMemory(host_slots=SLOTS if own else 0)
        self.owners = {"w1": self.memory if own else KvMemory(), "w2": KvMemory()}
        self.transports = {
            name: MemoryTransport(self.fabric, owner.memories, owner.table, name=name)
            for name, owner in self.owners.items()
        }
        self.own = own
        self.clock_s = 100.0
        self.transport: Transport = options.pop("transport", None) or MemoryTransport(
            self.fabric, self.memory.memories, self.memory.table, name="me", clock=self.clock
        )
        self.puller = Puller(
            [*self.local(), self.transport],
            self.memory.rank,
            namespace=NAMESPACE,
            share=Share.of(0, 1, 1),
            loads=own,
            clock=self.clock,
            **options,
        )
        self.publish()

    def clock(self) -> float:
        return self.clock_s

    def local(self) -> list[Transport]:
        """Return the way to the own host slots, if the first owner is this rank."""
        if not self.own:
            return []
        engine, host = self.memory.memories
        return [LocalTransport((engine, host), self.memory.table, agent_name=self.agent("w1"), clock=self.clock)]

    def publish(self) -> None:
        endpoints = {name: transport.endpoint(rank=0) for name, transport in self.transports.items()}
        if self.own:
            self.puller.peers.know_own("w1", endpoints.pop("w1"))
        self.puller.update_peers([record(name, endpoint) for name, endpoint in endpoints.items()])

    def write(self, worker: str, slots: list[int], generations: list[int]) -> PullSource:
        """Fill slots of a worker, host slots if it is the own one; return them as a source."""
        own = self.own and worker == "w1"
        where, what = np.array(slots, dtype=np.int64) + SLOTS * own, np.array(generations, dtype=np.uint64)
        self.owners[worker].write(where, what)
        return PullSource(worker, b"" if own else self.owners[worker].table.incarnation, where, what)

    def run(self, *sources: PullSource, count: int = 3, seconds: float = 5.0, job_id: str = "j") -> JobResult:
        slots = np.arange(10, 10 + count, dtype=np.int64)
        self.puller.submit(PullJob(job_id, slots, sources, self.clock_s + seconds))
        return wait_for(self.puller)[0]

    def agent(self, worker: str) -> str:
        return self.transports[worker].agent_name


def wait_for(puller: Puller, count: int = 1) -> list[JobResult]:
    """Poll until so many jobs ended."""
    results: list[JobResult] = []

    def collected() -> bool:
        results.extend(puller.poll())
        return len(results) >= count

    wait_until(collected)
    return results


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.002)
