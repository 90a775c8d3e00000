"""Keeps the log short when the same thing happens with each request."""

from __future__ import annotations

INTERVAL_S = 10.0
"""Between two lines of one kind. Each says how often it happened."""


class RareLines:
    """When a line of each kind may be logged again."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"RareLines({self._logged_at})"

    def due(self, kind: str, now: float) -> bool:
        """Say whether a line of this kind is to be logged now, as its caller then does. kind: one of few. now: in s."""
        if now - self._logged_at.get(kind, -INTERVAL_S) < INTERVAL_S:
            return False
        self._logged_at[kind] = now
        return True
