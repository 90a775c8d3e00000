"""What routers and workers share beside the block index: loads, worker events, the prefix map, ghost locks, sessions.

    worker --publish--> load (a value that expires)
                        events (a stream of prompt chains and computed prompts) --read--> routers
    router --append_updates--> updates of the prefix map (a stream) --read--> every router, so that all have one map
           --append_flush--> orders to drop blocks (flushes.py) --flush_orders--> every worker

Everything in it is a hint: losing it costs a worse choice of worker, never a wrong answer.

With a key (`index_key`) everything that is read is believed only with its stamp (core/stamps.py): for the place where
it lies, and as long as it counts. Of what one worker or router appends to a stream, one client gets nothing that is
older than what it has got: what is appended again by somebody else is left out.

What implementors must keep:
- Every call ends within the implementation's time-out (`read`: plus the time that it was asked to wait) and raises
  IndexUnavailable, and nothing else, when the store cannot answer.
- Malformed values, and those that are not believed, are left out, counted in `malformed_entries`, and by kind and
  reason in `refusals`; they never raise. Nobody holds a lock without a right stamp: such a lock is put out of the way.
- Every stream is bounded in length and in age; a reader that fell behind goes on with the oldest item that is left.
- Locks are judged by the store's own clock. The tokens of one key rise with each grant: the holder of an old token can
  neither renew nor unlock.
- All methods may be called from any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import isfinite
from operator import lt
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.coordination.flushes import FLUSH_AGE_S, FlushOrder, FlushReport
from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.types import Tier

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Rate = Annotated[float, Meta(ge=0)]
REQUEST_CHARS_MAX = 256
Text = Annotated[str, Meta(max_length=REQUEST_CHARS_MAX)]
"""Request ids and names. The name of a worker has at most 255 characters."""
Hash = Annotated[bytes, Meta(min_length=1, max_length=128)]

EVENTS_MAX = 1_024
"""Prompt chains, and computed prompts, in one worker's events: the reporter sends 64 of each at most."""

BOUNDARIES_MAX = 16_384
"""Boundaries in one prompt chain or map update: enough for 2 M tokens at one hash every 128."""

EVENTS_ENTRIES_MAX = 10_000
EVENTS_AGE_S = 60.0
"""An event is of use while the router that sent the request still waits for it. An entry takes some 1 KiB."""

UPDATES_ENTRIES_MAX = 20_000
UPDATES_AGE_S = 86_400.0
"""A prefix that no prompt has confirmed for a day is in no cache any more.

An entry takes some 2 KiB: 40 MiB at most, which each new router reads.
"""

MISS_REASONS_MAX = 32
"""More than there are, since a newer worker may know more of them."""

SEED_TTL_S = 7 * 86_400.0
"""Counted from the last heartbeat of any router: longer than a map entry lives whose text was hashed with the seed."""

STREAM_START = "0-0"
"""A cursor before the first entry of a stream."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to do, and how fast it does it."""

    running: Count
    """Requests that the engine's scheduler is computing."""

    waiting: Count
    """Requests that wait in the engine's scheduler."""

    waiting_tokens: Count
    """Prompt tokens of both that are still to be computed."""

    kv_blocks_used: Count
    """KV blocks that hold something that running requests need."""

    kv_blocks_total: Count
    """KV blocks of the whole cache."""

    block_tokens: Count
    """Tokens of one block."""

    block_bytes: Count
    """Bytes of one block on one rank."""

    prefill_tokens_per_s: Rate
    """Measured rate at which prompts are computed; 0.0 while it is unknown."""

    pull_bytes_per_s: Rate
    """Measured rate at which blocks are pulled from peers; 0.0 while it is unknown."""

    pull_fixed_s: Rate
    """The part of a pull's duration that does not depend on its size, in seconds."""

    age_s: Rate = 0.0
    """Seconds from the measurement to the publication."""

    prefill_rate_stale: bool = False
    """Whether no step has told the prefill rate lately: it is a calibration, or of long ago."""

    decode_step_s: Rate = 0.0
    """Measured time of a step that only decodes, in seconds; 0.0 while it is unknown."""

    decode_request_s: Rate = 0.0
    """What one more request adds to such a step, in seconds; 0.0 while it is unknown."""

    tiers: Annotated[tuple[TierLoad, ...], Meta(max_length=len(Tier))] = ()
    """Those below the engine's cache; none where there is none, and of versions that do not say."""

    hit_blocks: Count = 0
    """Blocks that requests have taken from peers or tiers instead of having them computed, since the start."""

    missed_blocks: Annotated[tuple[Count, ...], Meta(max_length=MISS_REASONS_MAX)] = ()
    """Full blocks that were computed though the fleet might have held them, since the start, by the reason why: in the
    order of `MissReason`, shape (reasons,). None of versions that do not say."""

    def __post_init__(self) -> None:
        rates = self.prefill_tokens_per_s + self.pull_bytes_per_s + self.pull_fixed_s
        if not isfinite(rates + self.age_s + self.decode_step_s + self.decode_request_s):
            raise ValueError("rates, times, age_s: expected finite numbers")


class PromptChain(msgspec.Struct, frozen=True, array_like=True):
    """Some of the chain hashes of a prompt that a worker has received."""

    request: Text
    """The router's id of the request."""

    tokens: Count
    """Tokens of the whole prompt."""

    block_counts: Annotated[tuple[Count, ...], Meta(max_length=BOUNDARIES_MAX)]
    """How many leading blocks of the prompt each hash covers, ascending, shape (n,)."""

    hashes: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]
    """The chain hash of the prompt's first `block_counts[i]` blocks, shape (n,)."""

    def __post_init__(self) -> None:
        if len(self.hashes) != len(self.block_counts):
            raise ValueError(f"hashes: expected {len(self.block_counts)}, got {len(self.hashes)}")
        if not all(map(lt, (0, *self.block_counts), self.block_counts)):
            raise ValueError("block_counts: expected them to rise from above 0")


class StampedLoad(NamedTuple):
    """The load of a worker, and when it was stored."""

    at: float
    """Seconds of the store's clock."""

    load: LoadReport


class WorkerEvents(NamedTuple):
    """What one worker published at one time."""

    namespace: Text
    worker: Text
    incarnation: Hash
    chains: Annotated[tuple[PromptChain, ...], Meta(max_length=EVENTS_MAX)]
    """Chain hashes of prompts that the worker has received."""

    computed: Annotated[tuple[Text, ...], Meta(max_length=EVENTS_MAX)]
    """Ids of requests whose prompts are computed: peers can pull their blocks from now on."""


class PrefixMapUpdate(msgspec.Struct, frozen=True, array_like=True, tag="text"):
    """New or changed boundaries of one prompt, which one router has learned from a worker's prompt chain.

    The three sequences have one item per boundary, in the order of the text.
    """

    namespace: Text
    digests: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]
    """Digest of the text before the boundary."""

    block_counts: Annotated[tuple[Count, ...], Meta(max_length=BOUNDARIES_MAX)]
    """Whole blocks in the text before the boundary."""

    hashes: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]
    """Chain hash of those blocks."""

    bytes_per_token: Rate
    """Bytes of text per token in the whole prompt."""

    router: Text
    """Name of the router that learned it."""

    def __post_init__(self) -> None:
        if not len(self.digests) == len(self.block_counts) == len(self.hashes):
            lengths = len(self.digests), len(self.block_counts), len(self.hashes)
            raise ValueError(f"digests, block_counts, hashes: expected as many of each, got {lengths}")
        if not isfinite(self.bytes_per_token):
            raise ValueError(f"bytes_per_token: expected a number, got {self.bytes_per_token}")


class Flush(msgspec.Struct, frozen=True, array_like=True, tag="flush"):
    """An order to forget a part of the prefix map."""

    scope: Text
    """What is forgotten: "all", "session", "doc" or "prefix"."""

    key: Annotated[bytes, Meta(max_length=128)]
    """Which session, document or prefix; empty for "all"."""

    router: Text
    """Name of the router that gave the order."""


class Cursor(NamedTuple):
    """How far a reader has come: the id of the last entry that it has read, in each stream."""

    events: str
    updates: str


class Batch(NamedTuple):
    """What has come since the cursor that was given, in order."""

    cursor: Cursor
    """Where to go on reading."""

    events: tuple[WorkerEvents, ...]
    updates: tuple[PrefixMapUpdate | Flush, ...]


class HeartbeatReply(NamedTuple):
    """What a router learns from its heartbeat."""

    now: float
    """Seconds of the store's clock."""

    seed: int
    """The fleet's seed of text digests, 64 bits, the same for every router."""

    routers: int
    """Routers that are alive, the caller included."""


class HeldLock(NamedTuple):
    """A ghost lock that a router holds."""

    key: bytes
    token: int
    router: str
    worker: str
    """The worker that computes the prefix."""

    ready_at: float
    """When the owner expects to be done, in seconds of the store's clock."""


class LockGrant(NamedTuple):
    """Whether locks were granted, and if not, who holds them."""

    token: int | None
    """The fencing token, when all keys were free and are now the caller's; else None."""

    held: tuple[HeldLock, ...]
    """The keys that others hold."""


class DrainOrder(NamedTuple):
    """What a person last said of a worker: to get no new requests, or that no longer."""

    worker: str
    draining: bool
    at: float
    """When it was said, in seconds of the store's clock: of two orders the later one counts."""
    until: float
    """When it is over by itself, in seconds of the store's clock."""


class CoordinationStore(ABC):
    """The store that routers and workers share. The module's docstring says what implementors must keep."""

    @property
    @abstractmethod
    def malformed_entries(self) -> int:
        """Values met so far that were malformed or not believed."""

    @abstractmethod
    def refusals(self) -> Mapping[str, int]:
        """Return how many they were, by kind and reason, such as "load: not authentic"."""

    @abstractmethod
    def publish(
        self,
        ref: WorkerRef,
        load: LoadReport | None,
        chains: Sequence[PromptChain],
        computed: Sequence[str],
        *,
        ttl_s: float,
    ) -> bool:
        """Store a worker's load, to live for `ttl_s`, and append its events; return whether a router listens.

        Without a load the last one stays as it is. Events are dropped when no router listens. One round trip.
        """

    @abstractmethod
    def heartbeat(self, router: str, *, ttl_s: float) -> HeartbeatReply:
        """Register a router as alive for the next `ttl_s`; return the fleet's seed, made by whoever comes first."""

    @abstractmethod
    def deregister(self, router: str) -> None:
        """Remove a router that stops."""

    @abstractmethod
    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        """Return the store's time and each worker's load, None when there is none. One round trip a namespace."""

    @abstractmethod
    def start_cursor(self) -> Cursor:
        """Return the cursor of a new router: map updates from the beginning, worker events from now on."""

    @abstractmethod
    def read(self, after: Cursor, *, count: int, block_s: float) -> Batch:
        """Return up to `count` items of each stream, waiting up to `block_s` while there is none in either."""

    @abstractmethod
    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        """Append to the updates of the prefix map, which every router reads."""

    @abstractmethod
    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        """Take all of the keys, for `ttl_s`, or none of them."""

    @abstractmethod
    def renew_lock(
        self, keys: Sequence[bytes], token: int, *, router: str, worker: str, ready_at: float, ttl_s: float
    ) -> bool:
        """Hold the keys for `ttl_s` from now; return False, and change nothing, unless the token holds all of them."""

    @abstractmethod
    def unlock(self, tokens: Mapping[bytes, int]) -> bool:
        """Release those keys that their tokens hold, of any number of locks; return whether all were held."""

    @abstractmethod
    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        """Return who holds each key."""

    @abstractmethod
    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        """Return the worker of each session. The keys are digests, never a client's own words."""

    @abstractmethod
    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        """Bind sessions to workers for `ttl_s` from now."""

    @abstractmethod
    def drop_sessions(self, keys: Sequence[bytes]) -> None:
        """Forget sessions."""

    @abstractmethod
    def put_drains(self, orders: Sequence[DrainOrder]) -> None:
        """Store orders, each in place of what is stored of its worker."""

    @abstractmethod
    def drains(self, workers: Sequence[str]) -> tuple[float, list[DrainOrder | None]]:
        """Return the store's time and the stored order of each worker, None when there is none."""

    @abstractmethod
    def append_flush(self, order: FlushOrder) -> None:
        """Give an order to all workers."""

    @abstractmethod
    def flush_orders(self, after: str | None) -> tuple[str, tuple[FlushOrder, ...]]:
        """Return the cursor of a reader of orders, and those that came since the one given; None: from now on."""

    @abstractmethod
    def put_flush_report(self, order: bytes, worker: str, report: FlushReport, *, ttl_s: float = FLUSH_AGE_S) -> None:
        """Store what a worker answers to an order, for `ttl_s`."""

    @abstractmethod
    def flush_reports(self, order: bytes, workers: Sequence[str]) -> list[FlushReport | None]:
        """Return what each worker has answered to an order, None when it has not."""

    @abstractmethod
    def close(self) -> None:
        """Release connections. Idempotent; a waiting `read` ends with IndexUnavailable."""
