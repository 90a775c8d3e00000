"""The index in this process's memory: the same contract as Redis, for tests, simulations and single-process use."""

from __future__ import annotations

import copy
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.errors import DigestMismatch, IndexUnavailable, ProtocolError
from ghostcacher_connector.core.index.base import (
    GONE_S,
    READERS_MAX,
    BlockIndex,
    Drop,
    Entry,
    GoneWorker,
    NameHolder,
    Renewal,
    WorkerRef,
)
from ghostcacher_connector.core.refusals import Refusals
from ghostcacher_connector.core.stamps import Stamps
from ghostcacher_connector.core.types import BlockHash, PrefixHit, WorkerRecord

V = TypeVar("V")
BlocksKey = tuple[str, bytes, int]


class _Stored(NamedTuple):
    """A record as it lies in Redis, and what a script can see of it."""

    namespace: str
    worker: str
    incarnation: bytes
    owner: str | None
    packed: bytes
    lease: bytes
    """The stamp of its lease; empty without a key."""


class Expiring(Generic[V]):
    """Values that are gone when their time has come, as keys with a TTL are."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._values: dict[object, tuple[float, V]] = {}

    def get(self, key: object) -> V | None:
        found = self._values.get(key)
        if found is None:
            return None
        expires_at, value = found
        if expires_at <= self._clock():
            del self._values[key]
            return None
        return value

    def now(self) -> Callable[[object], V | None]:
        """Return a `get` for many keys at this moment, which asks the clock once and forgets nothing."""
        now, values = self._clock(), self._values

        def get(key: object) -> V | None:
            found = values.get(key)
            return found[1] if found is not None and found[0] > now else None

        return get

    def put(self, key: object, value: V, ttl_s: float) -> None:
        self._values[key] = (self._clock() + ttl_s, value)

    def pop(self, key: object) -> None:
        self._values.pop(key, None)

    def clear(self) -> None:
        self._values.clear()

    def live(self) -> list[V]:
        return [value for key in list(self._values) if (value := self.get(key)) is not None]


class MemoryIndex(BlockIndex):
    """An index in memory; share the object where processes would share Redis.

    Values are packed as they are in Redis, so that the same digests authenticate them.
    clock: seconds, monotonic. Set `reachable` to False to see what callers do when the index is away.
    """

    def __init__(self, *, partitions: int = 1, key: bytes = b"", clock: Callable[[], float] = time.monotonic) -> None:
        self._partitions = partitions
        self._use(key)
        self._lock = threading.Lock()
        self._records: Expiring[_Stored] = Expiring(clock)
        self._blocks: Expiring[dict[BlockHash, bytes]] = Expiring(clock)
        self._reports: Expiring[dict[str, bytes]] = Expiring(clock)
        self._entered_at: Expiring[tuple[str, str, float]] = Expiring(clock)
        self._readers: Expiring[Expiring[bytes]] = Expiring(clock)
        self._clock = clock
        self.reachable = True

    def _use(self, key: bytes) -> None:
        self._key, self._stamps, self._refusals = key, Stamps(key), Refusals("memory")
        self.malformed_entries = self.unverified_records = 0

    def __repr__(self) -> str:
        return f"MemoryIndex(partitions={self._partitions}, reachable={self.reachable})"

    def client(self, key: bytes) -> MemoryIndex:
        """Return another client of the same memory, as another process is of the same Redis."""
        other = copy.copy(self)
        other._use(key)
        return other

    def refusals(self) -> Mapping[str, int]:
        return self._refusals.counts()

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        self._records.clear()
        self._blocks.clear()
        self._reports.clear()
        self._entered_at.clear()
        self._readers.clear()

    @property
    def partitions(self) -> int:
        return self._partitions

    def partition(self, root: BlockHash) -> int:
        return schema.partition_of(root, self._partitions)

    def join(self, record: WorkerRecord, *, lease_ttl_s: float, replaces: str | None = None) -> NameHolder | None:
        key = (schema.check_namespace(record.namespace), schema.check_worker(record.worker))
        with self._reached():
            earlier = self._records.get(key)
            if earlier is not None and earlier.incarnation != record.incarnation:
                if earlier.owner is not None and earlier.owner not in (_token_of(record), replaces):
                    holder = self._verified(earlier)
                    if holder is not None or not self._key:
                        return NameHolder(earlier.incarnation, holder)
                self._forget_blocks(record.namespace, earlier.incarnation)
            self._enter(record, lease_ttl_s)
            return None

    def renew(self, record: WorkerRecord, *, lease_ttl_s: float) -> Renewal:
        key = (record.namespace, record.worker)
        with self._reached():
            holder = self._records.get(key)
            other = None
            if holder is not None and holder.incarnation != record.incarnation:
                verified = self._verified(holder)
                if verified is not None or not self._key:
                    other = NameHolder(holder.incarnation, verified)
            if other is None:
                self._enter(record, lease_ttl_s)
            counts = []
            for partition in range(self._partitions):
                blocks_key = (record.namespace, record.incarnation, partition)
                blocks = self._blocks.get(blocks_key) or {}
                self._blocks.put(blocks_key, blocks, lease_ttl_s)
                counts.append(len(blocks))
            return Renewal(tuple(counts), other)

    def leave(self, ref: WorkerRef) -> None:
        key = (ref.namespace, ref.worker)
        with self._reached():
            holder = self._records.get(key)
            if holder is not None and holder.incarnation == ref.incarnation:
                self._records.pop(key)
            if holder is None or holder.incarnation == ref.incarnation:
                self._entered_at.pop(key)
            self._forget_blocks(ref.namespace, ref.incarnation)

    def apply(self, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float) -> None:
        binding = schema.Binding(ref.namespace, ref.incarnation, self._key)
        with self._reached():
            for drop in drops:
                self._blocks_of(ref, drop.root, lease_ttl_s).pop(drop.block, None)
            for entry in entries:
                self._blocks_of(ref, entry.root, lease_ttl_s)[entry.block] = binding.pack(entry.block, entry.location)

    def clear(self, ref: WorkerRef, partition: int) -> None:
        with self._reached():
            self._blocks.pop((ref.namespace, ref.incarnation, partition))

    def lookup(
        self,
        candidates: Sequence[WorkerRef],
        blocks: Sequence[BlockHash],
        *,
        locations_for: int = 4,
        root: BlockHash | None = None,
    ) -> list[PrefixHit]:
        if not candidates or not blocks:
            return []
        partition = self.partition(root or blocks[0])
        first, found = blocks[0], []
        with self._reached():
            blocks_of = self._blocks.now()
            for ref in candidates:
                held = blocks_of((ref.namespace, ref.incarnation, partition))
                if held is None or first not in held:
                    # Of hundreds of candidates most have nothing: they cost no more than this.
                    continue
                found.append((sum(1 for _ in takewhile(held.__contains__, blocks)), ref, held))
            found.sort(key=lambda each: -each[0])
            located = [self._located(ref, held, blocks[:length]) for length, ref, held in found[:locations_for]]
        hits = [hit for hit in located if hit.length]
        hits += [PrefixHit(ref.worker, ref.incarnation, length, ()) for length, ref, _ in found[locations_for:]]
        hits.sort(key=lambda hit: -hit.length)
        return hits

    def _located(self, ref: WorkerRef, held: Mapping[BlockHash, bytes], blocks: Sequence[BlockHash]) -> PrefixHit:
        """Return where a worker holds blocks, up to the first whose entry does not fit."""
        values = (held[block] for block in blocks)
        whole = takewhile(lambda value: len(value) == schema.ENTRY_BYTES, values)
        binding = schema.Binding(ref.namespace, ref.incarnation, self._key)
        locations = binding.unpack(blocks, b"".join(whole))
        self.malformed_entries += len(locations) < len(blocks)
        return PrefixHit(ref.worker, ref.incarnation, len(locations), locations)

    def depths(
        self,
        candidates: Sequence[WorkerRef],
        chains: Sequence[Sequence[BlockHash]],
        *,
        root: BlockHash | None = None,
    ) -> list[list[int]]:
        partitions = range(self._partitions) if root is None else [self.partition(root)]
        with self._reached():
            blocks_of = self._blocks.now()
            parts = [
                [blocks_of((ref.namespace, ref.incarnation, partition)) or {} for partition in partitions]
                for ref in candidates
            ]
            pairs = list(zip(candidates, parts, strict=True))
            return [[self._depth(ref, chain, held) for ref, held in pairs] for chain in chains]

    def _depth(self, ref: WorkerRef, chain: Sequence[BlockHash], parts: Sequence[dict[BlockHash, bytes]]) -> int:
        # A view: copying a cache for each look would cost more than all else.
        held: Mapping[BlockHash, bytes] = parts[0] if len(parts) == 1 else ChainMap(*parts)
        depth = _depth(held, chain)
        if not depth or not self._key:
            return depth
        value = held[chain[depth - 1]]
        if schema.Binding(ref.namespace, ref.incarnation, self._key).fits(chain[depth - 1], value):
            return depth
        self._refuse("entry", DigestMismatch("of another block, worker or index_key"))
        return 0

    def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
        with self._reached():
            stored = [one for one in self._records.live() if namespace in (None, one.namespace)]
            records = [record for one in stored if (record := self._verified(one)) is not None]
        return sorted(records, key=lambda record: (record.worker, record.namespace))

    def gone(self) -> list[GoneWorker]:
        with self._reached():
            now = self._clock()
            return sorted(
                GoneWorker(worker, namespace, now - entered_at)
                for namespace, worker, entered_at in self._entered_at.live()
                if self._records.get((namespace, worker)) is None
            )

    def line_up(self, ref: WorkerRef, block: BlockHash, *, ttl_s: float) -> list[str]:
        key, place = schema.readers_key(ref.namespace, block), schema.readers_place(ref.namespace, block)
        with self._reached():
            line = self._readers.get(key) or Expiring[bytes](self._clock)
            found = line.live()[-READERS_MAX:]
            line.pop(ref.worker)
            line.put(ref.worker, self._stamps.put(place, ref.worker.encode(), at=self._clock(), ttl_s=ttl_s), ttl_s)
            self._readers.put(key, line, ttl_s)
            before = []
            for value in found:
                try:
                    before.append(self._stamps.take(place, value, now=self._clock()).body.decode())
                except ProtocolError as exc:
                    self._refuse("reader", exc)
            return [worker for worker in before if worker != ref.worker]

    def put_report(self, ref: WorkerRef, name: str, fields: Mapping[str, bytes], *, ttl_s: float) -> None:
        key = schema.report_key(ref.namespace, ref.worker, name)
        with self._reached():
            now = self._clock()
            self._reports.put(
                key,
                {field: self._stamps.put((key, field), value, at=now, ttl_s=ttl_s) for field, value in fields.items()},
                ttl_s,
            )

    def reports(self, namespace: str, worker: str, name: str) -> dict[str, bytes]:
        key = schema.report_key(namespace, worker, name)
        with self._reached():
            report = {}
            for field, value in (self._reports.get(key) or {}).items():
                try:
                    report[field] = self._stamps.take((key, field), value, now=self._clock()).body
                except ProtocolError as exc:
                    self._refuse("report", exc)
            return report

    def ping(self) -> float:
        with self._reached():
            return 0.0

    def close(self) -> None:
        self.reachable = False

    def _enter(self, record: WorkerRecord, lease_ttl_s: float) -> None:
        key = (record.namespace, record.worker)
        self._records.put(key, self._stored(record, lease_ttl_s), lease_ttl_s)
        self._entered_at.put(key, (*key, self._clock()), GONE_S)

    def _stored(self, record: WorkerRecord, lease_ttl_s: float) -> _Stored:
        packed = schema.pack_record(record, self._key)
        lease = self._stamps.put(schema.lease_place(record), b"", at=self._clock(), ttl_s=lease_ttl_s)
        return _Stored(record.namespace, record.worker, record.incarnation, _token_of(record), packed, lease)

    def _verified(self, stored: _Stored) -> WorkerRecord | None:
        namespace, worker, _, _, packed, lease = stored
        try:
            record = schema.unpack_record(packed, namespace=namespace, worker=worker, key=self._key)
            if self._key and record.stamped:
                self._stamps.take(schema.lease_place(record), lease, now=self._clock())
        except ProtocolError as exc:
            self._refuse("record", exc)
            return None
        return record

    def _refuse(self, kind: str, why: ProtocolError) -> None:
        self._refusals.note(kind, why)
        self.malformed_entries += 1
        self.unverified_records += kind == "record" and isinstance(why, DigestMismatch)

    def _reached(self) -> threading.Lock:
        if not self.reachable:
            raise IndexUnavailable("index in memory: expected reachable, found unreachable")
        return self._lock

    def _blocks_of(self, ref: WorkerRef, root: BlockHash, lease_ttl_s: float) -> dict[BlockHash, bytes]:
        key: BlocksKey = (ref.namespace, ref.incarnation, self.partition(root))
        blocks = self._blocks.get(key)
        if blocks is None:
            blocks = {}
        self._blocks.put(key, blocks, lease_ttl_s)
        return blocks

    def _forget_blocks(self, namespace: str, incarnation: bytes) -> None:
        for partition in range(self._partitions):
            self._blocks.pop((namespace, incarnation, partition))


def _token_of(record: WorkerRecord) -> str | None:
    return record.owner.token if record.owner is not None else None


def _depth(held: Mapping[BlockHash, bytes], chain: Sequence[BlockHash]) -> int:
    """Return the same bound as binary search finds in Redis."""
    if not chain or chain[0] not in held:
        return 0
    if chain[-1] in held:
        return len(chain)
    low, high = 1, len(chain)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if chain[middle - 1] in held else (low, middle)
    return low
