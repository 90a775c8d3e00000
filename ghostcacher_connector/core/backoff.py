"""When to try again what has failed."""

from __future__ import annotations

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


def doubled_s(first_s: float, max_s: float, times: int) -> float:
    """Return `first_s`, doubled so many times, and `max_s` at most; in seconds."""
    return min(max_s, first_s * 2.0 ** min(times, 16))


class Backoff:
    """Doubles the pause after each failure, up to a bound; one success ends it. Not thread-safe: the owner locks."""

    def __init__(self, first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self.failures = 0
        self._until = float("-inf")

    def __repr__(self) -> str:
        return f"Backoff(failures={self.failures}, until={self._until:.3f})"

    def ready(self, now: float) -> bool:
        """Return whether the pause is over."""
        return now >= self._until

    def failed(self, now: float) -> float:
        """Count a failure; return the pause that begins now, in seconds."""
        pause_s = doubled_s(self._first_s, self._max_s, self.failures)
        self.failures += 1
        self._until = now + pause_s
        return pause_s

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self._until = float("-inf")
