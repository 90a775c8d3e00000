"""Keeps what `Picker.place_now` has found out of requests that must wait, until `Picker.place` goes on with it.

Callers do so at once, unless the request's client leaves in between. So what nobody comes for is dropped after
ABANDONED_S: a place in a worker's queue, or a ghost lock, would be held for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from ghostcacher_router.types import Ask

T = TypeVar("T")

ABANDONED_S = 1.0


class Progress:
    """How far the placement of one request has come."""

    __slots__ = ("budget_ends_at", "honours_locks", "may_look_up", "newer_than", "waited")

    def __init__(self, *, honours_locks: bool) -> None:
        self.honours_locks = honours_locks
        """Whether ghost locks are regarded, and taken."""
        self.may_look_up = True
        """Whether it may still wait for the index."""
        self.newer_than: float | None = None
        """What the index said before that time does not count; loop clock, s."""
        self.waited = False
        """Whether it has waited for a confirmed lock."""
        self.budget_ends_at: float | None = None
        """End of its wait budget; loop clock, s. None before it has encountered a lock."""


class BegunRequests(Generic[T]):
    """On the event loop only."""

    def __init__(self, abandon: Callable[[T], None]) -> None:
        """abandon: takes what nobody has come for."""
        self._abandon = abandon
        self._kept: dict[str, tuple[Ask, T, asyncio.TimerHandle]] = {}

    def __repr__(self) -> str:
        return f"BegunRequests({len(self._kept)})"

    def keep(self, ask: Ask, found: T) -> None:
        """Keep what was found out of a request."""
        self.drop(ask.request_id)
        later = asyncio.get_running_loop().call_later(ABANDONED_S, self.drop, ask.request_id)
        self._kept[ask.request_id] = ask, found, later

    def has(self, ask: Ask) -> bool:
        """Say whether something of this very request is kept."""
        kept = self._kept.get(ask.request_id)
        return kept is not None and kept[0] is ask

    def pop(self, ask: Ask) -> T | None:
        """Return what is kept of this very request, once; None for nothing. Of another with its id it is dropped."""
        if not self.has(ask):
            self.drop(ask.request_id)
            return None
        _, found, later = self._kept.pop(ask.request_id)
        later.cancel()
        return found

    def drop(self, request_id: str) -> None:
        """Abandon what is kept under an id, if anything."""
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            kept[2].cancel()
            self._abandon(kept[1])
