"""What waiting for a block's next use is worth, learned from when blocks of its kind were used again.

A sample of all blocks is followed, in the tier or not: which kind a block was of when it was used, and after how long
it was used again, if it was. From this come the chances, by kind and age, that a block is used in the next moment
(hazards). They count what is still waiting, too (Kaplan and Meier), so a young table is not too optimistic.

The *hit density* of a block is the best ratio, over all times to wait, of its chance to be used by then to how long it
takes up its place until then (an index as in Gittins's theorem): hits a second and place. A place is best filled with
what has the highest one. It rises with age while nobody comes back so early, and falls when those who come back have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

BUCKETS = 40
BUCKET_FIRST_S = 0.1
BUCKET_RATIO = 1.5
EDGES = (0.0, *(BUCKET_FIRST_S * BUCKET_RATIO**step for step in range(BUCKETS - 1)))
"""Where each bucket of ages begins, in seconds: up to eight days."""
WIDTHS = tuple(after - edge for edge, after in zip(EDGES, [*EDGES[1:], EDGES[-1] * BUCKET_RATIO], strict=True))

FOLLOWED_MAX = 32_768
FOLLOWED_PER_PLACE = 8
"""So many blocks for each place of the tier are followed, so that uses are seen that come long after an eviction; of a
larger tier a part of all keys, which tells as much, since blocks of one prompt share their fate."""
FIT_FIRST = 256
FIT_EVERY = 2_048
"""Blocks followed between two fits, which take some milliseconds."""
RECORDS_MAX = 131_072
"""From here on all counts are halved: loads change."""
PRIOR = 60.0
"""A kind is as all kinds of its family are until it has about so many blocks of its own."""
HAZARD_MAX = 0.95


class Kind(NamedTuple):
    """Blocks that are expected to behave alike. Those of one family lend each other what they know."""

    family: Hashable
    member: Hashable


class Counts:
    """Blocks of one kind by age: used again at that age, and given up at that age unused."""

    __slots__ = ("unused", "used")

    def __init__(self) -> None:
        self.used = [0.0] * BUCKETS
        self.unused = [0.0] * BUCKETS

    def add(self, other: Counts) -> None:
        self.used = [a + b for a, b in zip(self.used, other.used, strict=True)]
        self.unused = [a + b for a, b in zip(self.unused, other.unused, strict=True)]

    def halve(self) -> None:
        self.used = [count / 2 for count in self.used]
        self.unused = [count / 2 for count in self.unused]


class ReuseTimes:
    """Learns hit densities by kind and age, in bounded memory."""

    def __init__(self, places: int) -> None:
        """places: about how many blocks the tier holds."""
        self._sample_mask = (1 << (FOLLOWED_PER_PLACE * places // FOLLOWED_MAX).bit_length()) - 1
        self._followed: dict[bytes, tuple[Kind, float]] = {}
        self._counts: dict[Kind, Counts] = {}
        self._densities: dict[Kind, Sequence[float]] = {}
        self._default: Sequence[float] | None = None
        self._until_fit = FIT_FIRST
        self._records = 0

    @property
    def ready(self) -> bool:
        """Whether anything was learned."""
        return self._default is not None

    def wait(self, key: bytes, kind: Kind, now: float) -> None:
        """A block was used, and is of this kind until it is used again."""
        if self._skips(key) or key in self._followed:
            return
        self._followed[key] = (kind, now)
        if len(self._followed) > FOLLOWED_MAX:
            oldest, since = self._followed.pop(next(iter(self._followed)))
            self._record(oldest).unused[bucket_of(now - since)] += 1
        self._until_fit -= 1
        if self._until_fit <= 0:
            self._fit(now)

    def used(self, key: bytes, now: float) -> None:
        """A block was used again, if it was ever used."""
        found = self._followed.pop(key, None)
        if found is not None:
            self._record(found[0]).used[bucket_of(now - found[1])] += 1

    def density(self, kind: Kind, age_s: float) -> float:
        """Return the expected hits a second of a block that has waited for so long. Only when `ready`."""
        assert self._default is not None
        return self._densities.get(kind, self._default)[bucket_of(age_s)]

    def _skips(self, key: bytes) -> bool:
        return bool(self._sample_mask and xxh3_64_intdigest(key) & self._sample_mask)

    def _record(self, kind: Kind) -> Counts:
        self._records += 1
        return self._counts.setdefault(kind, Counts())

    def _fit(self, now: float) -> None:
        if self._records > RECORDS_MAX:
            self._records //= 2
            for counts in self._counts.values():
                counts.halve()
        kinds = self._with_waiting(now)
        families: dict[Hashable, Counts] = {}
        everything = Counts()
        for kind, counts in kinds.items():
            families.setdefault(kind.family, Counts()).add(counts)
            everything.add(counts)
        over_all = hazards(everything, None)
        of_family = {family: hazards(counts, over_all) for family, counts in families.items()}
        self._default = densities(over_all)
        self._densities = {kind: densities(hazards(counts, of_family[kind.family])) for kind, counts in kinds.items()}
        self._until_fit = min(FIT_EVERY, max(FIT_FIRST, self._records // 4))

    def _with_waiting(self, now: float) -> dict[Kind, Counts]:
        """Return the counts of each kind as if all that still wait were given up now."""
        kinds: dict[Kind, Counts] = {}
        for kind, counts in self._counts.items():
            kinds.setdefault(kind, Counts()).add(counts)
        for kind, since in self._followed.values():
            kinds.setdefault(kind, Counts()).unused[bucket_of(now - since)] += 1
        return kinds


def bucket_of(age_s: float) -> int:
    return bisect_right(EDGES, age_s) - 1 if age_s > 0 else 0


def hazards(counts: Counts, prior: Sequence[float] | None) -> list[float]:
    """Return, for each bucket of ages, the chance that a block that reaches it is used before it leaves it."""
    found = [0.0] * BUCKETS
    reached = 0.0
    for bucket in reversed(range(BUCKETS)):
        used, unused = counts.used[bucket], counts.unused[bucket]
        # What was given up in a bucket has seen half of it.
        reached += used + unused / 2
        weight, expected = (PRIOR, PRIOR * prior[bucket]) if prior is not None else (1.0, 0.0)
        found[bucket] = min((used + expected) / (reached + weight), HAZARD_MAX)
        reached += unused / 2
    return found


def densities(hazard: Iterable[float]) -> list[float]:
    """Return the hit density at the beginning of each bucket."""
    chances = list(hazard)
    found = []
    for start in range(BUCKETS):
        best = used = held_s = 0.0
        waiting = 1.0
        for chance, width in zip(chances[start:], WIDTHS[start:], strict=True):
            used += waiting * chance
            held_s += waiting * width * (1 - chance / 2)
            waiting *= 1 - chance
            best = max(best, used / held_s)
        found.append(best)
    return found
