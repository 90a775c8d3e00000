"""A processor on which several engines compute, each of them as fast as the others: CPU engines on one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Processor:
    """What is computed at one time shares it equally. On the event loop alone."""

    def __init__(self, speeds: Sequence[float]) -> None:
        """speeds: of each that computes, where one does, two do, and so on, as a part of its speed alone; above 0."""
        self._speeds = speeds
        self._left_s: dict[asyncio.Future[None], float] = {}
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Processor({len(self._left_s)} at work)"

    async def work(self, seconds: float) -> None:
        """Compute what takes so long alone."""
        if seconds <= 0:
            return
        ended = asyncio.get_running_loop().create_future()
        self._pass_time()
        self._left_s[ended] = seconds
        self._plan()
        try:
            await ended
        finally:
            if ended in self._left_s:
                self._pass_time()
                del self._left_s[ended]
                self._plan()

    @property
    def _speed(self) -> float:
        return self._speeds[min(len(self._left_s), len(self._speeds)) - 1]

    def _pass_time(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._left_s:
            done_s = (now - self._since) * self._speed
            self._left_s = {each: left_s - done_s for each, left_s in self._left_s.items()}
        self._since = now

    def _plan(self) -> None:
        """Have the one that has least left end in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_s:
            wait_s = max(0.0, min(self._left_s.values())) / self._speed
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._end_first)

    def _end_first(self) -> None:
        self._pass_time()
        first = min(self._left_s, key=self._left_s.__getitem__)
        del self._left_s[first]
        self._plan()
        if not first.done():
            first.set_result(None)
