"""The directory of workers in Redis: who has which name, and whose lease lasts. See schema.py for the keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import GONE_S, GoneWorker, NameHolder, WorkerRef
from ghostcacher_connector.core.redis.client import Argument, RedisCalls, milliseconds
from ghostcacher_connector.core.redis.reply_bounds import PAGE_BYTES_MAX
from ghostcacher_connector.core.redis.server_clock import ServerClock
from ghostcacher_connector.core.stamps import STAMP_BYTES, Stamps
from ghostcacher_connector.core.types import WorkerRecord

WORKERS_MAX = 10_000
NAMESPACES_MAX = 1_000
ENTER_TRIES = 3
"""How often a name is asked for while somebody holds it who has not our key, and is put out of the way."""
DIRECTORY_TTL_S = 3_600
"""How long a namespace, and the list of its workers, outlives the last renewal in it."""


class WorkerDirectory:
    """The records of workers, for one client of the index.

    refuse: told of values that are not believed: their kind, why, and how many.
    """

    def __init__(
        self, calls: RedisCalls, key: bytes, stamps: Stamps, refuse: Callable[[str, ProtocolError, int], None]
    ) -> None:
        self._calls, self._key, self._stamps, self._refuse = calls, key, stamps, refuse
        self._clocks: dict[str, ServerClock] = {}
        self._records: dict[tuple[str, str], tuple[bytes, WorkerRecord]] = {}

    def __repr__(self) -> str:
        return f"WorkerDirectory({self._calls!r})"

    def enter(
        self, record: WorkerRecord, lease_ttl_s: float, *, take_over: bool, replaces: str = ""
    ) -> tuple[bytes, NameHolder | None]:
        """Enter a record, unless another incarnation holds the name and must not be replaced.

        Returns the other incarnation that has or had the name (empty: none), and who it is if it was not replaced.
        """
        namespace, worker = record.namespace, record.worker
        args: list[Argument] = [
            worker,
            schema.pack_record(record, self._key),
            milliseconds(lease_ttl_s),
            schema.RECORD_MAGIC,
            record.incarnation,
            int(take_over),
            milliseconds(max(DIRECTORY_TTL_S, 2 * lease_ttl_s)),
            record.owner.token if record.owner is not None else "",
            replaces,
        ]
        lease = schema.lease_place(record)
        displaced = ""
        for _ in range(ENTER_TRIES):
            stamp = self._stamps.put(lease, b"", at=self.now(namespace), ttl_s=lease_ttl_s)
            more: list[Argument] = [stamp, displaced, schema.RECORD_BYTES_MAX, STAMP_BYTES]
            reply = self._calls.run("enter", self._name_keys(namespace, worker), [*args, *more])
            other, current, current_lease, seconds, us = reply
            now = self.clock_of(namespace).said(seconds, us)
            holder = self._verified(namespace, worker, current, current_lease, now) if current else None
            if not current or holder is not None or not self._key:
                break
            # With a key a name is held by those who have it, and by nobody else.
            displaced = hashlib.sha1(current, usedforsecurity=False).hexdigest()
        self._namespaces(namespace)
        return other, NameHolder(other, holder) if current else None

    def leave(self, ref: WorkerRef) -> None:
        """Take a worker out, unless a later incarnation has its name."""
        keys = self._name_keys(ref.namespace, ref.worker)
        self._calls.run("leave", keys, [ref.worker, schema.RECORD_MAGIC + ref.incarnation])

    def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
        if namespace is not None:
            return self._workers_of(namespace)
        names = self._namespaces("")
        records = [record for name in names for record in self._workers_of_named(name)]
        return sorted(records, key=lambda record: (record.worker, record.namespace))

    def gone(self) -> list[GoneWorker]:
        gone = []
        for namespace in (name.decode("ascii", errors="replace") for name in self._namespaces("")):
            if schema.is_namespace(namespace):
                prefix = schema.worker_key_prefix(namespace)
                args: list[Argument] = [prefix, GONE_S, WORKERS_MAX, schema.WORKER_BYTES_MAX]
                found = self._calls.run("gone", [schema.workers_key(namespace)], args)
                for name, silent_s in zip(found[::2], found[1::2], strict=True):
                    worker = name.decode("utf-8", errors="replace")
                    if schema.is_worker(worker):
                        gone.append(GoneWorker(worker, namespace, float(silent_s)))
        return sorted(gone)

    def clock_of(self, namespace: str) -> ServerClock:
        """Return the clock of the shard where a namespace's workers lie."""
        if len(self._clocks) > NAMESPACES_MAX:
            self._clocks.clear()
        return self._clocks.setdefault(namespace, ServerClock())

    def now(self, namespace: str) -> float:
        """Return the time there; without a key, which nothing needs, 0.0."""
        if not self._key:
            return 0.0
        clock = self.clock_of(namespace)
        return clock.now(lambda: clock.said(*self._calls.time(schema.workers_key(namespace))))

    def _namespaces(self, used: str) -> list[bytes]:
        """Note that a namespace is in use ("": none); return those in use."""
        args: list[Argument] = [used, DIRECTORY_TTL_S, 0 if used else NAMESPACES_MAX, schema.NAMESPACE_CHARS_MAX]
        names: list[bytes] = self._calls.run("namespaces", [schema.namespaces_key()], args)
        return names

    @staticmethod
    def _name_keys(namespace: str, worker: str) -> list[str]:
        return [
            schema.worker_key(namespace, worker),
            schema.workers_key(namespace),
            schema.owner_key(namespace, worker),
            schema.lease_key_prefix(namespace) + worker,
        ]

    def _verified(self, namespace: str, worker: str, packed: bytes, lease: bytes, now: float) -> WorkerRecord | None:
        """Return a record; None when it is malformed or cannot be verified, which is counted.

        lease: the stamp of its lease. now: when both were read, in seconds of the server's clock.
        """
        try:
            record = self._unpacked(namespace, worker, packed)
            if self._key and record.stamped:
                self._stamps.take(schema.lease_place(record), lease, now=now)
        except ProtocolError as exc:
            self._refuse("record", exc, 1)
            return None
        return record

    def _workers_of_named(self, name: bytes) -> list[WorkerRecord]:
        namespace = name.decode("ascii", errors="replace")
        if not schema.is_namespace(namespace):
            self._refuse("namespace", ProtocolError("expected a name"), 1)
            return []
        return self._workers_of(namespace)

    def _workers_of(self, namespace: str) -> list[WorkerRecord]:
        prefixes = [schema.worker_key_prefix(namespace), schema.lease_key_prefix(namespace)]
        bounds = [GONE_S, schema.WORKER_BYTES_MAX, schema.RECORD_BYTES_MAX, STAMP_BYTES, PAGE_BYTES_MAX]
        records, passed = dict[str, WorkerRecord](), 0
        while True:
            args: list[Argument] = [*prefixes, passed, WORKERS_MAX - passed, *bounds]
            malformed, onward, seconds, us, *found = self._calls.run("workers", [schema.workers_key(namespace)], args)
            if malformed:
                self._refuse("record", ProtocolError("of a type or size that none of ours has"), malformed)
            now = self.clock_of(namespace).said(seconds, us)
            for name, packed, lease in zip(found[::3], found[1::3], found[2::3], strict=True):
                record = self._verified(namespace, name.decode("utf-8", errors="replace"), packed, lease, now)
                if record is not None:
                    records[record.worker] = record
            if not passed < onward < WORKERS_MAX:
                return sorted(records.values(), key=lambda record: record.worker)
            passed = onward

    def _unpacked(self, namespace: str, worker: str, packed: bytes) -> WorkerRecord:
        """Return a record; one that has not changed since the last call is not unpacked again."""
        known = self._records.get((namespace, worker))
        if known is not None and known[0] == packed:
            return known[1]
        record = schema.unpack_record(packed, namespace=namespace, worker=worker, key=self._key)
        if len(self._records) >= WORKERS_MAX:
            self._records.clear()
        self._records[namespace, worker] = packed, record
        return record
