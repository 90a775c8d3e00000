"""One rank with a host tier and no engine: real memory, real NIXL, the real runtime."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.jobs import CopyJob, CopyResult, JobResult, PullJob, PullSource
from ghostcacher_connector.transfer.shares import Share
from ghostcacher_connector.worker.host_memory import GIB, open_host_memory
from ghostcacher_connector.worker.rank import RankRuntime
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory

NAMESPACE = "n" * 32
NO_REDIS = "redis://127.0.0.1:1"
"""Nothing listens there."""

SLOTS, HOST_SLOTS = 16, 8
WAIT_S = 60.0


def same(count: int, generation: int) -> Generations:
    return np.full(count, generation, dtype=np.uint64)


class TierRank:
    """A rank of a worker. Host slots are numbered from 0 here. Use as a context manager."""

    def __init__(self, worker: str = "w", *, rank: int = 0, layout: str = "layers", **settings: Any) -> None:
        self.worker = worker
        self.memory = KvMemory(SLOTS, 3, 4096, layout)
        size_gib = HOST_SLOTS * self.memory.rank.bytes_per_slot / GIB
        self.host = open_host_memory(size_gib, self.memory.rank, ranks=1)
        assert self.host is not None
        self.memory.adopt(self.host.slots)
        self.recorder = Recorder()
        self.runtime = RankRuntime(
            Settings(redis_url=NO_REDIS, transports=("nixl",), host_tier_gib=size_gib, **settings),
            self.memory.rank,
            self.memory.table,
            self.recorder,
            worker=worker,
            share=Share.of(rank, rank + 1, rank + 1),
            namespace=NAMESPACE,
            scratch_slot=SLOTS - 1,
            host=self.host,
        )
        self._jobs = 0

    def __enter__(self) -> TierRank:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.table.renew_incarnation()  # as adapters do: the memory of a rank outlives it within one process
        self.runtime.stop()

    def record(self) -> WorkerRecord:
        """Return the record of a worker of this rank alone."""
        return rank_record(self.worker, self.runtime.endpoint, NAMESPACE)

    def write(self, slots: Slots, generation: int) -> None:
        """Compute blocks in engine slots."""
        self.memory.write(slots, same(len(slots), generation))

    def submit_copy(self, engine: Slots, host: Slots, generation: int) -> None:
        """Order a copy of blocks of a generation into host slots, which get the same one."""
        assert self.runtime.copier is not None
        self.memory.table.bump(host + SLOTS, same(len(host), generation))
        self._jobs += 1
        self.runtime.copier.submit(CopyJob(self._jobs, engine, same(len(engine), generation), host + SLOTS))

    def copy_down(self, engine: Slots, host: Slots, generation: int) -> CopyResult:
        """Copy, and wait for the result."""
        assert self.runtime.copier is not None
        self.submit_copy(engine, host, generation)
        (result,) = self.runtime.copier.poll(wait_s=WAIT_S)
        return result

    def source(self, host: Slots, generation: int, incarnation: bytes = b"") -> PullSource:
        """Return host slots of this rank as a source; for itself, if no incarnation is given."""
        return PullSource(self.worker, incarnation, host + SLOTS, same(len(host), generation))

    def submit_load(self, source: PullSource, engine: Slots) -> None:
        self._jobs += 1
        self.runtime.puller.submit(PullJob(str(self._jobs), engine, (source,), time.monotonic() + WAIT_S))

    def load(self, source: PullSource, engine: Slots) -> JobResult:
        """Fill engine slots from a source, this rank's own or another's, and wait for the result."""
        self.submit_load(source, engine)
        (result,) = self.runtime.puller.poll(wait_s=WAIT_S)
        return result
