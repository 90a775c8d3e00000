"""Remembers which blocks workers have received in prompts lately: each computes them once.

It has two generations of hashes, as the prefix map has (`two_generation_cache.py`): when the young one is full, it
becomes the old one, which is forgotten as a whole.
"""

from __future__ import annotations

from itertools import repeat

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_connector.core.index.base import WorkerRef

RECEIVED_S = 30.0
"""How long it counts."""
HASHES_MAX = 1 << 15
"""Block hashes of prompts that workers have received lately, in both generations: some 6 MiB."""
HASHES_OF_PROMPT_MAX = 64
"""Of a longer prompt every eighth counts: which ones these are does not depend on its length."""

Received = dict[bytes, tuple[int, float]]
"""The blocks before each hash, and when they were received; in s of whatever clock."""


class ReceivedBlocks:
    """What each worker has received, bounded in number."""

    def __init__(self) -> None:
        self._young: dict[WorkerRef, Received] = {}
        self._old: dict[WorkerRef, Received] = {}
        self._young_count = 0
        """Hashes that were put into the young generation; one that was put again counts again."""

    def __repr__(self) -> str:
        return f"ReceivedBlocks(hashes={sum(len(of) for each in (self._young, self._old) for of in each.values())})"

    def blocks(self, ref: WorkerRef, chain: PromptChain, now: float) -> int:
        """Return how many blocks of a prompt a worker has received lately."""
        young, old = self._young.get(ref, {}), self._old.get(ref, {})
        for block_hash in reversed(chain.hashes) if young or old else ():
            found = young.get(block_hash) or old.get(block_hash)
            if found is not None:
                return found[0] if now - found[1] <= RECEIVED_S else 0
        return 0

    def remember(self, ref: WorkerRef, chain: PromptChain, now: float) -> None:
        """Note that a worker has received a prompt."""
        stride = 1 if len(chain.hashes) <= HASHES_OF_PROMPT_MAX else 8
        hashes = chain.hashes[stride - 1 :: stride]
        self._young_count += len(hashes)
        if self._young_count > HASHES_MAX // 2:
            self._old, self._young, self._young_count = self._young, {}, len(hashes)
        counts = zip(chain.block_counts[stride - 1 :: stride], repeat(now), strict=False)
        self._young.setdefault(ref, {}).update(zip(hashes, counts, strict=True))
