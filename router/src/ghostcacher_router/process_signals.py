"""What the operating system's signals do to a router.

    SIGTERM, SIGINT      the first ends it in order (no new requests, those in flight may end), the second at once
    SIGHUP               it reads its settings again, and takes over those that change nothing in flight
    SIGUSR1, SIGUSR2     nothing: its log goes to standard error, so that there is no file to open again

What is left to its default would end the process with everything that is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from os import _exit

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.config import RouterSettings

logger = logging.getLogger(__name__)

SIGNAL_STATUS_BASE = 128
"""A process that was ended by signal n ends with status 128 + n, as shells report it."""

CUT_S = 0.1
"""From cutting the connections to the end of the process: the loop closes them meanwhile."""

RELOADED = ("log_level", "access_log", "access_log_prompts", "drain_timeout_s")
"""The settings that SIGHUP takes over."""


class ProcessSignals:
    """The signal handlers of one router. On the event loop only."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        read_again: Callable[[], RouterSettings],
        take_over: Callable[[RouterSettings], None],
        cut: Callable[[], None],
    ) -> None:
        """Prepare them; `install` begins.

        settings: those in force.
        read_again: returns the settings as they are given now. Raises ConfigError.
        take_over: puts those of `RELOADED` in force.
        cut: ends all connections at once.
        """
        self._settings, self._read_again, self._take_over, self._cut = settings, read_again, take_over, cut
        self._ending = asyncio.Event()
        self._signalled = False
        self.status = 0
        """The exit status: 0 after an end in order."""

    def __repr__(self) -> str:
        return f"ProcessSignals(ending={self._ending.is_set()})"

    def install(self) -> None:
        """Handle the signals of this process from now on, in the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, logger.info, "%s: nothing to do", number.name)

    async def wait_for_end(self) -> None:
        """Return when the router is to end in order."""
        await self._ending.wait()

    def end(self) -> None:
        """Have the router end in order, as the first signal to end does, without a signal. Idempotent."""
        self._ending.set()

    def _end(self, number: signal.Signals) -> None:
        if not self._signalled:
            self._signalled = True
            self._ending.set()
            return
        logger.warning("%s again: ending at once", number.name)
        self.status = SIGNAL_STATUS_BASE + number
        self._cut()
        asyncio.get_running_loop().call_later(CUT_S, _exit, self.status)

    def _reload(self) -> None:
        try:
            found = self._read_again()
        except ConfigError as exc:
            logger.error("SIGHUP: the settings stay as they are: %s", exc)
            return
        before, self._settings = self._settings, found
        changed = [name for name in found.__struct_fields__ if getattr(found, name) != getattr(before, name)]
        self._take_over(found)
        if later := [name for name in changed if name not in RELOADED]:
            logger.warning("SIGHUP: these settings have changed, and need a restart: %s", ", ".join(later))
        taken = [name for name in changed if name in RELOADED]
        logger.info("SIGHUP: settings read again; changed: %s", ", ".join(taken) or "none")
