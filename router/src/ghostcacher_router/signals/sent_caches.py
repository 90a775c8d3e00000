"""Estimates what the cache of each worker holds, from what this router sent it: all that is known of plain engines.

It is a model of the cache: for each worker the boundaries of the prompts that it was sent, those that were used last at
the end, and no more of them than its cache has room for. A prompt that is sent again is used from its beginning to its
end, so the end is evicted first, as engines do. Only the boundaries of the whole KiBs count: all prompts that share a
text have them in common, so a worker that holds one of them holds all before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ghostcacher_router.types import GRID_BYTES, Prompt

CAPACITY_TOKENS_GUESS = 1 << 21
"""Tokens that the cache of an engine holds which does not say: more than most. To believe too much costs little, since
what was evicted is computed where it likely was; to believe too little spreads copies of what is still there."""

BYTES_PER_TOKEN = 4
CAPACITY_KIB_MAX = CAPACITY_TOKENS_GUESS * BYTES_PER_TOKEN // GRID_BYTES
"""KiBs remembered of one worker: 1 MiB of memory or less."""

WORKERS_MAX = 1024


class SentCaches:
    """Worker -> the boundaries that its cache likely holds. On the event loop only."""

    def __init__(self) -> None:
        self._caches: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()

    def __repr__(self) -> str:
        return f"SentCaches({', '.join(f'{name}: {len(cache)} KiB' for name, cache in self._caches.items())})"

    def held_bytes(self, prompt: Prompt, workers: Sequence[str]) -> dict[str, int]:
        """Return how much of a prompt, from its first byte, each worker likely holds; those without any are absent."""
        grid = _grid(prompt)
        if not grid:
            return {}
        found: dict[str, int] = {}
        for worker in workers:
            cache = self._caches.get(worker)
            if not cache or grid[0] not in cache:
                continue
            low, high = 1, len(grid)
            while low < high:
                middle = (low + high + 1) // 2
                if grid[middle - 1] in cache:
                    low = middle
                else:
                    high = middle - 1
            found[worker] = low * GRID_BYTES
        return found

    def record(self, prompt: Prompt, worker: str, capacity_tokens: int) -> Sequence[bytes]:
        """Note that a worker is sent a prompt; return the boundaries that are new there, for `withdraw`.

        capacity_tokens: of the worker's cache; 0 when that is not known.
        """
        cache = self._caches.get(worker)
        if cache is None:
            cache = self._caches[worker] = OrderedDict()
        self._caches.move_to_end(worker)
        if len(self._caches) > WORKERS_MAX:
            self._caches.popitem(last=False)
        new = []
        for digest in reversed(_grid(prompt)):
            if digest in cache:
                cache.move_to_end(digest)
            else:
                cache[digest] = None
                new.append(digest)
        held_max = (capacity_tokens or CAPACITY_TOKENS_GUESS) * BYTES_PER_TOKEN // GRID_BYTES
        while len(cache) > min(held_max, CAPACITY_KIB_MAX):
            cache.popitem(last=False)
        return new

    def withdraw(self, worker: str, new: Sequence[bytes]) -> None:
        """Take back what `record` returned: the request has failed."""
        cache = self._caches.get(worker)
        if cache is not None:
            for digest in new:
                cache.pop(digest, None)

    def forget_worker(self, worker: str) -> None:
        """Forget what a worker was sent: its cache is gone."""
        self._caches.pop(worker, None)

    def clear(self) -> None:
        """Forget everything."""
        self._caches.clear()


def _grid(prompt: Prompt) -> list[bytes]:
    """Return the digests of the boundaries at whole KiBs, in order."""
    return [digest for end, digest in zip(prompt.ends, prompt.digests, strict=True) if not end % GRID_BYTES]
