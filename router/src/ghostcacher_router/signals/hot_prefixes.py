"""Counts what many prompts begin with, up to the end of a section. For people to look at: nothing is decided by it.

A request that is placed leaves its prompt here, and no more: one append. Looking at them is done later, by whoever
calls `settle`, now and then. Of more than `UNSEEN_MAX` between two calls only the last ones are looked at. What is
kept of a prompt is a digest and a size, at the last end of each type of section: never its text.
"""

from __future__ import annotations

from collections import deque

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ports import Clock
from ghostcacher_router.types import Prompt

UNSEEN_MAX = 128
"""Each refers to a prompt's boundaries: 5 KiB of it for a prompt of 100 KiB."""

PREFIXES_MAX = 4096
"""When there are more, the colder half is forgotten: mostly the ends of prompts that came once."""

HALF_LIFE_S = 300.0
"""A use counts half after so long: about as long as a conversation pauses."""


class HotPrefix:
    """What prompts began with. Mutable."""

    __slots__ = ("digest", "last_at", "section", "size", "uses")

    def __init__(self, digest: bytes, section: SectionType, size: int) -> None:
        self.digest, self.section, self.size = digest, section, size
        self.uses = 0.0
        """How many prompts, as of `last_at`; older ones count less."""
        self.last_at = float("-inf")
        """When the last one was looked at; loop clock, s."""

    def __repr__(self) -> str:
        return f"HotPrefix({self.section.name}, bytes={self.size}, uses={self.uses:.1f})"

    def heat(self, now: float) -> float:
        """Return how many prompts began with it, as of now."""
        return self.uses * float(2.0 ** ((self.last_at - now) / HALF_LIFE_S))


class HotPrefixes:
    """The prefixes of one router's prompts. On the event loop only."""

    def __init__(self, clock: Clock, *, prefixes_max: int = PREFIXES_MAX) -> None:
        self._clock, self._prefixes_max = clock, prefixes_max
        self._unseen: deque[Prompt] = deque(maxlen=UNSEEN_MAX)
        self._prefixes: dict[bytes, HotPrefix] = {}
        self.seen = 0
        """Prompts that were looked at."""

    def __repr__(self) -> str:
        return f"HotPrefixes({len(self._prefixes)}, seen={self.seen})"

    def note(self, prompt: Prompt) -> None:
        """Keep a prompt that is sent to a worker until the next `settle`."""
        self._unseen.append(prompt)

    def settle(self) -> None:
        """Look at the prompts that came since the last call."""
        now = self._clock()
        while self._unseen:
            self._look_at(self._unseen.popleft(), now)
            self.seen += 1
        if len(self._prefixes) > self._prefixes_max:
            kept = sorted(self._prefixes.values(), key=lambda one: one.heat(now), reverse=True)
            self._prefixes = {one.digest: one for one in kept[: self._prefixes_max // 2]}

    def hottest(self, per_type: int) -> list[HotPrefix]:
        """Return the hottest prefixes of each type of section, the hottest of all first."""
        now, found, left = self._clock(), list[HotPrefix](), dict.fromkeys(SectionType, per_type)
        for one in sorted(self._prefixes.values(), key=lambda one: one.heat(now), reverse=True):
            if left[one.section]:
                left[one.section] -= 1
                found.append(one)
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._unseen.clear()
        self._prefixes.clear()

    def _look_at(self, prompt: Prompt, now: float) -> None:
        for section, index in dict(prompt.section_ends).items():
            digest = prompt.digests[index]
            one = self._prefixes.get(digest)
            if one is None:
                one = self._prefixes[digest] = HotPrefix(digest, section, prompt.ends[index])
            one.uses, one.last_at = one.heat(now) + 1.0, now
