"""Keeps the whole store within its bounds of age and size, for all namespaces and ranks in it.

One worker of the fleet does that in each stretch of `SWEEP_S`, whichever claims it. It lists what there is, learns from
all notes when each object was last used, and deletes what was not used for longer than the time to live, then what was
used longest ago, until the rest fits. A deletion needs nobody's consent: who looks for such an object finds none, and
that is a miss. Nothing here knows whether workers of a namespace are alive; what they leave behind ages like all else.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.claims import claimed
from ghostcacher_connector.objects.layout import NOTES, OBJECTS, QUARANTINE, SWEEPS, digest_of
from ghostcacher_connector.objects.object_notes import SEGMENT_BYTES_MAX, decode_segment
from ghostcacher_connector.objects.stores.base import TEMPORARY, ObjectStore, StoreError

SWEEP_S = 600.0
LISTED_MAX = 1 << 20
SEGMENTS_MAX = 1 << 14
DELETED_MAX = 1 << 14
"""In one sweep; the next one goes on."""

DELETE_BATCH = 256
PARTIAL_S_MAX = 3600.0
"""A file that is not whole by then was left by a process that died."""

QUARANTINED_MAX = 16
"""Damaged objects that are kept for whoever wants to know why."""

KEPT_S = 86_400.0
"""For how long claims, and the notes of ranks of which nothing else is left, are kept."""


class Swept(NamedTuple):
    """What a sweep did."""

    objects: int
    """That are left."""
    stored_bytes: int
    """That are left."""
    expired: int
    """Objects that were deleted for their age."""
    evicted: int
    """Objects that were deleted for the size of all."""


class Sweeper:
    """Enforces the bounds. For one thread alone."""

    def __init__(
        self,
        store: ObjectStore,
        recorder: Recorder,
        *,
        ttl_s: float,
        bytes_max: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """ttl_s: after its last use. bytes_max: of all objects together."""
        self._store = store
        self._recorder = recorder
        self._ttl_s = ttl_s
        self._bytes_max = bytes_max
        self._wall = wall

    def sweep_if_due(self) -> Swept | None:
        """Sweep unless another worker has claimed this stretch of time. Raises StoreError."""
        return self.sweep() if claimed(self._store, "sweep", SWEEP_S, self._wall()) else None

    def sweep(self) -> Swept:
        """Delete what is too old or too much. Raises StoreError."""
        now = self._wall()
        used = self._last_uses()
        expired: list[str] = []
        oldest: list[tuple[float, str, int]] = []
        folders: set[str] = set()
        count = total = 0
        for one in self._store.walk(OBJECTS, LISTED_MAX):
            last_used = max(one.written_at, used.get(digest_of(one.name) or b"", 0.0))
            if now - last_used > self._ttl_s and len(expired) < DELETED_MAX:
                expired.append(one.name)
                continue
            folders.add(_folder(one.name, OBJECTS))
            count, total = count + 1, total + one.size_bytes
            # The most lately used one of those that are kept in mind is the least, and goes when another one comes.
            entry = (-last_used, one.name, one.size_bytes)
            if len(oldest) < DELETED_MAX:
                heapq.heappush(oldest, entry)
            else:
                heapq.heappushpop(oldest, entry)
        evicted, freed = _surplus(oldest, total - self._bytes_max)
        self._delete(expired, "expired")
        self._delete(evicted, "budget")
        self._tidy(now, folders, complete=count + len(expired) < LISTED_MAX)
        return Swept(count - len(evicted), total - freed, len(expired), len(evicted))

    def _last_uses(self) -> dict[bytes, float]:
        """Return when each object was last used or written, as far as notes say, of all namespaces and ranks."""
        used: dict[bytes, float] = {}
        for one in self._store.walk(NOTES, SEGMENTS_MAX):
            if one.size_bytes > SEGMENT_BYTES_MAX or len(used) >= LISTED_MAX:
                continue
            try:
                segment = decode_segment(self._store.read(one.name, one.size_bytes), None, None)
            except (ProtocolError, StoreError):
                # Merged away meanwhile, or damaged: whose it is puts it aside.
                continue
            for note in segment.notes:
                used[note.digest] = max(note.at, used.get(note.digest, 0.0))
        return used

    def _tidy(self, now: float, folders: set[str], *, complete: bool) -> None:
        """Delete what nobody will ask for: see the constants. folders: those in which there are objects."""
        rest = [one.name for one in self._store.walk(SWEEPS, LISTED_MAX) if now - one.written_at > KEPT_S]
        rest += [one.name for one in self._store.walk(TEMPORARY, LISTED_MAX) if now - one.written_at > PARTIAL_S_MAX]
        aside = sorted(self._store.walk(QUARANTINE, LISTED_MAX), key=lambda one: one.written_at, reverse=True)
        rest += [one.name for one in aside[QUARANTINED_MAX:]]
        rest += [one.name for one in aside[:QUARANTINED_MAX] if now - one.written_at > self._ttl_s + KEPT_S]
        if complete:
            rest += [
                one.name
                for one in self._store.walk(NOTES, SEGMENTS_MAX)
                if now - one.written_at > KEPT_S and _folder(one.name, NOTES) not in folders
            ]
        for batch in _batches(rest):
            self._store.delete(batch)

    def _delete(self, names: list[str], reason: str) -> None:
        for batch in _batches(names):
            self._store.delete(batch)
            self._recorder.inc("gc_object_deleted_total", len(batch), reason=reason)


def _surplus(oldest: list[tuple[float, str, int]], surplus_bytes: int) -> tuple[list[str], int]:
    """Return the objects to delete, the one used longest ago first, and their bytes."""
    names: list[str] = []
    freed = 0
    for _, name, size_bytes in sorted(oldest, reverse=True):
        if freed >= surplus_bytes:
            break
        names.append(name)
        freed += size_bytes
    return names, freed


def _folder(name: str, root: str) -> str:
    """Return namespace and rank in a name below `root`."""
    return "/".join(name.removeprefix(root).split("/")[:2])


def _batches(names: list[str]) -> Iterator[list[str]]:
    left = iter(names)
    while batch := list(islice(left, DELETE_BATCH)):
        yield batch
