"""Asks workers that list LoRA adapters which of them are in use, each time that they have said what they serve.

Nobody waits for an answer, and none is needed: what an engine does not say is what this router has sent it.
"""

from __future__ import annotations

import asyncio
import logging

from ghostcacher_router.fleet.probes import ProbeFailed, Prober
from ghostcacher_router.fleet.worker import Worker

logger = logging.getLogger(__name__)

AT_A_TIME = 8
"""Pages of metrics are long, and are read on the event loop."""


class AdapterUses:
    """The questions that are under way, at most one for each worker. On the event loop only."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._at_a_time = asyncio.Semaphore(AT_A_TIME)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"AdapterUses(asking={len(self._tasks)})"

    def ask(self, worker: Worker) -> None:
        """Have a worker asked, if it lists any adapter. What it said before counts until it answers, or fails to."""
        if worker.adapters and worker.name not in self._tasks:
            task = self._tasks[worker.name] = asyncio.get_running_loop().create_task(self._ask(worker))
            task.add_done_callback(lambda _: self._tasks.pop(worker.name, None))

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, worker: Worker) -> None:
        async with self._at_a_time:
            try:
                use = await self._prober.adapter_use(worker.endpoint)
            except ProbeFailed as exc:
                logger.debug("worker %s: which adapters are in use is not known: %s", worker.name, exc)
                use = None
        worker.running_adapters = frozenset() if use is None else use.running
        if use is not None:
            worker.adapter_slots = use.slots
