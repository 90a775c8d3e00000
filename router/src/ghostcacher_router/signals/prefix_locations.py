"""Tracks which workers hold how much of each known prefix, as the block index said a moment ago.

A prefix is named by its deepest boundary whose block hash is known. What the index said of it is used while it is
younger than FRESH_S; once it is older than REFRESH_S and in use, the index is asked again without anybody waiting.
A request waits only where nothing is known, or nothing fresh enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

from ghostcacher_connector.core.index.base import DEPTHS_MAX, BlockIndex, WorkerRef
from ghostcacher_router.ports import Clock, KnownPort, Offload, WorkersPort
from ghostcacher_router.signals.coalescer import Coalescer

REFRESH_S = 0.5
"""Age at which the index is asked again. What this router sends and what workers report is noted at once, so this is
for what they have evicted."""
FRESH_S = 2.0
OLD_S = 30.0
"""While the index does not answer, what it said last is used for so long: prefixes live for minutes."""

WAIT_S = 0.005
"""Bound of a request's wait for the index, where little is at stake. A lookup takes a tenth of it."""

PREFIXES_MAX = 1 << 14
HASHES_MAX = 500_000
"""Of all prefixes' chains together: some 50 MB."""

CHAIN_MAX = 64
"""Of a longer chain only so many hashes are looked up: how much a worker holds is known to a sixtieth of the prefix."""

Key = tuple[str, bytes]
"""A prefix: its namespace, and the hash of its deepest known block."""


class HeldPrefix(NamedTuple):
    """What one worker holds of a prefix."""

    incarnation: bytes
    """The worker incarnation that holds it: a restarted worker has nothing."""
    blocks: int
    """How many blocks it holds, counted from the first."""


class _Answer(NamedTuple):
    """What the index said of one prefix."""

    prefix: _Prefix | None
    """The prefix that was looked up; None when it had been forgotten before."""
    candidates: Sequence[WorkerRef]
    lengths: Sequence[int]
    """Length of the leading run of its chain that each of the candidates holds."""
    asked_at: float
    """When the lookup began; loop clock, s."""
    seconds: float
    """Duration of the lookup that it was part of."""


class _Prefix:
    """A prefix and its holders."""

    __slots__ = ("asked_at", "depths", "held", "updated_at")

    def __init__(self, depths: Sequence[KnownPort]) -> None:
        self.depths = depths
        """The boundaries whose blocks are looked up, shallowest first."""
        self.updated_at = float("-inf")
        self.asked_at = float("-inf")
        self.held: dict[str, HeldPrefix] = {}


class PrefixLocations:
    """Prefix -> workers that hold it. On the event loop only; the index is asked in threads."""

    def __init__(
        self,
        index: BlockIndex | None,
        fleet: WorkersPort,
        offload: Offload,
        clock: Clock,
        *,
        observe: Callable[[float], None],
        prefixes_max: int = PREFIXES_MAX,
        hashes_max: int = HASHES_MAX,
    ) -> None:
        """index: None for a router that knows only what `seed` says. observe: takes each lookup's seconds."""
        self._index, self._fleet, self._clock, self._observe = index, fleet, clock, observe
        self._prefixes_max, self._hashes_max = prefixes_max, hashes_max
        self._prefixes: OrderedDict[Key, _Prefix] = OrderedDict()
        self._hashes = 0
        self._lookups: Coalescer[Key, _Answer] = Coalescer(self._prepare, self._received, offload, clock=clock)

    def __repr__(self) -> str:
        return f"PrefixLocations(prefixes={len(self._prefixes)}, hashes={self._hashes}, available={self.available})"

    @property
    def available(self) -> bool:
        """Whether the index can be asked: there is one, and it did not fail a moment ago."""
        return self._index is not None and not self._lookups.broken

    def get(
        self, namespace: str, deepest: KnownPort, *, newer_than: float | None = None, old: bool = False
    ) -> Mapping[str, HeldPrefix] | None:
        """Return who holds how much of a prefix, by worker name; None when `fetch` has to be awaited first.

        deepest: the deepest known boundary of the prefix.
        newer_than: loop clock, s; what the index said before that time does not count.
        old: whether old knowledge, or none, will do; then the answer is never None. So it is without an index.
        """
        key = (namespace, deepest.block_hash)
        prefix = self._prefixes.get(key)
        old = old or not self.available
        if prefix is None:
            return {} if old else None
        self._prefixes.move_to_end(key)
        age = self._clock() - prefix.updated_at
        if old:
            return prefix.held if age <= OLD_S else {}
        if age > FRESH_S or (newer_than is not None and prefix.updated_at <= newer_than):
            return None
        if age > REFRESH_S:
            self._lookups.refresh(key)
        return prefix.held

    def asked_at(self, namespace: str, deepest: KnownPort) -> float:
        """Return when the index was last asked about a prefix, and answered; loop clock, s. -inf: it was never."""
        prefix = self._prefixes.get((namespace, deepest.block_hash))
        return float("-inf") if prefix is None else prefix.asked_at

    def blocks_at(self, ref: WorkerRef, hashes: Sequence[bytes]) -> int:
        """Return how many blocks a worker holds of a prompt with these block hashes, as far as it is known here."""
        for block_hash in reversed(hashes[-CHAIN_MAX:]):
            prefix = self._prefixes.get((ref.namespace, block_hash))
            if prefix is not None:
                held = prefix.held.get(ref.worker)
                return held.blocks if held is not None and held.incarnation == ref.incarnation else 0
        return 0

    def believed(self, namespace: str, block_hash: bytes) -> Mapping[str, HeldPrefix]:
        """Return who holds the prefix that ends with a block, for people: nothing is asked, or counts as used."""
        prefix = self._prefixes.get((namespace, block_hash))
        return {} if prefix is None else prefix.held

    async def fetch(self, namespace: str, known: Sequence[KnownPort], timeout_s: float = WAIT_S) -> None:
        """Look a prefix up in the index, and wait for that at most `timeout_s`.

        known: its known boundaries, at least one, shallowest first.
        """
        key = (namespace, known[-1].block_hash)
        self._add(key, known)
        if self._index is not None:
            await self._lookups.wait(key, timeout_s)

    def seed(self, namespace: str, known: Sequence[KnownPort], worker: str, held: HeldPrefix) -> None:
        """Note a holder that the index may not know yet. The index is asked as soon as the prefix is used."""
        key = (namespace, known[-1].block_hash)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._add(key, known)
        before = prefix.held.get(worker)
        if before is None or before.incarnation != held.incarnation or before.blocks < held.blocks:
            prefix.held = {**prefix.held, worker: held}
        prefix.updated_at = max(prefix.updated_at, self._clock() - REFRESH_S)

    def clear(self) -> None:
        """Forget everything."""
        self._prefixes.clear()
        self._hashes = 0

    def stop(self) -> None:
        """Ask for nothing more."""
        self._lookups.stop()

    def _add(self, key: Key, known: Sequence[KnownPort]) -> _Prefix:
        prefix = self._prefixes.get(key)
        if prefix is None:
            sampled = _sample(known)
            prefix = _Prefix(sampled)
            shorter = (self._prefixes.get((key[0], boundary.block_hash)) for boundary in reversed(known[:-1]))
            begun = next((one for one in shorter if one is not None), None)
            if begun is not None:
                # Who holds a shorter prefix holds that much of this one: old knowledge, but better than none.
                prefix.held = begun.held
                prefix.updated_at = min(begun.updated_at, self._clock() - FRESH_S)
            self._prefixes[key] = prefix
            self._hashes += len(sampled)
            while len(self._prefixes) > self._prefixes_max or self._hashes > self._hashes_max:
                _, gone = self._prefixes.popitem(last=False)
                self._hashes -= len(gone.depths)
        return prefix

    def _prepare(self, keys: Sequence[Key]) -> Callable[[], list[_Answer]]:
        """Return the blocking call that looks up these prefixes."""
        index, refs, asked_at = self._index, self._refs(), self._clock()
        assert index is not None
        # Read here, on the loop: a thread must not see a prefix come or go.
        prefixes = [self._prefixes.get(key) for key in keys]
        by_namespace: dict[str, list[tuple[int, Sequence[bytes]]]] = {}
        for place, (key, prefix) in enumerate(zip(keys, prefixes, strict=True)):
            chain = [one.block_hash for one in prefix.depths] if prefix is not None else []
            by_namespace.setdefault(key[0], []).append((place, chain))

        def look_up() -> list[_Answer]:
            answers = [_Answer(None, (), (), asked_at, 0.0)] * len(keys)
            for namespace, places in by_namespace.items():
                candidates = refs.get(namespace, [])
                # What goes beyond the index's bound would be answered with "nobody has it".
                at_once = max(1, DEPTHS_MAX // max(1, len(candidates)))
                for first in range(0, len(places), at_once):
                    some, started = places[first : first + at_once], perf_counter()
                    depths = index.depths(candidates, [chain for _, chain in some])
                    seconds = perf_counter() - started
                    for (place, _), lengths in zip(some, depths, strict=True):
                        answers[place] = _Answer(prefixes[place], candidates, lengths, asked_at, seconds)
            return answers

        return look_up

    def _refs(self) -> dict[str, list[WorkerRef]]:
        refs: dict[str, list[WorkerRef]] = {}
        for worker in self._fleet.workers.values():
            if (ref := worker.ref) is not None:
                refs.setdefault(ref.namespace, []).append(ref)
        return refs

    def _received(self, key: Key, answer: _Answer) -> None:
        self._observe(answer.seconds)
        prefix = answer.prefix
        # One that was forgotten meanwhile, and came back, may know other depths under the same key.
        if prefix is not None and prefix is self._prefixes.get(key):
            # A new mapping: whoever was given the old one keeps what it has seen. What follows from it is kept, too, by
            # who finds the same one again: so it stays the same where the index says the same.
            held = {
                ref.worker: HeldPrefix(ref.incarnation, prefix.depths[length - 1].block_count)
                for ref, length in zip(answer.candidates, answer.lengths, strict=True)
                if length
            }
            if held != prefix.held:
                prefix.held = held
            prefix.updated_at, prefix.asked_at = self._clock(), answer.asked_at


def _sample(known: Sequence[KnownPort]) -> Sequence[KnownPort]:
    """Return at most CHAIN_MAX of the boundaries, evenly spread, the deepest among them."""
    size = len(known)
    if size <= CHAIN_MAX:
        return known
    return [known[number * size // CHAIN_MAX - 1] for number in range(1, CHAIN_MAX + 1)]
