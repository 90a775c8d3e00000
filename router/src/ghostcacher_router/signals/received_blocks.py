"""Remembers which blocks workers have received in prompts lately: each computes them once.

Only of a prompt that another router has sent is it asked what its worker has received before. Until then what comes is
set aside: a router that is alone never looks at it.

It has two generations of hashes, as the prefix map has (`two_generation_cache.py`): when the young one is full, it
becomes the old one, which is forgotten as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_connector.core.index.base import WorkerRef

RECEIVED_S = 30.0
"""How long it counts."""
HASHES_MAX = 1 << 15
"""Block hashes of prompts that workers have received lately, in both generations: some 6 MiB. Half as many more may be
set aside."""
HASHES_OF_PROMPT_MAX = 64
"""Of a longer prompt every eighth counts: which ones these are does not depend on its length."""

Received = dict[bytes, tuple[int, float]]
"""The blocks before each hash, and when they were received; in s of whatever clock."""


class _Aside(NamedTuple):
    """A prompt that is set aside."""

    ref: WorkerRef
    hashes: Sequence[bytes]
    counts: Sequence[int]
    """The blocks before each of them."""
    at: float
    """When it was received."""


class ReceivedBlocks:
    """What each worker has received, bounded in number."""

    def __init__(self) -> None:
        self._young: dict[WorkerRef, Received] = {}
        self._old: dict[WorkerRef, Received] = {}
        self._young_count = 0
        """Hashes that were put into the young generation; one that was put again counts again."""
        self._aside: deque[_Aside] = deque()
        """Oldest first."""
        self._aside_count = 0
        """Their hashes, in all."""

    def __repr__(self) -> str:
        hashes = sum(len(of) for each in (self._young, self._old) for of in each.values())
        return f"ReceivedBlocks(hashes={hashes}, aside={self._aside_count})"

    def blocks(self, ref: WorkerRef, chain: PromptChain, now: float) -> int:
        """Return how many blocks of a prompt a worker has received lately."""
        self._look_at_aside()
        young, old = self._young.get(ref, {}), self._old.get(ref, {})
        for block_hash in reversed(chain.hashes) if young or old else ():
            found = young.get(block_hash) or old.get(block_hash)
            if found is not None:
                return found[0] if now - found[1] <= RECEIVED_S else 0
        return 0

    def remember(self, ref: WorkerRef, chain: PromptChain, now: float) -> None:
        """Note that a worker has received a prompt."""
        hashes, counts = chain.hashes, chain.block_counts
        if not hashes:
            return  # What is set aside is bounded by its hashes.
        if len(hashes) > HASHES_OF_PROMPT_MAX:
            hashes, counts = hashes[7::8], counts[7::8]
        self._aside.append(_Aside(ref, hashes, counts, now))
        self._aside_count += len(hashes)
        while self._aside_count > HASHES_MAX // 2:
            self._aside_count -= len(self._aside.popleft().hashes)

    def _look_at_aside(self) -> None:
        while self._aside:
            ref, hashes, counts, at = self._aside.popleft()
            self._young_count += len(hashes)
            if self._young_count > HASHES_MAX // 2:
                self._old, self._young, self._young_count = self._young, {}, len(hashes)
            received = zip(counts, repeat(at), strict=False)
            self._young.setdefault(ref, {}).update(zip(hashes, received, strict=True))
        self._aside_count = 0
