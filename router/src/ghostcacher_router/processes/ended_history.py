"""How processes that have ended had fared: without it the router's history would begin anew when all are replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ghostcacher_connector.core.dashboard_api import HistoryPoint
from ghostcacher_router.processes.merging import merged_points

STEP_S: Final = 5.0
AGE_S_MAX: Final = 3600.0
"""Intervals, and for how long: as in the history of a process that runs."""

_points = msgspec.json.Decoder(tuple[HistoryPoint, ...])


class EndedHistory:
    """The points of all of them in common intervals, as the supervisor keeps them: of the last hour at most."""

    def __init__(self) -> None:
        self._points: Sequence[HistoryPoint] = ()

    def __repr__(self) -> str:
        return f"EndedHistory({len(self._points)} points)"

    def __bool__(self) -> bool:
        return bool(self._points)

    def add(self, lines: Iterable[bytes], now: float) -> None:
        """Add the points of a process, as `encoded_points` returns them. now: in seconds since 1970."""
        points = [point for line in lines for point in decoded_points(line)]
        self._points = recent(merged_points((self._points, points), STEP_S), now)

    def encoded(self) -> bytes:
        """Return them for the processes that go on, in one line."""
        return encoded_points(self._points)


def recent(points: Iterable[HistoryPoint], now: float) -> tuple[HistoryPoint, ...]:
    """Return the points that are not too old. now: in seconds since 1970."""
    return tuple(point for point in points if point.at > now - AGE_S_MAX)


def encoded_points(points: Sequence[HistoryPoint]) -> bytes:
    """Return points in one line."""
    return msgspec.json.encode(points)


def decoded_points(line: bytes | str) -> tuple[HistoryPoint, ...]:
    """Return the points of a line that `encoded_points` has made."""
    return _points.decode(line)
