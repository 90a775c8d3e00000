"""The feed's process, kept by the supervisor: see `ghostcacher_router.feed` for what it does.

Nothing waits for it, and nothing ends when it cannot be started: the children read Redis themselves meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.processes.child import Child
from ghostcacher_router.processes.seat import FeedStart
from ghostcacher_router.processes.siblings import FEED

logger = logging.getLogger(__name__)

SILENCE_S_MAX = 30.0
"""A feed whose event loop has not turned for so long is killed, and started again."""
STABLE_S = 60.0
"""A feed that ran for so long did not fail for how it was started."""
END_S = 5.0


class FeedProcess:
    """The feed of some settings; none where they have no Redis. On the event loop only."""

    def __init__(self, folder: Path, number: int, settings: RouterSettings) -> None:
        """folder: for its unix socket. number: no two feeds in a folder have the same."""
        self.path = str(folder / f"{FEED}.{number}") if settings.redis else ""
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"FeedProcess({self.path!r}, runs={self._task is not None})"

    def begin(self) -> None:
        """Start it, and from now on start it again whenever it has ended."""
        if self.path and self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """End it, in bounded time. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        start, backoff, now = FeedStart(self.path, self._settings), Backoff(), asyncio.get_running_loop().time
        while True:
            since = now()
            try:
                child = await Child.started(start)
            except OSError as exc:
                logger.error("%s cannot be started: %s", start.name, exc)
                await asyncio.sleep(backoff.failed(since))
                continue
            try:
                status = await child.end_or_silence(SILENCE_S_MAX)
            except asyncio.CancelledError:
                child.signal(signal.SIGTERM)
                await child.end_within(END_S)
                raise
            finally:
                Path(self.path).unlink(missing_ok=True)
            logger.error(
                "%s (pid %d) has ended (%d), and is started again: each process reads Redis itself until then",
                start.name,
                child.pid,
                status,
            )
            if now() - since >= STABLE_S:
                backoff.succeeded()
            await asyncio.sleep(backoff.failed(now()))
