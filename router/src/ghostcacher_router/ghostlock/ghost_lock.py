"""One ghost lock, and which boundaries of a prompt the routers meet in. See ghostlock.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_router.types import Prompt

KEYS_MAX = 16
KIB = 1024


class GhostLock:
    """One cold part of a prompt, being computed. Times: loop clock, s.

    digests: its boundaries, as keys of the table; keys: those of them that the store has. ready_at: forecast. token:
    of the store, None without it. confirmed: the store has said yes, or nothing in time.
    """

    __slots__ = (
        "changed",
        "confirmed",
        "digests",
        "expires_at",
        "keys",
        "ours",
        "ready_at",
        "released",
        "seen_at",
        "token",
        "worker",
    )

    def __init__(
        self, digests: Sequence[bytes], keys: Sequence[bytes], worker: str, ready_at: float, *, ours: bool
    ) -> None:
        self.digests, self.keys, self.worker, self.ready_at, self.ours = digests, tuple(keys), worker, ready_at, ours
        self.token: int | None = None
        self.confirmed = not ours
        self.released = False
        self.expires_at = float("inf")
        self.seen_at = float("-inf")
        self.changed = asyncio.Event()

    def __repr__(self) -> str:
        whose = "ours" if self.ours else "another router's"
        return f"GhostLock(worker={self.worker}, {whose}, token={self.token}, released={self.released})"


class Found(NamedTuple):
    """boundary: index of the prompt's deepest one that the lock covers."""

    lock: GhostLock
    boundary: int


def lock_boundaries(prompt: Prompt, free: Sequence[int]) -> list[int]:
    """Return which boundaries to lock in the store: the last end of each type of section, and powers of two KiB.

    free: indexes that can be locked, ascending, at least one. Two prompts that share text meet in one of them, wherever
    each one's cold part begins, unless what they share is less than half of it. The deepest are kept.
    """
    chosen = set(dict(prompt.section_ends).values())
    chosen |= {index for index in free if (end := prompt.ends[index]) % KIB == 0 and (end & (end - 1)) == 0}
    chosen &= set(free)
    return sorted(chosen or {free[-1]})[-KEYS_MAX:]
