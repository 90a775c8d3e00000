"""Tells of workers that hang, also of those that have left the fleet with requests still under way.

A worker hangs that answers no probe. One that refuses connections, or answers wrongly, does not: what it has under way
may still end well. A worker whose lease has ended may have done so, too: one that ends well finishes what it has, and
one that is killed resets its connections, but one that hangs does neither. So it is probed for a while longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ghostcacher_router.fleet.watch import Watch, WatchDependencies
from ghostcacher_router.fleet.worker import Worker

LOOKS_MAX = 64
"""Workers that have left and are probed further; who leaves beyond that is not."""


class HungWorkers:
    """Those who want to know of workers that hang, and the watches of workers that have left. On the loop only."""

    def __init__(self, look_s: float) -> None:
        """look_s: for how long a worker that has left is probed further, at most."""
        self._look_s = look_s
        self._listeners: list[Callable[[Worker, float], None]] = []
        self._looks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"HungWorkers(looks={len(self._looks)})"

    def when(self, tell: Callable[[Worker, float], None]) -> None:
        """Have a function called with each worker that hangs, and since when; again and again while it does."""
        self._listeners.append(tell)

    def tell(self, worker: Worker, since: float) -> None:
        """A worker hangs. since: when the first of its last probes began; loop clock, s."""
        for tell in self._listeners:
            tell(worker, since)

    def look_after(self, worker: Worker, dependencies: WatchDependencies) -> None:
        """Probe a worker further that has just left. dependencies: of its watch."""
        if len(self._looks) >= LOOKS_MAX:
            return
        # Whatever state it is in says nothing of the fleet, which may have another worker of that name by now.
        watch = Watch(worker, dependencies._replace(changed=lambda: None, went_down=lambda _: None))
        task = asyncio.get_running_loop().create_task(watch.look_after(self._look_s))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def stop(self) -> None:
        """Probe no worker further."""
        for task in self._looks:
            task.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)
