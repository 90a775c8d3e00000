"""The index in Redis >= 6.2 or Valkey: single, Sentinel or Cluster. See schema.py for the keys."""

from __future__ import annotations

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
    READERS_MAX,
    BlockIndex,
    Drop,
    Entry,
    GoneWorker,
    NameHolder,
    Renewal,
    WorkerRef,
)
from ghostcacher_connector.core.index.directory import WorkerDirectory
from ghostcacher_connector.core.redis.client import Argument, RedisCalls, milliseconds
from ghostcacher_connector.core.redis.url import parse_redis_url
from ghostcacher_connector.core.refusals import Refusals
from ghostcacher_connector.core.stamps import Place, Stamps
from ghostcacher_connector.core.types import BlockHash, PrefixHit, WorkerRecord

LOOKUP_BLOCKS_MAX = 16_384
"""Blocks beyond are not looked up: bounds how long one script holds Redis (2,000 blocks of one worker: under 1 ms)."""
LOOKUP_CANDIDATES_MAX = 1_024
WORKERS_MAX = 10_000
NAMESPACES_MAX = 1_000
REPORT_FIELDS_MAX = 4_096
"""Of one report: a rank measures its link to each of 1,000 peers at most."""
ENTER_TRIES = 3
"""How often a name is asked for while somebody holds it who has not our key, and is put out of the way."""
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
        self._stamps = Stamps(key)
        self._refusals = Refusals(self._target.where)
        self._directory = WorkerDirectory(self._calls, key, self._stamps, self._refuse)
        self._lock = threading.Lock()
        self.malformed_entries = self.unverified_records = 0
        cluster = self._target.kind == "cluster"
        self._partitions = schema.PARTITIONS_CLUSTER if cluster else schema.PARTITIONS_SINGLE

    def __repr__(self) -> str:
        return f"RedisIndex({self._target.kind}, {self._target.where})"

    def refusals(self) -> Mapping[str, int]:
        return self._refusals.counts()

    @property
    def partitions(self) -> int:
        return self._partitions

    def partition(self, root: BlockHash) -> int:
        return schema.partition_of(root, self._partitions)

    def join(self, record: WorkerRecord, *, lease_ttl_s: float, replaces: str | None = None) -> NameHolder | None:
        earlier, holder = self._directory.enter(record, lease_ttl_s, take_over=True, replaces=replaces or "")
        if holder is None and len(earlier) == len(record.incarnation):
            self._unlink_blocks(record.namespace, earlier)
        return holder

    def renew(self, record: WorkerRecord, *, lease_ttl_s: float) -> Renewal:
        _, holder = self._directory.enter(record, lease_ttl_s, take_over=False)
        keys = self._block_keys(record.namespace, record.incarnation)
        counts = [_count(self._calls.run("hold", [key], [milliseconds(lease_ttl_s)])) for key in keys]
        return Renewal(tuple(counts), holder)

    def leave(self, ref: WorkerRef) -> None:
        self._directory.leave(ref)
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
        self,
        candidates: Sequence[WorkerRef],
        blocks: Sequence[BlockHash],
        *,
        locations_for: int = 4,
        root: BlockHash | None = None,
    ) -> list[PrefixHit]:
        if not candidates or not blocks:
            return []
        candidates = candidates[:LOOKUP_CANDIDATES_MAX]
        namespace = candidates[0].namespace
        assert all(ref.namespace == namespace for ref in candidates), "candidates of more than one namespace"
        partition = self.partition(root or blocks[0])
        keys = [schema.blocks_key(namespace, partition, ref.incarnation) for ref in candidates]
        width, chain = _chain(blocks)
        reply = self._calls.run("lookup", keys, [width, chain, locations_for, schema.ENTRY_BYTES, schema.TIER_MAX])
        malformed, *found = reply
        self._count_malformed(malformed)
        return self._hits(candidates, blocks, found)

    def line_up(self, ref: WorkerRef, block: BlockHash, *, ttl_s: float) -> list[str]:
        place, now = schema.readers_place(ref.namespace, block), self._directory.now(ref.namespace)
        entered = self._stamps.put(place, ref.worker.encode(), at=now, ttl_s=ttl_s)
        args: list[Argument] = [entered, milliseconds(ttl_s), READERS_MAX]
        seconds, us, *found = self._calls.run("line_up", [schema.readers_key(ref.namespace, block)], args)
        now = self._directory.clock_of(ref.namespace).said(seconds, us)
        return self._in_line(ref.worker, place, found[::-1], now)

    def _in_line(self, worker: str, place: Place, found: Sequence[bytes], now: float) -> list[str]:
        """Return those of a line that are believed, each once, without the one that asks."""
        before: dict[str, None] = {}
        for value in found:
            try:
                before[self._stamps.take(place, value, now=now).body.decode(errors="replace")] = None
            except ProtocolError as exc:
                self._refuse("reader", exc, 1)
        before.pop(worker, None)
        return list(before)

    def depths(
        self,
        candidates: Sequence[WorkerRef],
        chains: Sequence[Sequence[BlockHash]],
        *,
        root: BlockHash | None = None,
    ) -> list[list[int]]:
        asked = chains[: DEPTHS_MAX // max(1, len(candidates))]
        widths = {len(block) for chain in asked for block in chain}
        found = [[0] * len(candidates) for _ in chains]
        if len(widths) != 1 or not candidates:
            return found
        assert all(ref.namespace == candidates[0].namespace for ref in candidates), "of more than one namespace"
        value_bytes = schema.ENTRY_BYTES if self._key else 0
        args: list[Argument] = [widths.pop(), value_bytes, *(b"".join(chain[:CHAIN_HASHES_MAX]) for chain in asked)]
        for partition in range(self._partitions) if root is None else [self.partition(root)]:
            keys = [_blocks_key(ref.namespace, partition, ref.incarnation) for ref in candidates]
            malformed, packed, values = self._calls.run("depths", keys, args)
            self._count_malformed(malformed)
            counts: Sequence[int] = unpack(f"<{len(packed) // 2}H", packed)
            if values:
                counts = self._fitting(candidates, asked, counts, values)
            for number in range(len(asked)):
                row = counts[number * len(candidates) : (number + 1) * len(candidates)]
                found[number] = list(map(max, found[number], row))
        return found

    def _fitting(
        self,
        candidates: Sequence[WorkerRef],
        chains: Sequence[Sequence[BlockHash]],
        counts: Sequence[int],
        values: bytes,
    ) -> list[int]:
        """Return the counts, 0 where the value of the last hash that is held is not its own.

        values: of each count above 0, one after the other.
        """
        bindings = [_binding(ref.namespace, ref.incarnation, self._key) for ref in candidates]
        fitting, at = list(counts), 0
        for number, count in enumerate(counts):
            if count:
                chain, candidate = divmod(number, len(candidates))
                if not bindings[candidate].fits(chains[chain][count - 1], values[at : at + schema.ENTRY_BYTES]):
                    fitting[number] = 0
                at += schema.ENTRY_BYTES
        if wrong := sum(map(bool, counts)) - sum(map(bool, fitting)):
            self._refuse("entry", DigestMismatch("of another block, worker or index_key"), wrong)
        return fitting

    def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
        return self._directory.workers(namespace)

    def gone(self) -> list[GoneWorker]:
        return self._directory.gone()

    def put_report(self, ref: WorkerRef, name: str, fields: Mapping[str, bytes], *, ttl_s: float) -> None:
        flat: list[Argument] = [milliseconds(ttl_s)]
        now = self._directory.now(ref.namespace)
        for field, value in fields.items():
            place = ("report", ref.namespace, ref.worker, name, field)
            flat += (field, self._stamps.put(place, value, at=now, ttl_s=ttl_s))
        self._calls.run("report", [schema.report_key(ref.namespace, ref.worker, name)], flat)

    def reports(self, namespace: str, worker: str, name: str) -> dict[str, bytes]:
        key = schema.report_key(namespace, worker, name)
        seconds, us, *found = self._calls.run("reports", [key], [REPORT_FIELDS_MAX])
        now, report = self._directory.clock_of(namespace).said(seconds, us), {}
        for packed_field, value in zip(found[::2], found[1::2], strict=True):
            try:
                field = packed_field.decode()
                report[field] = self._stamps.take(("report", namespace, worker, name, field), value, now=now).body
            except UnicodeDecodeError:
                self._count_malformed(1)
                return {}
            except ProtocolError as exc:
                self._refuse("report", exc, 1)
        return report

    def ping(self) -> float:
        began = perf_counter()
        self._calls.call(lambda client: client.ping())
        return perf_counter() - began

    def close(self) -> None:
        self._calls.close()

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

    def _refuse(self, kind: str, why: ProtocolError, count: int) -> None:
        self._refusals.note(kind, why, count)
        with self._lock:
            self.malformed_entries += count
            self.unverified_records += count * (kind == "record" and isinstance(why, DigestMismatch))

    def _count_malformed(self, count: int) -> None:
        if count:
            self._refuse("entry", ProtocolError("of a type or size that none of ours has, or of another block"), count)


@lru_cache(maxsize=4 * LOOKUP_CANDIDATES_MAX)
def _binding(namespace: str, incarnation: bytes, key: bytes) -> schema.Binding:
    """Return the same as the schema: what precedes all entries of a worker need not be hashed for each."""
    return schema.Binding(namespace, incarnation, key)


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
