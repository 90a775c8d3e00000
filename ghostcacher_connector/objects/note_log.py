"""The notes of one rank of one namespace in the store: written in batches, read by whoever starts, merged now and then.

Life of a note: it waits here for at most `FLUSH_S` or until `FLUSH_NOTES` are together, goes into a segment of its own,
is read by every other worker within `REFRESH_S`, and ends in a merged segment. A worker that dies in between leaves an
object of which nobody knows: who writes the same blocks finds it there and notes it, or its age ends it.

Merging: the merged segment is written before those that it replaces are deleted. So at any time all notes are there,
some perhaps twice; two workers that merge at the same time do it twice. A reader whose segment is gone by the time it
is read finds the merged one with its next listing.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.objects.claims import claimed
from ghostcacher_connector.objects.layout import NOTES, folder_of, quarantine_name
from ghostcacher_connector.objects.object_format import Identity
from ghostcacher_connector.objects.object_notes import (
    SEGMENT_BYTES_MAX,
    Note,
    Segment,
    batches,
    decode_segment,
    encode_segment,
    merged,
)
from ghostcacher_connector.objects.stores.base import ListedObject, ObjectStore, StoreError, StoreFault

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
FLUSH_NOTES = 64
PENDING_MAX = 1 << 16
"""Of notes that cannot be written now, the oldest are given up."""

SEGMENTS_MAX = 4096
"""Listed at a time. Merging keeps them far below; the rest is read after the next merge."""

MERGE_AT = 48
MERGE_S = 30.0
"""One worker merges in such a stretch of time: as many as there are would make as many merged segments."""

MERGE_NOTES_MAX = 1 << 17
"""What one merge keeps: the latest notes. Of the other objects nobody knows any longer, and their age ends them."""

REFRESH_S_MAX = 20.0
"""What one refresh takes, about; the next one goes on where it ended."""


class NoteLog:
    """Writes and reads notes. `add` is for any thread; all else is for one thread alone."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        apply: Callable[[tuple[Note, ...]], None],
        *,
        on_damage: Callable[[], None],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """apply: takes in the notes that were read. on_damage: called for each segment that was none."""
        self._store = store
        self._identity = identity
        self._apply = apply
        self._on_damage = on_damage
        self._wall = wall
        self._clock = clock
        self._folder = NOTES + folder_of(identity)
        self._claim = f"{identity.namespace.hex()}-{identity.rank}"
        self._writer = secrets.token_hex(6)
        self._read: set[str] = set()
        self._lock = threading.Lock()
        self._pending: list[Note] = []
        self._pending_since: float | None = None

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def add(self, note: Note) -> None:
        """Have a note written soon."""
        with self._lock:
            if self._pending_since is None:
                self._pending_since = self._clock()
            self._pending.append(note)
            del self._pending[:-PENDING_MAX]

    def due_s(self) -> float:
        """Return in how many seconds `flush` is due."""
        with self._lock:
            if self._pending_since is None:
                return FLUSH_S
            if len(self._pending) >= FLUSH_NOTES:
                return 0.0
            return max(0.0, self._pending_since + FLUSH_S - self._clock())

    def flush(self) -> None:
        """Write the notes that wait. Raises StoreError; then they go on waiting."""
        with self._lock:
            notes = next(batches(self._pending), ())
        if not notes:
            return
        try:
            self._write(notes)
        except StoreError:
            with self._lock:
                self._pending_since = self._clock()
            raise
        with self._lock:
            # What `add` has given up meanwhile was at the beginning.
            self._pending = self._pending[len(notes) :] if self._pending[:1] == [notes[0]] else self._pending
            self._pending_since = self._clock() if self._pending else None

    def take_back(self, unwanted: Callable[[Note], bool]) -> list[Note]:
        """Return the notes that wait and are unwanted, and do not write them."""
        with self._lock:
            found = [note for note in self._pending if unwanted(note)]
            if found:
                self._pending = [note for note in self._pending if note not in found]
        return found

    def flush_all(self) -> None:
        """Write all notes that wait. Raises StoreError."""
        while self.pending_count:
            self.flush()

    def refresh(self) -> bool:
        """Read the segments that are new, the latest first; return whether all were read. Raises StoreError."""
        began = self._clock()
        listed = list(self._store.walk(self._folder, SEGMENTS_MAX))
        names = {one.name for one in listed}
        self._read &= names
        fresh = sorted((one for one in listed if one.name not in self._read), key=lambda one: one.name, reverse=True)
        for one in fresh:
            if self._clock() - began > REFRESH_S_MAX:
                return False
            segment = self._segment(one)
            if segment is not None:
                self._apply(segment.notes)
            self._read.add(one.name)
        if len(listed) >= MERGE_AT and claimed(self._store, f"merge-{self._claim}", MERGE_S, self._wall()):
            self._merge(listed)
        return True

    def _merge(self, listed: list[ListedObject]) -> None:
        notes: list[Note] = []
        replaced = []
        for one in sorted(listed, key=lambda one: one.name, reverse=True):
            if len(notes) > 2 * MERGE_NOTES_MAX:
                break
            segment = self._segment(one)
            if segment is not None:
                notes += segment.notes
                replaced.append(one.name)
        for batch in batches(merged(notes, self._wall())[:MERGE_NOTES_MAX]):
            self._write(batch)
        self._store.delete(replaced)
        self._read -= set(replaced)

    def _write(self, notes: tuple[Note, ...]) -> None:
        name = f"{self._folder}{int(self._wall() * 1000):015d}-{self._writer}-{secrets.token_hex(4)}"
        segment = Segment(self._identity.namespace, self._identity.rank, notes)
        self._store.create(name, memoryview(encode_segment(segment)))
        self._read.add(name)

    def _segment(self, one: ListedObject) -> Segment | None:
        """Return a segment; None when it is gone, or was none and is out of the way now."""
        try:
            if one.size_bytes > SEGMENT_BYTES_MAX:
                raise ProtocolError(
                    f"segment of notes: expected {SEGMENT_BYTES_MAX} bytes at most, got {one.size_bytes}"
                )
            data = self._store.read(one.name, one.size_bytes)
            return decode_segment(data, self._identity.namespace, self._identity.rank)
        except StoreError as error:
            if error.fault is not StoreFault.MISSING:
                raise
        except ProtocolError as error:
            logger.warning("object tier: %s: %s; it is put aside", one.name, error)
            self._on_damage()
            try:
                self._store.move(one.name, quarantine_name(one.name))
            except StoreError as failed:
                logger.warning("object tier: %s", failed)
        return None
