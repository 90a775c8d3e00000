"""The cores on which several engines compute, each of them slower beside others: CPU engines on one machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Cores(NamedTuple):
    """What engines of one machine share. Speeds are parts of the speed of an engine that computes alone, above 0."""

    of_workers: Sequence[int]
    """The core, or the group of cores, on which each of them computes, from 0."""
    busy: Sequence[float]
    """Speed of one that has its core for itself where one core is busy, two are, and so on: they share memory, too."""
    shared: Sequence[float] = (1.0,)
    """What is left of that where one computes on its core, two do, and so on; beyond the last one in equal parts."""

    def speed(self, on_core: int, cores_busy: int) -> float:
        """Return the speed of each of so many that compute on one core, of so many that are busy."""
        known = min(on_core, len(self.shared))
        return self.busy[min(cores_busy, len(self.busy)) - 1] * self.shared[known - 1] * known / on_core


class Processor:
    """What is computed at one time shares it: that on one core its time, all of it memory. On the event loop alone."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._left_s: dict[asyncio.Future[None], float] = {}
        self._core: dict[asyncio.Future[None], int] = {}
        self._speeds: dict[int, float] = {}
        """Of what computes on each core that is busy."""
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Processor({len(self._left_s)} at work)"

    async def work(self, seconds: float, core: int) -> None:
        """Compute on a core what takes so long alone."""
        if seconds <= 0:
            return
        ended = asyncio.get_running_loop().create_future()
        self._pass_time()
        self._left_s[ended], self._core[ended] = seconds, core
        self._plan()
        try:
            await ended
        finally:
            if ended in self._left_s:
                self._pass_time()
                self._remove(ended)

    def _pass_time(self) -> None:
        now = asyncio.get_running_loop().time()
        passed_s = now - self._since
        for each, left_s in self._left_s.items():
            self._left_s[each] = left_s - passed_s * self._speeds[self._core[each]]
        self._since = now

    def _remove(self, job: asyncio.Future[None]) -> None:
        del self._left_s[job], self._core[job]
        self._plan()

    def _plan(self) -> None:
        """Have the one end in time that will be done first."""
        on_core = Counter(self._core.values())
        self._speeds = {core: self._cores.speed(count, len(on_core)) for core, count in on_core.items()}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_s:
            first = min(self._left_s, key=self._until)
            self._timer = asyncio.get_running_loop().call_later(self._until(first), self._end, first)

    def _until(self, job: asyncio.Future[None]) -> float:
        return max(0.0, self._left_s[job]) / self._speeds[self._core[job]]

    def _end(self, job: asyncio.Future[None]) -> None:
        self._pass_time()
        self._remove(job)
        if not job.done():
            job.set_result(None)


class Seat(NamedTuple):
    """Where one engine computes."""

    processor: Processor
    core: int

    async def work(self, seconds: float) -> None:
        """Compute what takes so long alone."""
        await self.processor.work(seconds, self.core)
