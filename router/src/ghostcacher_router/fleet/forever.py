"""Repeats a step of the fleet for as long as the router runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


def forever(step: Callable[[], Awaitable[object]], interval_s: float) -> asyncio.Task[None]:
    """Return a task that repeats a step, with a pause behind each, until it is cancelled."""

    async def run() -> None:
        while True:
            try:
                await step()
            except Exception:
                # A bug must not freeze what the router knows until it is restarted.
                logger.exception("unexpected error in the fleet's %s", getattr(step, "__name__", step))
            await asyncio.sleep(interval_s)

    return asyncio.create_task(run())
