"""The index as the rest of the code sees it: block hash -> holders, under leases.

Everything in it is a hint. An implementation may lose any of it at any moment without harm to an answer.

What implementors must keep:
- `lookup` and `workers` never return an entry of a worker whose lease has run out, nor of an earlier incarnation.
- `lookup` returns a location only for the block, incarnation and namespace that it was entered for, and `workers` a
  record only as it was entered, both with the same key: schema.py's digests say so. What does not fit is a miss, and
  is counted.
- With a key, `depths` counts blocks only up to an entry that fits, a record that is `stamped` counts as long as the
  stamp of its lease, reports have stamps (core/stamps.py), and a name is held only by who has the key.
- A `lookup` is one round trip, whatever the number of blocks and workers.
- Every call ends within the implementation's time-out and raises IndexUnavailable, and nothing else, when the index
  cannot answer. A miss is an empty result.
- All methods may be called from any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.types import BlockHash, Location, PrefixHit, WorkerRecord

DEPTHS_MAX = 4_096
"""Chains times candidates of one `depths`: some 5 us each bound how long it holds Redis."""
CHAIN_HASHES_MAX = 8_192

READERS_MAX = 64
"""Workers that pull one prefix at the same time, as far as is told."""

GONE_S = 600
"""A worker that went without leaving is remembered for ten minutes: long enough for people to come and look."""


class WorkerRef(NamedTuple):
    """Names one incarnation of one worker in one namespace."""

    namespace: str
    worker: str
    incarnation: bytes


def ref_of(record: WorkerRecord) -> WorkerRef:
    return WorkerRef(record.namespace, record.worker, record.incarnation)


class Entry(NamedTuple):
    """One block that a worker holds."""

    block: BlockHash
    """Chain hash of the block."""

    root: BlockHash
    """Hash of the first block of its chain. All blocks of a chain are in one partition: a lookup meets one shard."""

    location: Location


class Drop(NamedTuple):
    """One block that a worker no longer holds."""

    block: BlockHash
    root: BlockHash


class GoneWorker(NamedTuple):
    """A worker whose lease has run out without its having left: it died, or nothing is heard of it."""

    worker: str
    """The worker's name."""
    namespace: str
    """The namespace that it was in."""
    silent_s: float
    """How long ago its lease was renewed last, in s."""


class NameHolder(NamedTuple):
    """The worker that has a name which another one wants, too."""

    incarnation: bytes
    """Its present incarnation."""
    record: WorkerRecord | None
    """Its record; None when it cannot be verified."""


class Renewal(NamedTuple):
    """What came of renewing a lease."""

    counts: tuple[int, ...]
    """The number of entries held, per partition: fewer than were applied means that some were lost (a flush, a
    failover) and must be applied again."""
    holder: NameHolder | None
    """Who has the worker's name instead; None when the worker itself has it."""


class BlockSink(Protocol):
    """Takes what an engine publishes, without ever blocking (publisher.py)."""

    def publish(self, slot: int, block: BlockHash, root: BlockHash, generation: int) -> None: ...

    def withdraw(self, slot: int) -> None: ...

    def withdraw_from(self, first_slot: int) -> None:
        """Withdraw this slot and all with higher numbers: one call for a tier that is emptied."""


class BlockIndex(ABC):
    """Block hash -> holders, and the directory of live workers."""

    malformed_entries: int
    """Values met that are malformed, or whose digest does not fit; each ended a prefix or hid a worker."""

    unverified_records: int
    """Those of them that are worker records whose digest does not fit: of another key, or damaged."""

    @abstractmethod
    def refusals(self) -> Mapping[str, int]:
        """Return how many of these values there were, by kind and reason, such as "record: too old"."""

    @property
    @abstractmethod
    def partitions(self) -> int:
        """How many parts the entries of one worker are spread over (1 without a cluster)."""

    @abstractmethod
    def partition(self, root: BlockHash) -> int:
        """Return the partition of a chain, in ``[0, partitions)``."""

    @abstractmethod
    def join(self, record: WorkerRecord, *, lease_ttl_s: float, replaces: str | None = None) -> NameHolder | None:
        """Enter a worker in the directory, in place of its earlier incarnation, whose entries are dropped.

        Where another process holds a lease on the name, nothing is entered, and the holder is returned. That process is
        known by the token of its record's `owner`; a record without one, of an earlier version, is replaced.
        replaces: token of a process that is known to have ended, and whose lease counts no more.
        """

    @abstractmethod
    def renew(self, record: WorkerRecord, *, lease_ttl_s: float) -> Renewal:
        """Prolong the lease of a worker and of its entries; enter it again if it was lost.

        A worker whose name another incarnation has taken keeps its entries, but does not get the name back as long as
        the other's lease lasts.
        """

    @abstractmethod
    def leave(self, ref: WorkerRef) -> None:
        """Remove a worker and its entries at once."""

    @abstractmethod
    def apply(self, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float) -> None:
        """Drop, then enter, blocks of one worker. Later calls win; entering a block twice replaces it."""

    @abstractmethod
    def clear(self, ref: WorkerRef, partition: int) -> None:
        """Drop every entry of one worker in one partition."""

    @abstractmethod
    def lookup(
        self,
        candidates: Sequence[WorkerRef],
        blocks: Sequence[BlockHash],
        *,
        locations_for: int = 4,
        root: BlockHash | None = None,
    ) -> list[PrefixHit]:
        """Return the longest indexed prefix that each candidate holds, longest first; misses are left out.

        candidates: workers of one namespace. blocks: chain hashes in prefix order, shape (num_blocks,).
        root: what they were entered under; None: the first of them.
        Counts from block 0; a gap or a malformed entry ends the match. The `locations_for` best workers come with the
        locations of their whole prefix. The length of any other is an upper bound: where it lost blocks from the
        middle of a chain, its prefix may be shorter. Entries are verified where locations are returned, and there
        alone; a worker whose entries turn out not to fit may have kept a better one from being among the best.
        """

    @abstractmethod
    def line_up(self, ref: WorkerRef, block: BlockHash, *, ttl_s: float) -> list[str]:
        """Put a worker last in the line of those that pull a prefix; return who is before it, in any order.

        block: the last one of the prefix. Each stays for `ttl_s`. Of a long line the last `READERS_MAX` are returned.
        One round trip.
        """

    @abstractmethod
    def depths(
        self,
        candidates: Sequence[WorkerRef],
        chains: Sequence[Sequence[BlockHash]],
        *,
        root: BlockHash | None = None,
    ) -> list[list[int]]:
        """Return, for each chain and each candidate, how many of its leading hashes the candidate holds at most.

        candidates: workers of one namespace. chains: hashes in prefix order, of one width; blocks may be left out.
        root: what all of them were entered under; None: it is not known.
        Found by binary search: fit to weigh costs, not to read by. With a key the last block that is held is verified,
        and where its entry does not fit, nothing counts as held. One round trip, with a cluster one a partition where
        the root is not known, since a chain that leaves it out does not say where it lies. Beyond `DEPTHS_MAX` (chains
        times candidates) and CHAIN_HASHES_MAX hashes nothing is looked up: 0.
        """

    @abstractmethod
    def workers(self, namespace: str | None = None) -> list[WorkerRecord]:
        """Return the live workers of one namespace, or of all, in order of name. One round trip a namespace."""

    @abstractmethod
    def gone(self) -> list[GoneWorker]:
        """Return the workers whose lease has run out in the last `GONE_S`, in order of name.

        A worker that left, or whose name came back, is not among them. One round trip a namespace.
        """

    @abstractmethod
    def put_report(self, ref: WorkerRef, name: str, fields: Mapping[str, bytes], *, ttl_s: float) -> None:
        """Replace a worker's report: small named values (load, measured links) that live as long as `ttl_s`."""

    @abstractmethod
    def reports(self, namespace: str, worker: str, name: str) -> dict[str, bytes]:
        """Return the values stored by `put_report`; empty when there are none."""

    @abstractmethod
    def ping(self) -> float:
        """Return the round trip to the index in seconds."""

    @abstractmethod
    def close(self) -> None:
        """Release connections and what this object started. Idempotent."""
