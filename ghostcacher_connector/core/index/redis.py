"""The index in Redis >= 6.2 or Valkey: single, Sentinel or Cluster. See schema.py for the keys."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from struct import unpack
from time import perf_counter
from typing import Any

from ghostcacher_connector.core import schema
from ghostcacher_connector.core.errors import DigestMismatch, ProtocolError
from ghostcacher_connector.core.index.base import (
    CHAIN_HASHES_MAX,
    DEPTHS_MAX,
    GONE_S,
    BlockIndex,
    Drop,
    Entry,
    GoneWorker,
    NameHolder,
    Renewal,
    WorkerRef,
)
from ghostcacher_connector.core.redis.client import Argument, RedisCalls, milliseconds
from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.types import BlockHash, PrefixHit, WorkerRecord

logger = logging.getLogger(__name__)

LOOKUP_BLOCKS_MAX = 16_384
"""Blocks beyond are not looked up: bounds how long one script holds Redis (2,000 blocks of one worker: under 1 ms)."""
LOOKUP_CANDIDATES_MAX = 1_024
WORKERS_MAX = 10_000
NAMESPACES_MAX = 1_000
DIRECTORY_TTL_S = 3_600
"""How long a namespace, and the list of its workers, outlives the last renewal in it."""


class RedisIndex(BlockIndex):
    """A client of the index in Redis. Makes no connection before its first call.

    key: secret that authenticates entries and records, the same for all that share (see schema.py).
    on_unavailable: called, in the calling thread, whenever Redis could not be reached; must not block.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.25,
        key: bytes = b"",
        on_unavailable: Callable[[], None] | None = None,
    ) -> None:
        self._target = parse_redis_url(url)
        self._calls = RedisCalls(self._target, scripts=__package__, timeout_s=timeout_s, on_unavailable=on_unavailable)
        self._key = key
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], tuple[bytes, WorkerRecord]] = {}
        self.malformed_entries = self.unverified_records = 0
        cluster = self._target.kind == "cluster"
        self._partitions = schema.PARTITIONS_CLUSTER if cluster else schema.PARTITIONS_SINGLE

    def __repr__(self) -> str:
        return f"RedisIndex({self._target.kind}, {self._target.where})"

    @property
    def partitions(self) -> int:
        return self._partitions

    def partition(self, root: BlockHash) -> int:
        return schema.partition_of(root, self._partitions)

    def join(self, record: WorkerRecord, *, lease_ttl_s: float, replaces: str | None = None) -> NameHolder | None:
        earlier, holder = self._enter(record, lease_ttl_s, take_over=True, replaces=replaces or "")
        if holder is None and len(earlier) == len(record.incarnation):
            self._unlink_blocks(record.namespace, earlier)
        return holder

    def renew(self, record: WorkerRecord, *, lease_ttl_s: float) -> Renewal:
        _, holder = self._enter(record, lease_ttl_s, take_over=False)
        keys = self._block_keys(record.namespace, record.incarnation)
        counts = [_count(self._calls.run("hold", [key], [milliseconds(lease_ttl_s)])) for key in keys]
        return Renewal(tuple(counts), holder)

    def leave(self, ref: WorkerRef) -> None:
        keys = self._name_keys(ref.namespace, ref.worker)
        self._calls.run("leave", keys, [ref.worker, schema.RECORD_MAGIC + ref.incarnation])
        self._unlink_blocks(ref.namespace, ref.incarnation)

    def apply(self, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float) -> None:
        binding = schema.Binding(ref.namespace, ref.incarnation, self._key)
        pending: dict[tuple[int, int], tuple[list[bytes], list[bytes]]] = {}
        for drop in drops:
            dropped, _ = pending.setdefault((self.partition(drop.root), len(drop.block)), ([], []))
            dropped.append(drop.block)
        for block, root, location in entries:
            _, entered = pending.setdefault((self.partition(root), len(block)), ([], []))
            entered += (block, binding.pack(block, location))
        for (partition, width), (dropped, entered) in pending.items():
            key = schema.blocks_key(ref.namespace, partition, ref.incarnation)
            changes = (b"".join(dropped), b"".join(entered))
            self._calls.run("apply", [key], [milliseconds(lease_ttl_s), width, schema.ENTRY_BYTES, *changes])

    def clear(self, ref: WorkerRef, partition: int) -> None:
        key = schema.blocks_key(ref.namespace, partition, ref.incarnation)
        self._calls.call(lambda client: client.unlink(key))

    def lookup(
        self, candidates: Sequence[WorkerRef], blocks: Sequence[BlockHash], *, locations_for: int = 4
    ) -> list[PrefixHit]:
        if not candidates or not blocks:
            return []
        candidates = candidates[:LOOKUP_CANDIDATES_MAX]
        namespace = candidates[0].namespace
        assert all(ref.namespace == namespace for ref in candidates), "candidates of more than one namespace"
        partition = self.partition(blocks[0])
        keys = [schema.blocks_key(namespace, partition, ref.incarnation) for ref in candidates]
        width, chain = _chain(blocks)
        reply = self._calls.run("lookup", keys, [width, chain, locations_for, schema.ENTRY_BYTES, schema.TIER_MAX])
        malformed, *found = reply
        self._count_malformed(malformed)
        return self._hits(candidates, blocks, found)

    def depths(self, candidates: Sequence[WorkerRef], chains: Sequence[Sequence[BlockHash]]) -> list[list[int]]:
        asked = chains[: DEPTHS_MAX // max(1, len(candidates))]
        widths = {len(block) for chain in asked for block in chain}
        found = [[0] * len(candidates) for _ in chains]
        if len(widths) != 1 or not candidates:
            return found
        assert all(ref.namespace == candidates[0].namespace for ref in candidates), "of more than one namespace"
        args: list[Argument] = [widths.pop(), *(b"".join(chain[:CHAIN_HASHES_MAX]) for chain in asked)]
        for partition in range(self._partitions):
            keys = [_blocks_key(ref.namespace, partition, ref.incarnation) for ref in candidates]
            malformed, packed = self._calls.run("depths", keys, args)
            self._count_malformed(malformed)
            counts = unpack(f"<{len(packed) // 2}H", packed)
            for number in range(len(asked)):
                row = counts[number * len(candidates) : (number + 1) * len(candidates)]
                found[number] = list(map(max, found[number], row))
        return found

    def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
        if namespace is not None:
            return self._workers_of(namespace)
        names = self._calls.run("namespaces", [schema.namespaces_key()], ["", DIRECTORY_TTL_S, NAMESPACES_MAX])
        records = [record for name in names for record in self._workers_of_named(name)]
        return sorted(records, key=lambda record: (record.worker, record.namespace))

    def gone(self) -> list[GoneWorker]:
        names = self._calls.run("namespaces", [schema.namespaces_key()], ["", DIRECTORY_TTL_S, NAMESPACES_MAX])
        gone = []
        for namespace in (name.decode("ascii", errors="replace") for name in names):
            if schema.is_namespace(namespace):
                args: list[Argument] = [schema.worker_key_prefix(namespace), GONE_S, WORKERS_MAX]
                found = self._calls.run("gone", [schema.workers_key(namespace)], args)
                for worker, silent_s in zip(found[::2], found[1::2], strict=True):
                    gone.append(GoneWorker(worker.decode("utf-8", errors="replace"), namespace, float(silent_s)))
        return sorted(gone)

    def put_report(self, ref: WorkerRef, name: str, fields: Mapping[str, bytes], *, ttl_s: float) -> None:
        flat: list[Argument] = [milliseconds(ttl_s)]
        for field, value in fields.items():
            flat += (field, value)
        self._calls.run("report", [schema.report_key(ref.namespace, ref.worker, name)], flat)

    def reports(self, namespace: str, worker: str, name: str) -> dict[str, bytes]:
        key = schema.report_key(namespace, worker, name)
        found = self._calls.run("reports", [key], [])
        try:
            return {field.decode(): value for field, value in zip(found[::2], found[1::2], strict=True)}
        except UnicodeDecodeError:
            self._count_malformed(1)
            return {}

    def ping(self) -> float:
        began = perf_counter()
        self._calls.call(lambda client: client.ping())
        return perf_counter() - began

    def close(self) -> None:
        self._calls.close()

    def _enter(
        self, record: WorkerRecord, lease_ttl_s: float, *, take_over: bool, replaces: str = ""
    ) -> tuple[bytes, NameHolder | None]:
        """Enter a record, unless another incarnation holds the name and must not be replaced.

        Returns the other incarnation that has or had the name (empty: none), and who it is if it was not replaced.
        """
        directory_ttl_s = max(DIRECTORY_TTL_S, 2 * lease_ttl_s)
        other, packed = self._calls.run(
            "enter",
            self._name_keys(record.namespace, record.worker),
            [
                record.worker,
                schema.pack_record(record, self._key),
                milliseconds(lease_ttl_s),
                schema.RECORD_MAGIC,
                record.incarnation,
                int(take_over),
                milliseconds(directory_ttl_s),
                record.owner.token if record.owner is not None else "",
                replaces,
            ],
        )
        self._calls.run("namespaces", [schema.namespaces_key()], [record.namespace, DIRECTORY_TTL_S, 0])
        assert isinstance(other, bytes)
        if not packed:
            return other, None
        return other, NameHolder(other, self._verified(record.namespace, record.worker, packed))

    @staticmethod
    def _name_keys(namespace: str, worker: str) -> list[str]:
        return [
            schema.worker_key(namespace, worker),
            schema.workers_key(namespace),
            schema.owner_key(namespace, worker),
        ]

    def _verified(self, namespace: str, worker: str, packed: bytes) -> WorkerRecord | None:
        """Return a record; None when it is malformed or cannot be verified, which is counted."""
        try:
            return self._unpacked(namespace, worker, packed)
        except ProtocolError as exc:
            self._count_malformed(1, unverified=int(isinstance(exc, DigestMismatch)))
            logger.debug("%s", exc)
            return None

    def _workers_of_named(self, name: bytes) -> list[WorkerRecord]:
        namespace = name.decode("ascii", errors="replace")
        if not schema.is_namespace(namespace):
            self._count_malformed(1)
            return []
        return self._workers_of(namespace)

    def _workers_of(self, namespace: str) -> list[WorkerRecord]:
        prefix = schema.worker_key_prefix(namespace)
        malformed, *found = self._calls.run("workers", [schema.workers_key(namespace)], [prefix, WORKERS_MAX, GONE_S])
        self._count_malformed(malformed)
        records = []
        for worker, packed in zip(found[::2], found[1::2], strict=True):
            record = self._verified(namespace, worker.decode("utf-8", errors="replace"), packed)
            if record is not None:
                records.append(record)
        return sorted(records, key=lambda record: record.worker)

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

    def _hits(
        self, candidates: Sequence[WorkerRef], blocks: Sequence[BlockHash], found: Sequence[Any]
    ) -> list[PrefixHit]:
        """Return the hits of a lookup's reply, cut where an entry does not fit its block and worker."""
        hits = []
        for number, bound, values in zip(found[::3], found[1::3], found[2::3], strict=True):
            _, worker, incarnation = ref = candidates[number - 1]
            locations = schema.Binding(ref.namespace, incarnation, self._key).unpack(blocks, values)
            length = len(locations) if values else bound
            self._count_malformed(int(length < bound))
            if length:
                hits.append(PrefixHit(worker, incarnation, length, locations))
        return sorted(hits, key=lambda hit: -hit.length)

    def _block_keys(self, namespace: str, incarnation: bytes) -> list[str]:
        return [schema.blocks_key(namespace, partition, incarnation) for partition in range(self._partitions)]

    def _unlink_blocks(self, namespace: str, incarnation: bytes) -> None:
        for key in self._block_keys(namespace, incarnation):
            self._calls.call(lambda client, key=key: client.unlink(key))  # type: ignore[misc]

    def _count_malformed(self, count: int, *, unverified: int = 0) -> None:
        if count:
            with self._lock:
                self.malformed_entries += count
                self.unverified_records += unverified


@lru_cache(maxsize=4 * LOOKUP_CANDIDATES_MAX)
def _blocks_key(namespace: str, partition: int, incarnation: bytes) -> str:
    """Return the same as the schema: asked for again and again, it costs more than all else of a call."""
    return schema.blocks_key(namespace, partition, incarnation)


def _chain(blocks: Sequence[BlockHash]) -> tuple[int, bytes]:
    """Return the width of the hashes, and them joined. A hash of another width ends the prefix: it is of no chain."""
    width = len(blocks[0])
    chain = b"".join(blocks[:LOOKUP_BLOCKS_MAX])
    if len(chain) != width * min(len(blocks), LOOKUP_BLOCKS_MAX):
        _, run = next(groupby(blocks[:LOOKUP_BLOCKS_MAX], key=len))
        chain = b"".join(run)
    return width, chain


def _count(reply: Any) -> int:
    assert isinstance(reply, int)
    return reply
