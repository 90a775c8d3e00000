"""What was found in Redis and not believed: counted by kind and reason, and said in the log, not too often."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ghostcacher_connector.core.errors import DigestMismatch, IndexReplyTooLarge, ValueExpired

logger = logging.getLogger(__name__)

QUIET_S = 60.0
"""One kind for one reason is said again after this time."""


class Refusals:
    """Counts refusals for one client of Redis. Any thread. where: the Redis, for people. clock: in seconds."""

    def __init__(self, where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._clock = where, clock
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._quiet_until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Refusals({self.counts()})"

    def note(self, kind: str, why: Exception, count: int = 1) -> None:
        """Note values that were refused. kind: "load", "drain" and so on; one of few."""
        what, now = f"{kind}: {reason_of(why)}", self._clock()
        with self._lock:
            total = self._counts[what] = self._counts.get(what, 0) + count
            silent = now < self._quiet_until.get(what, float("-inf"))
            if not silent:
                self._quiet_until[what] = now + QUIET_S
        if not silent:
            logger.warning("Redis at %s: refused %s (%d so far): %s", self._where, what, total, why)

    def counts(self) -> dict[str, int]:
        """Return how many were refused so far, by "kind: reason"."""
        with self._lock:
            return dict(self._counts)


def reason_of(why: Exception) -> str:
    """Return why a value was refused, as one of a few words."""
    if isinstance(why, IndexReplyTooLarge):
        return "too large"
    if isinstance(why, ValueExpired):
        return "too old"
    return "not authentic" if isinstance(why, DigestMismatch) else "malformed"
