"""Asks plain engines how much their caches hold, each when it begins to answer: routing models those caches.

Those with a connector report it. Nobody waits for an answer, and none is needed: what an engine does not say is learned
from how soon its answers begin.
"""

from __future__ import annotations

import asyncio
import logging

from ghostcacher_router.fleet.probes import ProbeFailed, Prober
from ghostcacher_router.fleet.worker import Worker

logger = logging.getLogger(__name__)

AT_A_TIME = 8
"""Pages of metrics are long, and are read on the event loop."""


class CacheSizes:
    """The questions that are under way. On the event loop only."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._at_a_time = asyncio.Semaphore(AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"CacheSizes(asking={len(self._tasks)})"

    def ask(self, worker: Worker) -> None:
        """Have a worker asked, unless it has a connector. What it said before counts until it answers, or fails to."""
        if worker.record is None:
            task = asyncio.get_running_loop().create_task(self._ask(worker))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, worker: Worker) -> None:
        async with self._at_a_time:
            try:
                worker.cache_tokens = await self._prober.cache_tokens(worker.endpoint)
            except ProbeFailed as exc:
                worker.cache_tokens = None
                logger.debug("worker %s: how much its cache holds is not known: %s", worker.name, exc)
                return
        if worker.cache_tokens is not None:
            logger.info("worker %s: its cache holds %d tokens", worker.name, worker.cache_tokens)
