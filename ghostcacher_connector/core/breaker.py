"""Circuit breaker: after a failure nothing is tried for a moment."""

from __future__ import annotations

from collections.abc import Callable

BREAKER_S = 0.5
"""How long a breaker stays open: requests wait for one time-out, and the others do without meanwhile."""


class Breaker:
    """Open for a while after each failure, so that callers do not wait for one time-out after another.

    Thread-safe: a reader sees the state before or after a failure, and either is right.
    """

    def __init__(self, clock: Callable[[], float], *, open_s: float = BREAKER_S) -> None:
        self._clock = clock
        self._open_s = open_s
        self._open_until = float("-inf")

    def __repr__(self) -> str:
        return f"Breaker({'open' if self.open else 'closed'})"

    @property
    def open(self) -> bool:
        """Whether something failed a moment ago: trying is of no use now."""
        return self._clock() < self._open_until

    def trip(self, for_s: float | None = None) -> None:
        """Open for `for_s`, or for the usual time; never shorten what an earlier failure asked for."""
        self._open_until = max(self._open_until, self._clock() + (self._open_s if for_s is None else for_s))
