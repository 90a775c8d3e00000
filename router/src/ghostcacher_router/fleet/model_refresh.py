"""Asks workers for their models out of turn: LoRA adapters are loaded and unloaded while engines run.

Done when a request names a model that nobody is known to serve, and after a request that loads or unloads an adapter.
However many such requests come, workers are asked once in `PAUSE_S` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ghostcacher_router.fleet.probes import ProbeFailed, Prober
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.types import WorkerState

PAUSE_S = 1.0
"""An adapter that was loaded behind the router's back is known so long after, once it is asked for."""
WAIT_S = 1.0
"""Bound of a request's wait: a worker that hangs must not hold it up for long."""
AGAIN_S = 0.1
"""Between two rounds when models have changed during the first: whoever waits then has to see the second, too."""
AT_A_TIME = 32
_UP = (WorkerState.READY, WorkerState.DRAINING)


class ModelRefresh:
    """One such round after the other, for one fleet. On the event loop only."""

    def __init__(
        self,
        prober: Prober,
        workers: Callable[[], Iterable[Worker]],
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        """Make one. changed: called after the models of a worker have changed."""
        self._prober, self._workers, self._clock, self._changed = prober, workers, clock, changed
        self._began_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def __repr__(self) -> str:
        return f"ModelRefresh(running={self._running})"

    @property
    def due(self) -> bool:
        """Whether `wait` may learn something: a round is under way, or the last one began `PAUSE_S` ago."""
        return self._running or self._clock() - self._began_at >= PAUSE_S

    @property
    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def wait(self) -> None:
        """Have all workers asked, if that is due, and wait for their answers, at most `WAIT_S`."""
        if not self.due:
            return
        if not self._running:
            self._start()
        assert self._task is not None
        await asyncio.wait([self._task], timeout=WAIT_S)

    def soon(self) -> None:
        """Have all workers asked now: their models have changed. Another round follows one that is under way."""
        if self._running:
            self._again = True
        else:
            self._start()

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        at_a_time = asyncio.Semaphore(AT_A_TIME)
        self._again = True
        while self._again:
            self._again, self._began_at = False, self._clock()
            # Data-parallel ranks behind one server are asked by its first.
            servers = {worker.endpoint: worker for worker in self._workers() if worker.state in _UP}
            await asyncio.gather(*(self._ask(worker, at_a_time) for worker in servers.values()))
            if self._again:
                await asyncio.sleep(AGAIN_S)

    async def _ask(self, asked: Worker, at_a_time: asyncio.Semaphore) -> None:
        async with at_a_time:
            try:
                models = await self._prober.models(asked.endpoint)
            except ProbeFailed:
                return  # Whether it is well is not judged here.
        for worker in self._workers():
            same = worker.endpoint == asked.endpoint and worker.state in _UP
            if same and worker.serves(models, self._clock()):
                self._changed()
