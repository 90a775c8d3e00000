"""One ghost lock: the single-flight lease on a cold prefix. single_flight.py says how it begins and ends."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ghostcacher_router.types import Prompt

KEYS_MAX = 16
KIB = 1024

CONFIRM_SHARE = 0.5
CONFIRM_MIN_S, CONFIRM_MAX_S = 0.02, 0.25
"""A request waits for the store to confirm its lock for so much of the time until its prompt is computed, within these
bounds. Who goes on without an answer may compute what another router has computed, too: as many times as there are
routers, where the store is slow. The upper bound is for a store that does not answer at all, until its time-out."""


class GhostLock:
    """A lease on one cold part of a prompt, which a worker is computing. Times are the loop's clock, in seconds."""

    __slots__ = (
        "_changed",
        "_keys",
        "confirmed",
        "digests",
        "expires_at",
        "ours",
        "ready_at",
        "released",
        "seen_at",
        "sibling_token",
        "taken_at",
        "token",
        "worker",
    )

    def __init__(
        self,
        digests: Sequence[bytes],
        keys: Sequence[bytes] | Callable[[], Sequence[bytes]],
        worker: str,
        *,
        taken_at: float,
        ready_at: float,
        ours: bool,
    ) -> None:
        """keys: what `keys` returns, or how to find that."""
        self.digests = digests
        """The digests of the boundaries that it covers, with their namespace's salt: its places in the lock table."""
        self._keys: tuple[bytes, ...] | Callable[[], Sequence[bytes]] = keys if callable(keys) else tuple(keys)
        self.worker = worker
        """The worker that computes, the *owner*."""
        self.taken_at = taken_at
        """When this router took it, or learned of it."""
        self.ready_at = ready_at
        """When the owner will have computed it, as forecast."""
        self.ours = ours
        """Whether a request of this process holds it."""
        self.token: int | None = None
        """The store's fencing token; None while the store has not granted it."""
        self.sibling_token: int | None = None
        """The fencing token among the processes of a router; None of other routers', and where there is one process."""
        self.confirmed = not ours
        """Whether requests may count on it: the store has granted it, or has not answered in time."""
        self.released = False
        """Whether it is over: computed, failed, lost or taken over."""
        self.expires_at = float("inf")
        """When it is over by itself."""
        self.seen_at = float("-inf")
        """When the store was last asked whether another router still holds it."""
        self._changed: asyncio.Event | None = None
        """None while nobody waits."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Return the subset of the digests that are keys in the store.

        Found when they are asked for first: a router that is alone hardly ever does.
        """
        if callable(self._keys):
            self._keys = tuple(self._keys())
        return self._keys

    @property
    def changed(self) -> asyncio.Event:
        """Return what is set at its next change: when it is confirmed, or is over.

        Made when it is asked for first: for most locks nobody ever waits.
        """
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    @property
    def is_awaited(self) -> bool:
        """Return whether somebody may wait for its next change."""
        return self._changed is not None

    def wake(self) -> None:
        """Wake who waits for a change. Who waits from now on waits for the next one."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def __repr__(self) -> str:
        whose = "ours" if self.ours else "another router's" if self.sibling_token is None else "a sibling's"
        return f"GhostLock(worker={self.worker}, {whose}, token={self.token}, released={self.released})"


def confirm_by(lock: GhostLock) -> float:
    """Return how long requests wait for a lock of this router to be confirmed; loop clock, s."""
    share_s = CONFIRM_SHARE * (lock.ready_at - lock.taken_at)
    return lock.taken_at + min(CONFIRM_MAX_S, max(CONFIRM_MIN_S, share_s))


class EncounteredLock(NamedTuple):
    """A ghost lock that covers a part of a request's prompt."""

    namespace: str
    """Whose blocks the owner computes: workers of other namespaces cannot use them."""
    lock: GhostLock
    boundary: int
    """Index of the deepest boundary of the request's prompt that the lock covers."""


def lock_boundaries(prompt: Prompt, free: Sequence[int]) -> list[int]:
    """Return which boundaries to lock in the store: the last end of each kind of section, and powers of two KiB.

    free: indexes of the boundaries that can be locked, ascending, at least one.
    Two prompts with a common prefix have one of these in common, wherever the cold part of each begins, unless the
    common prefix is less than half of it. The deepest ones are kept.
    """
    ends, chosen, power = prompt.ends, set(dict(prompt.section_ends).values()), KIB
    while power <= ends[free[-1]]:
        if power >= ends[free[0]] and ends[index := bisect_left(ends, power)] == power:
            chosen.add(index)
        power *= 2
    among = free if isinstance(free, range) else set(free)
    return sorted([index for index in chosen if index in among] or [free[-1]])[-KEYS_MAX:]
