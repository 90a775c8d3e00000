"""The clock of a Redis server, as one client knows it: each reply that says the time sets it."""

from __future__ import annotations

import time
from collections.abc import Callable

KNOWN_S = 30.0
"""Longer after it was said the time is asked for: another server with another clock may have taken over."""


class ServerClock:
    """Seconds since the epoch by the server's clock. Any thread. clock: this process's own, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"ServerClock(said={self._said})"

    def said(self, seconds: bytes, us: bytes) -> float:
        """Note the time that a reply says, as TIME gives it; return it."""
        now = int(seconds) + int(us) / 1e6
        self._said = self._clock(), now
        return now

    def now(self, ask: Callable[[], float]) -> float:
        """Return the time. ask: asks the server, has `said` told, and returns it; called when it is not known."""
        if (said := self._said) is not None:
            at, now = said
            passed_s = self._clock() - at
            if passed_s < KNOWN_S:
                return now + passed_s
        return ask()
