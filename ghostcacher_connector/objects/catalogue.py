"""What this rank knows of the objects in the store: which block is where. In memory, filled from notes.

A hint, as the index of the fleet is: objects come and go without being asked here. Who reads one checks it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from ghostcacher_connector.objects.object_format import Identity, header_bytes, object_digest
from ghostcacher_connector.objects.object_notes import FLUSHES, FlushedBlocks, Note, check_sizes

BLOCKS_MAX = 1 << 19
"""About 250 bytes each, and a terabyte of blocks of 2 MiB. Beyond it the objects that were used longest ago are
forgotten.
"""

DROPPED_MAX = 1 << 15
"""Of as many dropped objects the time is kept, so that an older note that comes late does not bring them back."""


class KnownObject:
    """One object."""

    __slots__ = (
        "after_tools",
        "changed_at",
        "digest",
        "hashes",
        "parent",
        "section",
        "session",
        "stored_bytes",
        "used_at",
    )

    def __init__(self, note: Note) -> None:
        self.digest = note.digest
        self.hashes = note.block_hashes()
        self.stored_bytes = note.stored_bytes
        self.section = note.section
        self.parent, self.session, self.after_tools = note.parent, note.session, note.after_tools
        self.changed_at = note.at
        self.used_at = note.at


class Span(NamedTuple):
    """Consecutive blocks of one object."""

    object: KnownObject
    first: int
    length: int

    def read_bytes(self, block_bytes: int) -> int:
        """Return how much of the object has to be read, from its beginning."""
        head = header_bytes(len(self.object.hashes), len(self.object.hashes[0]))
        plain = head + len(self.object.hashes) * block_bytes
        if self.object.stored_bytes < plain:
            return self.object.stored_bytes
        return head + (self.first + self.length) * block_bytes


class Catalogue:
    """Thread-safe; each call is short."""

    def __init__(self, identity: Identity, *, blocks_max: int = BLOCKS_MAX) -> None:
        self._identity = identity
        self._blocks_max = blocks_max
        self._lock = threading.Lock()
        self._objects: OrderedDict[bytes, KnownObject] = OrderedDict()
        """By digest, the one that was used longest ago first."""
        self._holders: dict[bytes, KnownObject] = {}
        """By block hash. Where two objects have a block, it is the one written later; when that goes, the other one is
        forgotten for this block, too.
        """
        self._flushed = FlushedBlocks()
        self._late: deque[bytes] = deque(maxlen=DROPPED_MAX)
        self._dropped: OrderedDict[bytes, float] = OrderedDict()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"Catalogue(objects={len(self._objects)}, blocks={len(self._holders)})"

    @property
    def object_count(self) -> int:
        return len(self._objects)

    @property
    def block_count(self) -> int:
        return len(self._holders)

    @property
    def stored_bytes(self) -> int:
        """The size of all known objects, as they are stored."""
        return self._bytes

    @property
    def newest_at(self) -> float:
        """When the object was written that was written last, as its note says; 0.0 when none is known."""
        with self._lock:
            return max((known.changed_at for known in self._objects.values()), default=0.0)

    @property
    def flushed_at(self) -> float:
        """When anything was flushed last, in seconds since 1970; 0.0 when that is longer ago than notes are kept."""
        return self._flushed.last_at

    def longest(self, hashes: Sequence[bytes], since: float = 0.0) -> int:
        """Return how many leading blocks of a prefix are in objects, of those written after `since`."""
        holders = self._holders
        for count, block_hash in enumerate(hashes):
            holder = holders.get(block_hash)
            if holder is None or holder.changed_at <= since:
                return count
        return len(hashes)

    def times(self, hashes: Sequence[bytes]) -> list[float]:
        """Return when the leading blocks of a prefix were written that are in objects, in seconds since 1970."""
        holders = list(takewhile(lambda one: one is not None, map(self._holders.get, hashes)))
        return [holder.changed_at for holder in holders if holder is not None]

    def plan(self, hashes: Sequence[bytes], written_at: Sequence[float] | None = None) -> list[Span]:
        """Return where the leading blocks of a prefix are that are in objects, in their order.

        written_at: of each, the time before which it must not have been written; None: any will do.
        """
        spans: list[Span] = []
        with self._lock:
            for index, block_hash in enumerate(hashes):
                holder = self._holders.get(block_hash)
                if holder is None or (written_at is not None and holder.changed_at < written_at[index]):
                    break
                last = spans[-1] if spans else None
                following = last.first + last.length if last else 0
                if last and last.object is holder and holder.hashes[following : following + 1] == (block_hash,):
                    spans[-1] = last._replace(length=last.length + 1)
                else:
                    spans.append(Span(holder, holder.hashes.index(block_hash), 1))
        return spans

    def apply(self, notes: Iterable[Note]) -> None:
        """Take in notes, in any order."""
        with self._lock:
            for note in notes:
                if note.what == "wrote":
                    self._wrote(note)
                elif note.what == "used":
                    self._used(note.digest, note.at)
                elif note.what in FLUSHES:
                    self._flush(note)
                else:
                    self._dropped_at(note.digest, note.at)
            while len(self._holders) > self._blocks_max and self._objects:
                self._forget(next(iter(self._objects)))

    def forget(self, digest: bytes) -> None:
        """Know an object no longer, until a note brings it back."""
        with self._lock:
            self._forget(digest)

    def used(self, digest: bytes, at: float) -> None:
        """Take note that an object was read."""
        with self._lock:
            self._used(digest, at)

    def covers(self, note: Note) -> bool:
        """Return whether what is to be written was flushed since that was decided on (`Note.at`)."""
        with self._lock:
            return self._flushed.covers(note)

    def objects(self) -> list[KnownObject]:
        """Return all objects."""
        with self._lock:
            return list(self._objects.values())

    def look(self, digest: bytes) -> KnownObject | None:
        """Return what is known of an object; None when it is not known."""
        return self._objects.get(digest)

    def take_late(self) -> list[bytes]:
        """Return the digests of objects of which a note came after they had been flushed, since the last call."""
        with self._lock:
            late = list(self._late)
            self._late.clear()
        return late

    def _wrote(self, note: Note) -> None:
        known = self._objects.get(note.digest)
        if self._flushed.covers(note):
            self._late.append(note.digest)
            return
        if self._dropped.get(note.digest, 0.0) >= note.at or not check_sizes(note, self._identity.block_bytes):
            return
        if known is not None:
            if known.changed_at >= note.at:
                return
            self._forget(note.digest)
        fresh = KnownObject(note)
        if object_digest(self._identity, fresh.hashes) != note.digest:
            return
        if known is not None:
            fresh.used_at = max(known.used_at, note.at)
        self._objects[note.digest] = fresh
        self._bytes += fresh.stored_bytes
        for block_hash in fresh.hashes:
            other = self._holders.get(block_hash)
            if other is None or other.changed_at <= fresh.changed_at:
                self._holders[block_hash] = fresh

    def _used(self, digest: bytes, at: float) -> None:
        known = self._objects.get(digest)
        if known is not None and known.used_at < at:
            known.used_at = at
            self._objects.move_to_end(digest)

    def _flush(self, note: Note) -> None:
        self._flushed.add(note)
        blocks = set(note.block_hashes())
        for known in list(self._objects.values()):
            if known.changed_at <= note.at and (note.what == "cleared" or not blocks.isdisjoint(known.hashes)):
                self._forget(known.digest)

    def _dropped_at(self, digest: bytes, at: float) -> None:
        known = self._objects.get(digest)
        if known is not None and known.changed_at <= at:
            self._forget(digest)
        self._dropped[digest] = max(at, self._dropped.get(digest, 0.0))
        while len(self._dropped) > DROPPED_MAX:
            self._dropped.popitem(last=False)

    def _forget(self, digest: bytes) -> None:
        known = self._objects.pop(digest, None)
        if known is None:
            return
        self._bytes -= known.stored_bytes
        for block_hash in known.hashes:
            if self._holders.get(block_hash) is known:
                del self._holders[block_hash]
