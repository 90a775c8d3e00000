"""What reading, writing and keeping the objects of one rank of one namespace have in common."""

from __future__ import annotations

import time
from collections.abc import Callable

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.catalogue import Catalogue
from ghostcacher_connector.objects.fp8 import Fp8
from ghostcacher_connector.objects.layout import object_name
from ghostcacher_connector.objects.note_log import NoteLog
from ghostcacher_connector.objects.object_format import Identity
from ghostcacher_connector.objects.object_notes import Note
from ghostcacher_connector.objects.quarantine import Quarantine
from ghostcacher_connector.objects.store_rates import StoreRate
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError


class RankObjects:
    """The store, whose objects they are, and what is known of them."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        recorder: Recorder,
        *,
        fp8: Fp8 | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """fp8: rounds blocks, in a namespace whose blocks are; None: they are exact. wall: seconds since 1970."""
        self.store = store
        self.identity = identity
        self.fp8 = fp8
        self.recorder = recorder
        self.wall = wall
        self.catalogue = Catalogue(identity)
        self.notes = NoteLog(store, identity, self.catalogue.apply, on_damage=self._segment_damaged, wall=wall)
        self.quarantine = Quarantine(store, recorder, wall=wall)
        self.read_rate = StoreRate()
        self.write_rate = StoreRate()

    def name_of(self, digest: bytes) -> str:
        """Return the name of an object in the store."""
        return object_name(self.identity, digest)

    def note(self, note: Note) -> None:
        """Take note of what happened to an object, here at once and in the fleet soon."""
        self.catalogue.apply((note,))
        self.notes.add(note)

    def failed(self, operation: str, error: StoreError) -> None:
        """Count a request to the store that failed."""
        self.recorder.inc("gc_object_errors_total", operation=operation, reason=error.fault.value)

    def _segment_damaged(self) -> None:
        self.recorder.inc("gc_object_quarantined_total", reason="notes")
