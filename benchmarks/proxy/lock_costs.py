"""What a ghost lock costs the process that takes it: CPU time of taking, confirming and releasing one.

In one process alone; agreed upon in memory that the processes of a router share; agreed upon with other routers in a
Redis on loopback, whose own CPU time is not counted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_router.ghostlock.sibling_locks import SiblingLocks, shared_file
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.store_calls import StoreThreads
from ghostcacher_router.types import Prompt

LOCKS = 2000
WARM = 100
BOUNDARIES = 16
"""Of a prompt of 16 KiB, each of 1 KiB: its locks have five keys."""


def lock_costs() -> list[tuple[str, float]]:
    """Return where a lock is agreed upon, and CPU us for one."""
    with RedisServer(tcp=True) as redis:
        store = RedisCoordinationStore(redis.url, timeout_s=5.0)
        memory = SiblingLocks(shared_file(), 0, time.monotonic)
        found = [
            ("this process alone", asyncio.run(_cost(None, None))),
            ("memory of the router's processes", asyncio.run(_cost(None, memory))),
            ("Redis, with other routers", asyncio.run(_cost(store, memory))),
        ]
        store.close()
    return found


async def _cost(store: CoordinationStore | None, memory: SiblingLocks | None) -> float:
    threads = StoreThreads(1, "gc-locks", limit_s=60.0)
    locks = SingleFlight(store, threads, time.monotonic, router="r", clock_offset=time.monotonic, count=lambda _: None)
    locks.siblings = memory
    prompts = [_prompt() for _ in range(LOCKS + WARM)]
    await _take(locks, prompts[:WARM])
    before = time.process_time()
    await _take(locks, prompts[WARM:])
    await locks.drain()
    seconds = time.process_time() - before
    threads.close()
    return 1e6 * seconds / LOCKS


async def _take(locks: SingleFlight, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        lock = locks.take("", prompt, -1, "worker", time.monotonic() + 60.0)
        assert lock is not None
        assert await locks.confirm(lock)
        locks.release(lock)


def _prompt() -> Prompt:
    ends = [1024 * (index + 1) for index in range(BOUNDARIES)]
    digests = [os.urandom(16) for _ in ends]
    return Prompt(ends, digests, (), os.urandom(32), None)
