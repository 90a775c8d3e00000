"""What an LRU cache of every size would hit, exactly, from one pass over a trace (Mattson's stack distances).

The cache: requests come one after the other; one finds the leading blocks of its prompt that the cache still has, and
leaves all its blocks in it, the first of them as the one that goes last, as engines free them. So a child never
outlives its parent, and a hit of a block is a hit of its whole prefix. Then a cache of c blocks holds the c that were
used last, whatever c is, and has a block if and only if fewer than c others were used since.

How many those are for each use is counted for all uses together, by sorting: O(n log n), and all of it in numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class HitCurve(NamedTuple):
    """What an LRU cache hits, by its size."""

    saved: Ints
    """Prompt tokens that a cache of so many blocks serves; shape (blocks,), from 0 blocks to what suffices."""

    @property
    def enough(self) -> int:
        """Return the least size, in blocks, at which a cache hits all that any cache could."""
        return len(self.saved) - 1

    @property
    def most(self) -> int:
        """Return the tokens that a cache without bounds saves."""
        return int(self.saved[-1])

    def needed(self, part: float) -> int:
        """Return the least size, in blocks, at which a cache saves this part of what any cache could."""
        return int(np.searchsorted(self.saved, part * self.most))

    def at(self, blocks: int) -> int:
        """Return the tokens that a cache of so many blocks saves."""
        return int(self.saved[min(blocks, self.enough)])


def hit_curve(blocks: npt.ArrayLike, starts: npt.ArrayLike, tokens_of: npt.ArrayLike) -> HitCurve:
    """Return what LRU caches of all sizes hit.

    blocks: numbers of the blocks of all requests, shape (uses,); those of one request are different, in prefix order.
    starts: where each request begins, and the end, shape (requests + 1,). tokens_of: of each block, by its number.
    """
    blocks, starts, tokens_of = (np.asarray(each, dtype=np.int64) for each in (blocks, starts, tokens_of))
    lengths = np.diff(starts)
    first = np.repeat(starts[:-1], lengths)
    # In order of time, a request uses its last block first.
    uses = blocks[first + np.repeat(starts[1:], lengths) - 1 - np.arange(len(blocks))]
    before = _previous(uses)
    again = np.flatnonzero(before >= 0)
    if not len(again):
        return HitCurve(np.zeros(1, dtype=np.int64))
    previous = before[again]
    since = again - previous - 1 - _greater_before(_ranks(previous, len(uses)))
    # The request's own blocks behind this one are not in the cache for its sake yet.
    distances = since - (again - first[again])
    saved = np.bincount(distances + 1, weights=tokens_of[uses[again]])
    return HitCurve(np.cumsum(saved).astype(np.int64))


def _previous(uses: Ints) -> Ints:
    """Return where each use's block was used before; -1 where it was not."""
    order = np.argsort(uses, kind="stable")
    ordered = uses[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    before = np.full(len(uses), -1, dtype=np.int64)
    before[order[same + 1]] = order[same]
    return before


def _ranks(values: Ints, bound: int) -> Ints:
    """Return the place that each of some different values from 0 to below a bound has among them."""
    present = np.zeros(bound, dtype=np.int64)
    present[values] = 1
    return (np.cumsum(present) - 1)[values]


def _greater_before(ranks: Ints) -> Ints:
    """Return for each of a permutation's values how many greater ones stand before it.

    Two values differ first at some bit, counted from the highest. Level by level, values that are equal above a bit lie
    together, in the order in which they came; those without the bit then count those with it before them.
    """
    counts = np.zeros(len(ranks), dtype=np.int64)
    places = np.arange(len(ranks))
    value, owner = ranks, places
    for bit in reversed(range(max(1, len(ranks) - 1).bit_length())):
        has = (value >> bit) & 1
        # The values are all numbers below their count: those that are equal above the bit begin where the first would.
        group = value >> (bit + 1) << (bit + 1)
        ones = np.cumsum(has) - has
        ones -= ones[group]
        without = has == 0
        counts[owner[without]] += ones[without]
        target = np.where(without, places - ones, group + (1 << bit) + ones)
        value, owner = _moved(value, target), _moved(owner, target)
    return counts


def _moved(values: Ints, target: Ints) -> Ints:
    moved = np.empty_like(values)
    moved[target] = values
    return moved
