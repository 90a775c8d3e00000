"""How deep each worker holds a text, as the index said a moment ago.

A text is named by its deepest known boundary. An answer younger than FRESH_S is used; one that is older than REFRESH_S
and in use is asked for again, beside the requests; only what is not known at all, or too old, is waited for.
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
"""What the router itself sends and what workers report is known at once: this is for what they have evicted."""
FRESH_S = 2.0
OLD_S = 30.0
"""While the index does not answer, what it said last is used for so long: prefixes live for minutes."""

WAIT_S = 0.005
"""Bound of a request's wait for an answer. A lookup takes a tenth of it."""

TEXTS_MAX = 1 << 14
HASHES_MAX = 500_000
"""Of all texts' chains together: some 50 MB."""

CHAIN_MAX = 64
"""Of a longer chain only some hashes are asked for: a holder is told to within a sixtieth of the text."""

Key = tuple[str, bytes]
"""Namespace, hash of the deepest known blocks."""


class Held(NamedTuple):
    """What one life of a worker holds of a text. blocks: from the first one."""

    incarnation: bytes
    blocks: int


class _Answer(NamedTuple):
    """text: that was asked for. lengths: of its chain, held by each of the candidates. seconds: of the whole call."""

    text: _Text | None
    candidates: Sequence[WorkerRef]
    lengths: Sequence[int]
    seconds: float


class _Text:
    __slots__ = ("at", "chain", "counts", "held")

    def __init__(self, chain: Sequence[bytes], counts: Sequence[int]) -> None:
        self.at = float("-inf")
        self.chain, self.counts = chain, counts
        self.held: dict[str, Held] = {}


class PrefixLocations:
    """Text -> holders. On the event loop only; the index is asked in threads.

    index: None: nothing is ever known but what is told. observe: takes the time of each lookup, s.
    """

    def __init__(
        self,
        index: BlockIndex | None,
        fleet: WorkersPort,
        offload: Offload,
        clock: Clock,
        *,
        observe: Callable[[float], None],
        texts_max: int = TEXTS_MAX,
        hashes_max: int = HASHES_MAX,
    ) -> None:
        self._hashes_max, self._hashes = hashes_max, 0
        self._index, self._fleet, self._clock, self._observe = index, fleet, clock, observe
        self._texts_max = texts_max
        self._texts: OrderedDict[Key, _Text] = OrderedDict()
        self._lookups: Coalescer[Key, _Answer] = Coalescer(self._prepare, self._told, offload, clock=clock)

    def __repr__(self) -> str:
        return f"PrefixLocations(texts={len(self._texts)}, hashes={self._hashes}, available={self.available})"

    @property
    def available(self) -> bool:
        """Whether the index can be asked: there is one, and it did not fail a moment ago."""
        return self._index is not None and not self._lookups.broken

    def get(
        self, namespace: str, deepest: KnownPort, *, newer_than: float | None = None, old: bool = False
    ) -> Mapping[str, Held] | None:
        """Return who holds how much of a text, or None when it must be waited for; that never while it is of no use.

        deepest: of its known boundaries. newer_than: loop clock, s; what was said before does not do. old: anything
        will do, or nothing.
        """
        key = (namespace, deepest.block_hash)
        text = self._texts.get(key)
        old = old or not self.available
        if text is None:
            return {} if old else None
        self._texts.move_to_end(key)
        age = self._clock() - text.at
        if old:
            return text.held if age <= OLD_S else {}
        if age > FRESH_S or (newer_than is not None and text.at <= newer_than):
            return None
        if age > REFRESH_S:
            self._lookups.refresh(key)
        return text.held

    async def fetch(self, namespace: str, known: Sequence[KnownPort], timeout_s: float = WAIT_S) -> None:
        """Ask the index, and wait a bounded time for what it says. known: boundaries, at least one, ascending."""
        key = (namespace, known[-1].block_hash)
        self._enter(key, known)
        if self._index is not None:
            await self._lookups.wait(key, timeout_s)

    def seed(self, namespace: str, known: Sequence[KnownPort], worker: str, held: Held) -> None:
        """Take note of a holder that the index may not know yet. To be confirmed as soon as the text is used."""
        key = (namespace, known[-1].block_hash)
        text = self._texts.get(key)
        if text is None:
            # Who holds a text's beginning holds that much of the text.
            begun = (self._texts.get((namespace, boundary.block_hash)) for boundary in reversed(known[:-1]))
            shorter = next((one for one in begun if one is not None), None)
            text = self._enter(key, known)
            text.held = {} if shorter is None else shorter.held
        before = text.held.get(worker)
        if before is None or before.incarnation != held.incarnation or before.blocks < held.blocks:
            text.held = {**text.held, worker: held}
        text.at = max(text.at, self._clock() - REFRESH_S)

    def clear(self) -> None:
        self._texts.clear()
        self._hashes = 0

    def stop(self) -> None:
        self._lookups.stop()

    def _enter(self, key: Key, known: Sequence[KnownPort]) -> _Text:
        text = self._texts.get(key)
        if text is None:
            kept = _some(known)
            text = _Text([boundary.block_hash for boundary in kept], [boundary.block_count for boundary in kept])
            self._texts[key] = text
            self._hashes += len(kept)
            while len(self._texts) > self._texts_max or self._hashes > self._hashes_max:
                _, gone = self._texts.popitem(last=False)
                self._hashes -= len(gone.chain)
        return text

    def _prepare(self, keys: Sequence[Key]) -> Callable[[], list[_Answer]]:
        index, refs = self._index, self._refs()
        assert index is not None
        # Read here, on the loop: a thread must not see a text come or go.
        texts = [self._texts.get(key) for key in keys]
        asked: dict[str, list[tuple[int, Sequence[bytes]]]] = {}
        for place, (key, text) in enumerate(zip(keys, texts, strict=True)):
            asked.setdefault(key[0], []).append((place, text.chain if text is not None else []))

        def ask() -> list[_Answer]:
            answers = [_Answer(None, (), (), 0.0)] * len(keys)
            for namespace, places in asked.items():
                candidates = refs.get(namespace, [])
                # What goes beyond the index's bound would be answered with "nobody has it".
                at_once = max(1, DEPTHS_MAX // max(1, len(candidates)))
                for first in range(0, len(places), at_once):
                    some, started = places[first : first + at_once], perf_counter()
                    depths = index.depths(candidates, [chain for _, chain in some])
                    seconds = perf_counter() - started
                    for (place, _), lengths in zip(some, depths, strict=True):
                        answers[place] = _Answer(texts[place], candidates, lengths, seconds)
            return answers

        return ask

    def _refs(self) -> dict[str, list[WorkerRef]]:
        refs: dict[str, list[WorkerRef]] = {}
        for worker in self._fleet.workers.values():
            if (ref := worker.ref) is not None:
                refs.setdefault(ref.namespace, []).append(ref)
        return refs

    def _told(self, key: Key, answer: _Answer) -> None:
        self._observe(answer.seconds)
        text = answer.text
        # One that was forgotten meanwhile, and came back, may know other depths under the same key.
        if text is not None and text is self._texts.get(key):
            # Always a new mapping: who was handed the old one keeps what it has seen.
            text.held = {
                ref.worker: Held(ref.incarnation, text.counts[length - 1])
                for ref, length in zip(answer.candidates, answer.lengths, strict=True)
                if length
            }
            text.at = self._clock()


def _some(known: Sequence[KnownPort]) -> Sequence[KnownPort]:
    """Return some of the boundaries, evenly spread, the deepest among them."""
    size = len(known)
    if size <= CHAIN_MAX:
        return known
    return [known[number * size // CHAIN_MAX - 1] for number in range(1, CHAIN_MAX + 1)]
