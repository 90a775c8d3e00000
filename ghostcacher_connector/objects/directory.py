"""What a worker's scheduler knows of objects: which leading blocks of a prompt every rank would find.

Each rank has objects of its own, and writes, reads and drops them alone. A prefix is of use only as far as all ranks
have it. The directory reads the notes of all of them, and has objects of all of them flushed (object_flushes.py); it
has one thread, ``gc-obj-dir``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.object_flushes import FlushWanted, ObjectFlushes
from ghostcacher_connector.objects.object_format import Identity, namespace_digest
from ghostcacher_connector.objects.rank_objects import RankObjects
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError
from ghostcacher_connector.objects.stores.open_store import open_store
from ghostcacher_connector.objects.tier_options import TierOptions

logger = logging.getLogger(__name__)

REFRESH_S = 5.0
"""How soon a scheduler knows what the ranks of any worker have written."""


class ObjectDirectory:
    """The catalogues of all ranks of one namespace. `longest` is for any thread."""

    @classmethod
    def open(
        cls, url: str, *, namespace: bytes, block_bytes: Sequence[int], options: TierOptions, recorder: Recorder
    ) -> Self:
        """Begin to read what there is, in the background. Raises ConfigError for a URL that is none.

        namespace: as that of the ranks' tiers. block_bytes: of one block in each rank, in the order of ranks.
        """
        store = open_store(url, timeout_s=options.timeout_s)
        return cls(store, namespace=namespace, block_bytes=block_bytes, recorder=recorder)

    def __init__(
        self,
        store: ObjectStore,
        *,
        namespace: bytes,
        block_bytes: Sequence[int],
        recorder: Recorder,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """As `open`, on a store that is open."""
        assert block_bytes, "a worker has at least one rank"
        digest = namespace_digest(namespace)
        identities = [Identity(digest, rank, size) for rank, size in enumerate(block_bytes)]
        self._ranks = [RankObjects(store, identity, recorder, wall=wall) for identity in identities]
        self._wall = wall
        self.since = 0.0
        """What was written until then is not counted, in seconds since 1970; see `hide`."""
        self._listed = threading.Event()
        self._backoff = Backoff()
        self._flushes = ObjectFlushes(store, self._ranks, wall=wall)
        self._keeper = Periodic("gc-obj-dir", self._step)
        self._keeper.start()

    def __repr__(self) -> str:
        return f"ObjectDirectory({[rank.catalogue for rank in self._ranks]})"

    def wait_listed(self, timeout_s: float) -> bool:
        """Wait until all that was in the store at the start is known; return whether it is."""
        return self._listed.wait(timeout_s)

    def longest(self, hashes: Sequence[bytes]) -> int:
        """Return how many leading blocks of a prefix every rank has in objects, as far as is known. No I/O.

        None while it is found out what an order to flush means.
        """
        if self._flushes.undecided:
            return 0
        return min(rank.catalogue.longest(hashes, self.since) for rank in self._ranks)

    def times(self, hashes: Sequence[bytes]) -> list[float]:
        """Return when the leading blocks of a prefix were written, on the rank where that was first, in seconds."""
        return list(map(min, zip(*(rank.catalogue.times(hashes) for rank in self._ranks), strict=False)))

    def hide(self) -> None:
        """Count nothing any more that was written until now: somebody wants it computed here."""
        self.since = max(self._wall(), *(rank.catalogue.newest_at for rank in self._ranks))

    def flush(self, wanted: FlushWanted) -> None:
        """Have the objects of some blocks deleted, and count none of them any more from now on. Waits for nothing."""
        self._flushes.add(wanted)
        self._keeper.wake()

    def close(self, deadline_s: float) -> None:
        """End the thread, and wait for that for at most `deadline_s`. Idempotent."""
        self._keeper.stop(deadline_s)

    def _step(self) -> float:
        """Read the notes that are new, and flush what is to be flushed; return in how many seconds to look again."""
        was_listed = self._listed.is_set()
        try:
            complete = self._refresh()
        except StoreError as error:
            self._flushes.decide()
            return self._failed("list", error)
        self._flushes.decide()
        try:
            self._flushes.carry_out(late=was_listed)
        except StoreError as error:
            return self._failed("delete", error)
        self._backoff.succeeded()
        if not complete:
            return 0.0
        self._listed.set()
        return REFRESH_S

    def _refresh(self) -> bool:
        """Read the notes that are new; return whether all were read. Raises StoreError."""
        # Every rank is looked at, also where the first one has more to read than one look takes.
        with self._flushes.looking():
            complete = [rank.notes.refresh() for rank in self._ranks]
        return all(complete)

    def _failed(self, operation: str, error: StoreError) -> float:
        self._ranks[0].failed(operation, error)
        if not self._backoff.failures:
            logger.warning("object tier: %s (%s)", error, error.fault.value)
        self._flushes.failed(error)
        return self._backoff.failed(time.monotonic())
