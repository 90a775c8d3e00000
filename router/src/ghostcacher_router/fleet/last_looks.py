"""Looks after workers that have left the fleet with requests still under way: one whose lease has ended may hang.

A worker that ends well finishes what it has, and one that is killed resets its connections. One that hangs does
neither, so it is probed for a while longer, to be told from the others.
"""

from __future__ import annotations

import asyncio

from ghostcacher_router.fleet.watch import Watch, WatchDependencies
from ghostcacher_router.fleet.worker import Worker

LOOKS_MAX = 64
"""Workers that are looked after at a time; who leaves beyond that is not."""


class LastLooks:
    """The watches of workers that have left. On the event loop only."""

    def __init__(self, dependencies: WatchDependencies, for_s: float) -> None:
        """dependencies: of the watches of the fleet. for_s: how long a worker is looked after at most."""
        # Whatever state they are in says nothing of the fleet, which may have another worker of that name by now.
        self._dependencies = dependencies._replace(changed=lambda: None, went_down=lambda _: None)
        self._for_s = for_s
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"LastLooks({len(self._tasks)})"

    def begin(self, worker: Worker) -> None:
        """Look after a worker that has just left."""
        if len(self._tasks) < LOOKS_MAX:
            watch = Watch(worker, self._dependencies)
            task = asyncio.get_running_loop().create_task(watch.look_after(self._for_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Look after nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
