"""What routers and workers tell each other through the store: load, learned text, ghost locks, sessions, drains.

    worker --tell--> load (a value that expires), news (a stream: prompt chains, computed prompts) --read--> routers
    router --append--> texts (a stream: learned boundaries, flushes) --read--> every router, so that all have one map

Everything in it is a hint: losing it costs a worse choice of worker, never a wrong answer.

What implementors must keep:
- Every call ends within the implementation's time-out (`read`: plus what it was asked to wait) and raises
  IndexUnavailable, and nothing else, when the store cannot answer.
- Values that are none of ours in form are left out and counted in `malformed_entries`, never raised.
- Every stream is bounded in length and in age; a reader that fell behind goes on with the oldest item that is left.
- Locks are judged by the store's own clock. Tokens of one key rise with each grant: whoever holds an old one can
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

from ghostcacher_connector.core.index.base import WorkerRef

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Rate = Annotated[float, Meta(ge=0)]
REQUEST_CHARS_MAX = 256
Text = Annotated[str, Meta(max_length=REQUEST_CHARS_MAX)]
"""Names, too: a worker's has at most 255 characters."""
Hash = Annotated[bytes, Meta(min_length=1, max_length=128)]

BOUNDARIES_MAX = 16_384
"""Boundaries in one chain or learned text: 2 M tokens at one hash every 128."""

NEWS_ENTRIES_MAX = 10_000
NEWS_AGE_S = 60.0
"""News is of use while the router that sent the request still waits for it; some 1 KiB each."""

TEXTS_ENTRIES_MAX = 20_000
TEXTS_AGE_S = 86_400.0
"""What no prompt has confirmed for a day is in no cache any more. Some 2 KiB each: 40 MiB, read by each new router."""

SEED_TTL_S = 7 * 86_400.0
"""Longer than any text lives that was hashed with it, counted from the last sign of life of any router."""

STREAM_START = "0-0"
"""A cursor before the first entry of a stream."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to do, and how fast it does it.

    running, waiting: requests in the engine's scheduler. waiting_tokens: prompt tokens of both that are still to be
    computed. block_bytes: of one block on one rank. pull_bytes_per_s: measured, 0.0 when it is unknown. age_s: since it
    was measured until it was told.
    """

    running: Count
    waiting: Count
    waiting_tokens: Count
    kv_blocks_used: Count
    kv_blocks_total: Count
    block_tokens: Count
    block_bytes: Count
    prefill_tokens_per_s: Rate
    pull_bytes_per_s: Rate
    pull_fixed_s: Rate
    age_s: Rate = 0.0

    def __post_init__(self) -> None:
        if not isfinite(self.prefill_tokens_per_s + self.pull_bytes_per_s + self.pull_fixed_s + self.age_s):
            raise ValueError("rates, age_s: expected finite numbers")


class PromptChain(msgspec.Struct, frozen=True, array_like=True):
    """Some of the chain hashes of a prompt that a worker has received.

    request: the router's request id. tokens: of the whole prompt. block_counts, hashes: shape (n,) each, ascending; the
    chain hash of the prompt's first `block_counts[i]` blocks is `hashes[i]`.
    """

    request: Text
    tokens: Count
    block_counts: Annotated[tuple[Count, ...], Meta(max_length=BOUNDARIES_MAX)]
    hashes: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]

    def __post_init__(self) -> None:
        if len(self.hashes) != len(self.block_counts):
            raise ValueError(f"hashes: expected {len(self.block_counts)}, got {len(self.hashes)}")
        if not all(map(lt, (0, *self.block_counts), self.block_counts)):
            raise ValueError("block_counts: expected them to rise from above 0")


class StampedLoad(NamedTuple):
    """A worker's load. at: when it was stored, in s of the store's clock."""

    at: float
    load: LoadReport


class WorkerNews(NamedTuple):
    """What one worker told at one time. computed: ids of requests whose prompts' blocks its peers can pull from now."""

    namespace: Text
    worker: Text
    incarnation: Hash
    chains: tuple[PromptChain, ...]
    computed: tuple[Text, ...]


class LearnedText(msgspec.Struct, frozen=True, array_like=True, tag="text"):
    """New or changed boundaries of one prompt, learned by one router.

    digests, block_counts, hashes: shape (n,) each, in order of the text: of the text before the boundary, blocks in it,
    their chain hash.
    """

    namespace: Text
    digests: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]
    block_counts: Annotated[tuple[Count, ...], Meta(max_length=BOUNDARIES_MAX)]
    hashes: Annotated[tuple[Hash, ...], Meta(max_length=BOUNDARIES_MAX)]
    bytes_per_token: Rate
    router: Text

    def __post_init__(self) -> None:
        if not len(self.digests) == len(self.block_counts) == len(self.hashes):
            lengths = len(self.digests), len(self.block_counts), len(self.hashes)
            raise ValueError(f"digests, block_counts, hashes: expected as many of each, got {lengths}")
        if not isfinite(self.bytes_per_token):
            raise ValueError(f"bytes_per_token: expected a number, got {self.bytes_per_token}")


class Flush(msgspec.Struct, frozen=True, array_like=True, tag="flush"):
    """Forget learned text. scope: "all", "session", "doc" or "prefix"; key: which of them, empty for "all"."""

    scope: Text
    key: Annotated[bytes, Meta(max_length=128)]
    router: Text


class Cursor(NamedTuple):
    """How far a reader has come: the last entry's id in each stream."""

    news: str
    texts: str


class Batch(NamedTuple):
    """What has come since the cursor that was given, in order, and the cursor to go on with."""

    cursor: Cursor
    news: tuple[WorkerNews, ...]
    texts: tuple[LearnedText | Flush, ...]


class Hello(NamedTuple):
    """now: of the store's clock, s. seed: the fleet's, 64 bits, the same for every router. routers: live ones."""

    now: float
    seed: int
    routers: int


class HeldLock(NamedTuple):
    """A ghost lock that somebody holds. ready_at: when its owner expects to be done, in s of the store's clock."""

    key: bytes
    token: int
    router: str
    worker: str
    ready_at: float


class LockGrant(NamedTuple):
    """token: fencing token when all keys were free and are now ours; else None, and `held` says who holds which."""

    token: int | None
    held: tuple[HeldLock, ...]


class RoutingStore(ABC):
    """The store that routers and workers share. See the module's docstring.

    malformed_entries: values met that are none of ours in form.
    """

    malformed_entries: int

    @abstractmethod
    def tell(
        self,
        ref: WorkerRef,
        load: LoadReport | None,
        chains: Sequence[PromptChain],
        computed: Sequence[str],
        *,
        ttl_s: float,
    ) -> bool:
        """Store a worker's load, to live for `ttl_s`, and append its news; return whether a router listens.

        load: None leaves the last one as it is. One round trip. News is not kept when no router listens.
        """

    @abstractmethod
    def hello(self, router: str, *, ttl_s: float) -> Hello:
        """Say that a router is alive for the next `ttl_s`; return the fleet's seed, made by whoever comes first."""

    @abstractmethod
    def bye(self, router: str) -> None:
        """Say that a router is gone."""

    @abstractmethod
    def loads(self, refs: Sequence[WorkerRef]) -> tuple[float, list[StampedLoad | None]]:
        """Return the store's time and each worker's load, None when there is none. One round trip a namespace."""

    @abstractmethod
    def start(self) -> Cursor:
        """Return the cursor of a new router: texts from the beginning, news from now on."""

    @abstractmethod
    def read(self, after: Cursor, *, count: int, block_s: float) -> Batch:
        """Return up to `count` items of each stream, waiting up to `block_s` while there is none in either."""

    @abstractmethod
    def append(self, items: Sequence[LearnedText | Flush]) -> None:
        """Append to the texts that every router reads."""

    @abstractmethod
    def lock(self, keys: Sequence[bytes], *, router: str, worker: str, ready_at: float, ttl_s: float) -> LockGrant:
        """Take all of the keys, for `ttl_s`, or none of them."""

    @abstractmethod
    def renew_lock(self, keys: Sequence[bytes], token: int, *, ready_at: float, ttl_s: float) -> bool:
        """Hold the keys for `ttl_s` from now; return False, and change nothing, unless the token holds all of them."""

    @abstractmethod
    def unlock(self, keys: Sequence[bytes], token: int) -> bool:
        """Release those keys that the token holds; return whether it held all of them."""

    @abstractmethod
    def locks(self, keys: Sequence[bytes]) -> list[HeldLock | None]:
        """Return who holds each key."""

    @abstractmethod
    def sessions(self, keys: Sequence[bytes]) -> list[str | None]:
        """Return the worker of each session. keys: digests, never a client's own words."""

    @abstractmethod
    def put_sessions(self, sessions: Mapping[bytes, str], *, ttl_s: float) -> None:
        """Bind sessions to workers for `ttl_s` from now."""

    @abstractmethod
    def drop_sessions(self, keys: Sequence[bytes]) -> None:
        """Forget sessions."""

    @abstractmethod
    def set_drain(self, worker: str, draining: bool, *, ttl_s: float) -> None:
        """Say, for every router, that a worker is to get no new requests, for `ttl_s`; or take it back."""

    @abstractmethod
    def drains(self) -> set[str]:
        """Return the workers that are being drained."""

    @abstractmethod
    def close(self) -> None:
        """Release connections. Idempotent; a waiting `read` ends with IndexUnavailable."""
