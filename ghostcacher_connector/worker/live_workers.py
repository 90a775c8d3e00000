"""A snapshot of the live workers, refreshed beside the code that asks for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef, ref_of
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.core.types import WorkerRecord

logger = logging.getLogger(__name__)

Records = Mapping[tuple[str, str], WorkerRecord]
"""Workers' records by namespace and name."""

NOBODY: Records = {}


class _Candidates(NamedTuple):
    """What `candidates` returned last, and for whom. Replaced as a whole."""

    records: Records
    reader: str | None
    refs: list[WorkerRef]


def hosts_of(records: Sequence[WorkerRecord]) -> set[str]:
    """Return the identities of the machines that workers are on."""
    return {endpoint.host for record in records for endpoint in record.ranks}


class LiveWorkers:
    """The live workers of one namespace, or of all when `namespace` is None.

    When the index does not answer, the last snapshot stays in force for `lease_ttl_s` at most: no worker in it can be
    known to live for longer.
    """

    available: bool
    """Whether the index answered the last time it was asked."""

    def __init__(
        self,
        index: BlockIndex,
        namespace: str | None,
        *,
        on_change: Callable[[Sequence[WorkerRecord]], None] | None = None,
        interval_s: float = 1.0,
        lease_ttl_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the snapshot; `start` keeps it fresh.

        on_change: called with all records whenever any of them has changed, by one thread at a time; it must not
            refresh.
        """
        self._index = index
        self._namespace = namespace
        self._on_change = on_change
        self._interval_s = interval_s
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock
        # Replaced as a whole, never changed: readers need no lock.
        self._records: Records = NOBODY
        self._moving = threading.Lock()
        # One change is passed on after the other, so that what was passed on last is what is known.
        self._passing_on = threading.Lock()
        self._candidates = _Candidates(NOBODY, None, [])
        self._seen_at = clock()
        self._thread = Periodic("gc-live-workers", self._step)
        self.available = False

    def __repr__(self) -> str:
        return f"LiveWorkers(namespace={self._namespace}, workers={len(self._records)}, available={self.available})"

    @property
    def snapshot(self) -> Records:
        """The live workers. Another object whenever any of them has changed, so that comparing identities tells."""
        return self._live()

    def records(self) -> list[WorkerRecord]:
        """Return the live workers in order of name."""
        return list(self._live().values())

    def candidates(self, exclude_worker: str | None = None) -> list[WorkerRef]:
        """Return the workers that may hold blocks: those that publish, without `exclude_worker`, who asks.

        Each worker has an order of its own, in which it asks those that hold the same: else all would read from one.
        """
        records, known = self._live(), self._candidates
        if known.records is not records or known.reader != exclude_worker:
            publishing = [record for record in records.values() if record.role.publishes]
            refs = [ref_of(record) for record in publishing if record.worker != exclude_worker]
            if exclude_worker is not None:
                refs.sort(key=lambda ref: blake2b(f"{exclude_worker}\0{ref.worker}".encode()).digest())
            self._candidates = known = _Candidates(records, exclude_worker, refs)
        return list(known.refs)

    def get(self, worker: str) -> WorkerRecord | None:
        """Return the record of a worker, or None. Of several in different namespaces, the first by name."""
        if self._namespace is not None:
            return self._live().get((self._namespace, worker))
        return next((record for record in self._live().values() if record.worker == worker), None)

    def move(self, namespace: str) -> None:
        """Follow another namespace from now on; nobody is known of it until the index was asked. Does not wait."""
        with self._moving:
            self._namespace = namespace
            self._records = NOBODY
        self._thread.wake()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread, within `timeout_s`. Idempotent."""
        self._thread.stop(timeout_s)

    def refresh(self) -> None:
        """Ask the index now. An index that does not answer is no error."""
        namespace = self._namespace
        try:
            records = self._index.workers(namespace)
        except IndexUnavailable as exc:
            if self.available:
                # The publisher warns.
                logger.debug("live workers of %s: %s", self._namespace or "all namespaces", exc)
            self.available = False
            if self._clock() - self._seen_at >= self._lease_ttl_s:
                self._replace(namespace, NOBODY)
            return
        self.available = True
        self._seen_at = self._clock()
        self._replace(namespace, {(record.namespace, record.worker): record for record in records})

    def _live(self) -> Records:
        return self._records if self._clock() - self._seen_at < self._lease_ttl_s else NOBODY

    def _replace(self, namespace: str | None, records: Records) -> None:
        """Take a snapshot, unless it is of a namespace that was left while the index was asked."""
        with self._passing_on:
            with self._moving:
                if namespace != self._namespace or records == self._records:
                    return
                self._records = records
            if self._on_change is not None:
                self._on_change(list(records.values()))

    def _step(self) -> float:
        self.refresh()
        return self._interval_s
