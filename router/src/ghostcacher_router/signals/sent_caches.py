"""Estimates what the cache of each worker holds, from what this router sent it: all that is known of plain engines.

It is a model of the cache: for each worker the boundaries of the prompts that it was sent, those that were used last at
the end, and no more of them than its cache has room for. A prompt that is sent again is used from its beginning to its
end, so the end is evicted first, as engines do. Only the boundaries of the whole KiBs count: all prompts that share a
text have them in common, so a worker that holds one of them holds all before it.

How much room there is, most engines say, but in tokens, and how many bytes of text a token has is a guess. So their
answers count: who computes anew what the model holds has less room than that, and who answers too soon to have computed
what the model has evicted has more. So what was evicted is remembered for a while. The room is learned in KiBs of
prompts: what else is in a cache, such as answers, is left out. Where an engine has said how much it holds, what is
learned stays within what the guess can be wrong by.

Of a worker that reports its load the index knows better, until Redis is away. So what it is sent is only set aside, and
looked at when somebody asks: the latest prompts, as far as there is room for them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_router.types import GRID_BYTES, Prompt

CAPACITY_TOKENS_GUESS = 1 << 21
"""Tokens that a cache holds of which nothing is known: more than most. Whoever believes too much learns better by the
first prompt that is computed anew."""

BYTES_PER_TOKEN = 4
"""A guess. English has about so many, code and Chinese about three, and what a tokenizer was not made for has fewer."""
SHARE_MIN, SHARE_MAX = 0.5, 1.1
"""Bounds of the room that is learned, as shares of what the worker says. What seems to be less room may be the work of
other routers, which takes time and room. That there is more is less likely, and believing it wrongly costs more."""

KIB_TOKENS = GRID_BYTES // BYTES_PER_TOKEN
CAPACITY_KIB_MAX = CAPACITY_TOKENS_GUESS // KIB_TOKENS
"""KiBs remembered of one worker, with what was evicted: 1 MiB of memory or less."""

WORKERS_MAX = 1024

ASIDE_MAX = 1 << 16
"""Boundaries of all prompts that are set aside: 7 MiB. Looking at all of them takes some 20 ms."""
ASIDE_EACH = 16
"""What looking at a prompt takes beside its boundaries, in boundaries."""

OTHERS_FEW = 8
"""So many boundaries that are not at a whole KiB are sooner searched for than all of a long prompt's are looked at."""

TELLING_BYTES = 4096
"""Computing less than this takes no time that could be told from everything else that takes time."""

SHRINK = 0.95
"""The room that is left after a prompt was computed anew. It may have been something else that took long; that a prompt
was not computed is certain, so the other direction needs no caution."""


class CacheUse(NamedTuple):
    """What a prompt finds in the model of its worker's cache."""

    new: Sequence[bytes]
    """The boundaries that are new there, for `withdraw`."""
    held_bytes: int
    """How much of the prompt, from its first byte, the cache likely holds."""
    sent_bytes: int
    """How much of it the worker was sent before, what it has likely evicted since then included."""
    held_kib: int
    """What the cache likely holds, in all."""
    needed_kib: int
    """What it must have room for, to hold all that the worker was sent of the prompt; 0 without any."""


class SentAside:
    """A prompt that a worker was sent, set aside."""

    __slots__ = ("capacity_tokens", "prompt", "use", "worker")

    def __init__(self, prompt: Prompt, worker: str, capacity_tokens: int) -> None:
        self.prompt: Prompt | None = prompt
        """None once it was looked at, or its request has failed."""
        self.worker, self.capacity_tokens = worker, capacity_tokens
        self.use: CacheUse | None = None
        """What it found when it was looked at."""


class _Cache:
    """The model of one worker's cache. Boundaries are in the order of their last use, the latest at the end."""

    __slots__ = ("evicted", "held", "room_kib", "said_kib")

    def __init__(self) -> None:
        self.held: OrderedDict[bytes, None] = OrderedDict()
        self.evicted: OrderedDict[bytes, None] = OrderedDict()
        """What it has likely evicted, in the order of eviction."""
        self.said_kib: float | None = None
        """Its room as the worker says it, at `BYTES_PER_TOKEN`; None when it does not."""
        self.room_kib: float | None = None
        """What was learned of its room; None before that."""

    def use(self, grid: Sequence[bytes]) -> CacheUse:
        """Put a prompt's boundaries at the end; return what the prompt finds."""
        held, before = _leading(grid, self.held), len(self.held)
        sent = held
        while sent < len(grid) and (grid[sent] in self.evicted or grid[sent] in self.held):
            sent += 1
        needed = before if sent else 0
        if sent > held and grid[sent - 1] in self.evicted:
            for digest in reversed(self.evicted):
                needed += 1
                if digest == grid[sent - 1]:
                    break
        return CacheUse(self._touch(grid, held), held * GRID_BYTES, sent * GRID_BYTES, before, needed)

    def _touch(self, grid: Sequence[bytes], leading: int) -> Sequence[bytes]:
        """Put a prompt's boundaries at the end; return those that are new. leading: how many are known to be held."""
        held, evicted, new, rest = self.held, self.evicted, grid[leading:], grid[:leading]
        if not held.keys().isdisjoint(new):
            # After a withdrawal there may be more than the leading ones.
            new, rest = [digest for digest in new if digest not in held], grid
        # The last ones first, without a step of Python for each boundary of a long prompt.
        held.update(dict.fromkeys(reversed(new)))
        deque(map(held.move_to_end, reversed(rest)), maxlen=0)
        if evicted:
            for digest in new:
                evicted.pop(digest, None)
        return new

    def evict(self, room_kib: float) -> None:
        """Evict what has no room."""
        while len(self.held) > room_kib:
            self.evicted[self.held.popitem(last=False)[0]] = None
        while self.evicted and len(self.held) + len(self.evicted) > CAPACITY_KIB_MAX:
            self.evicted.popitem(last=False)


class SentCaches:
    """Worker -> the boundaries that its cache likely holds. On the event loop only."""

    def __init__(self) -> None:
        self._caches: OrderedDict[str, _Cache] = OrderedDict()
        self._typical_kib: float | None = None
        """The room that was learned last: others have as much, until they say or show their own."""
        self._share = 1.0
        """The same, as a share of what its worker says of itself."""
        self._aside: deque[tuple[SentAside, int]] = deque()
        """Prompts that are set aside, and what each counts; oldest first."""
        self._aside_size = 0
        self._last: tuple[Prompt, Sequence[bytes]] | None = None
        """The prompt that was asked about last, and its grid: it is mostly the next one that is sent."""

    def __repr__(self) -> str:
        return f"SentCaches({', '.join(f'{name}: {len(cache.held)} KiB' for name, cache in self._caches.items())})"

    def held_bytes(self, prompt: Prompt, workers: Sequence[str]) -> dict[str, int]:
        """Return how much of a prompt, from its first byte, each worker likely holds; those without any are absent."""
        self._look_at_aside()
        grid = self._grid_of(prompt)
        found: dict[str, int] = {}
        if not grid:
            return found
        first, cache_of = grid[0], self._caches.get
        for worker in workers:
            cache = cache_of(worker)
            if cache is not None and first in cache.held:
                found[worker] = _leading(grid, cache.held) * GRID_BYTES
        return found

    def capacity_tokens(self, worker: str) -> int:
        """Return how many tokens of prompts a worker's cache holds, as far as it and its answers tell.

        Before they do, it is what the worker was sent: nobody knows whether there is room for more.
        """
        self._look_at_aside()
        cache = self._caches.get(worker)
        if cache is None:
            return 0
        room_kib = self._room_kib(cache)
        return int((len(cache.held) if room_kib is None else room_kib) * KIB_TOKENS)

    def record(self, prompt: Prompt, worker: str, capacity_tokens: int) -> CacheUse:
        """Note that a worker is sent a prompt; return what the prompt finds there.

        capacity_tokens: of the worker's cache; 0 when the worker does not say.
        """
        self._look_at_aside()
        return self._record(prompt, worker, capacity_tokens)

    def set_aside(self, prompt: Prompt, worker: str, capacity_tokens: int) -> SentAside:
        """Note that a worker is sent a prompt that nobody may ever ask for here. See `record`."""
        size, one = len(prompt.ends) + ASIDE_EACH, SentAside(prompt, worker, capacity_tokens)
        self._aside.append((one, size))
        self._aside_size += size
        while self._aside_size > ASIDE_MAX:
            self._aside_size -= self._aside.popleft()[1]
        return one

    def _grid_of(self, prompt: Prompt) -> Sequence[bytes]:
        if self._last is None or self._last[0] is not prompt:
            self._last = prompt, grid_of(prompt)
        return self._last[1]

    def _look_at_aside(self) -> None:
        while self._aside:
            one, size = self._aside.popleft()
            self._aside_size -= size
            if one.prompt is not None:
                one.use = self._record(one.prompt, one.worker, one.capacity_tokens)
                one.prompt = None

    def _record(self, prompt: Prompt, worker: str, capacity_tokens: int) -> CacheUse:
        cache = self._caches.get(worker)
        if cache is None:
            cache = self._caches[worker] = _Cache()
        self._caches.move_to_end(worker)
        if len(self._caches) > WORKERS_MAX:
            self._caches.popitem(last=False)
        grid = self._grid_of(prompt)
        use = cache.use(grid)
        cache.said_kib = capacity_tokens / KIB_TOKENS or None
        cache.evict(min(self._room_kib(cache) or CAPACITY_KIB_MAX, CAPACITY_KIB_MAX))
        return use

    def answered(self, worker: str, prompt: Prompt, use: CacheUse, computed_bytes_max: int, *, alone: bool) -> None:
        """Learn from an answer of a plain worker how much its cache holds.

        use: what `record` returned of the prompt.
        computed_bytes_max: how much of a prompt can be computed in the time until the answer began.
        alone: whether nothing was ahead of the request. Otherwise a long time says nothing.
        """
        cache = self._caches.get(worker)
        if cache is None:
            return
        computed_max, beyond = min(computed_bytes_max, prompt.size), use.sent_bytes - use.held_bytes
        if use.held_bytes >= TELLING_BYTES and alone and computed_max > prompt.size - use.held_bytes / 2:
            self._learn(cache, SHRINK * min(self._room_kib(cache) or use.held_kib, use.held_kib))
        elif beyond >= TELLING_BYTES and computed_max < prompt.size - use.held_bytes - beyond / 2:
            self._learn(cache, max(self._room_kib(cache) or 0.0, use.needed_kib))

    def withdraw(self, worker: str, use: CacheUse | SentAside) -> None:
        """Take back what `record` or `set_aside` returned: the request has failed."""
        cache = self._caches.get(worker)
        if isinstance(use, SentAside):
            use.prompt, found = None, use.use
        else:
            found = use
        if cache is not None and found is not None:
            for digest in found.new:
                cache.held.pop(digest, None)

    def forget_worker(self, worker: str) -> None:
        """Forget what a worker was sent: its cache is gone."""
        self._look_at_aside()
        self._caches.pop(worker, None)

    def clear(self) -> None:
        """Forget everything."""
        self._caches.clear()
        self._aside.clear()
        self._aside_size = 0

    def _room_kib(self, cache: _Cache) -> float | None:
        """Return what is known of a worker's room; None when nothing is known of any."""
        if cache.said_kib is None:
            return self._typical_kib if cache.room_kib is None else cache.room_kib
        share = self._share if cache.room_kib is None else cache.room_kib / cache.said_kib
        return cache.said_kib * min(SHARE_MAX, max(SHARE_MIN, share))

    def _learn(self, cache: _Cache, room_kib: float) -> None:
        cache.room_kib = self._typical_kib = min(room_kib, CAPACITY_KIB_MAX)
        if cache.said_kib is not None:
            self._share = cache.room_kib / cache.said_kib


def grid_of(prompt: Prompt) -> Sequence[bytes]:
    """Return the digests of the boundaries at whole KiBs, in order."""
    ends, digests = prompt.ends, prompt.digests
    others = len(ends) - prompt.size // GRID_BYTES
    if others > OTHERS_FEW or len(ends) < OTHERS_FEW * others:
        return [digest for end, digest in zip(ends, digests, strict=True) if not end % GRID_BYTES]
    if not others:
        return digests
    found: list[bytes] = []
    first = 0
    for number in range(others):
        # Behind the next boundary of another kind all are a place further on than their KiB, or more.
        place, high = first, len(ends)
        while place < high:
            middle = (place + high) // 2
            if ends[middle] < (middle + 1 - number) * GRID_BYTES:
                high = middle
            else:
                place = middle + 1
        found += digests[first:place]
        first = place + 1
    found += digests[first:]
    return found


def _leading(grid: Sequence[bytes], cache: OrderedDict[bytes, None]) -> int:
    """Return how many of a prompt's boundaries, from the first, a cache has."""
    if not grid or grid[0] not in cache:
        return 0
    low, high = 1, len(grid)
    while low < high:
        middle = (low + high + 1) // 2
        if grid[middle - 1] in cache:
            low = middle
        else:
            high = middle - 1
    return low
