"""What a router waits for before it listens, in bounded time: one that knows little is better than none."""

from __future__ import annotations

import asyncio
import logging
import time

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_router.admin.reports import not_ready
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.types import WorkerState

logger = logging.getLogger(__name__)

WARM_S_MAX = 5.0
"""Longest wait for Redis."""
FLEET_S_MAX = 1.0
"""Longest wait for the workers' first probes, after that: one that does not answer holds up nobody for longer."""
SUCCESSOR_S_MAX = 20.0
"""The same for a process that replaces one: that one serves meanwhile, and goes on when this one finds no worker."""
POLL_S = 0.01


async def wait_until_warm(routing: Routing, fleet: Fleet) -> None:
    """Wait until the router knows what the others have learned, and has probed its workers once."""
    sync = routing.sync
    deadline = time.monotonic() + WARM_S_MAX
    while sync is not None and not (sync.warm and routing.replicas is not None and _has_looked(fleet)):
        if time.monotonic() > deadline:
            logger.warning(
                "the router starts without what the others have learned, and keeps trying: %s",
                fleet.redis_error or routing.refused or "Redis does not answer",
            )
            return
        await asyncio.sleep(POLL_S)
    deadline = time.monotonic() + FLEET_S_MAX
    while not fleet.has_looked and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)


async def wait_until_of_use(fleet: Fleet) -> None:
    """Wait until every worker was probed. Raises GhostCacherError when none is ready by the end of the time."""
    deadline = time.monotonic() + SUCCESSOR_S_MAX
    while time.monotonic() < deadline:
        if fleet.has_looked and not_ready(fleet) is None:
            return
        await asyncio.sleep(POLL_S)
    if (why := not_ready(fleet)) is not None:
        raise GhostCacherError(f"{why}: the process that was to be replaced goes on")


def _has_looked(fleet: Fleet) -> bool:
    """Say whether Redis has told who the workers are, and each of them was probed once, with whatever result."""
    probed = all(worker.failures or worker.state is not WorkerState.JOINING for worker in fleet.workers.values())
    return fleet.redis_available and probed
