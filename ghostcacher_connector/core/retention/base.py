"""What a tier remembers of its blocks, and what a policy has to say about them.

Owner: one `TierRetention` (tier_retention.py) for each tier of a rank. It knows keys, types, ages and bytes, and no
memory: its caller owns the slots or objects, tells it what came and what was used, and frees what it hands back.

Blocks form a forest: a block's parent is the block before it in its prefix. Only a *leaf*, of which nothing in the tier
is a child, may be evicted: without its parent a child can serve no prompt that needs both from this tier. So a block
stays at least as long as the last one of its descendants, and a policy has to order leaves alone.

A policy sorts the blocks into queues, each in an order of its own that only events change, and says what the first of
a queue is worth now. The tier evicts the cheapest of the firsts. That makes an eviction O(log n) for any policy whose
count of queues is bounded.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.types import SectionType

BlockKey = bytes
"""What names a block in its tier: its chain hash, alone or with whatever tells namespaces apart."""


class EvictionReason(str, Enum):
    """Why a block left its tier. Label values of metrics."""

    CAPACITY = "capacity"
    """The tier was full, and it was the block worth least."""

    BUDGET = "budget"
    """The tier was full, and its type held more than its share."""

    AGED = "aged"
    """The tier was full, and it was known to be of no use any more."""

    TTL = "ttl"
    """Its type's time was over, or that of a block before it."""

    DUPLICATE = "duplicate"
    """The tier was full, and the block elsewhere, too: the engine had used it since it came, or a peer had lent it."""

    FLUSHED = "flushed"
    """Somebody asked for it to be dropped, or nothing of before was right any more."""


class Refusal(str, Enum):
    """Why a block was not taken into a tier. Label values of metrics."""

    TYPE = "type"
    """Blocks of a user's last message never leave the engine."""

    WORTH = "worth"
    """It is worth less than what would have to go for it."""

    FULL = "full"
    """All that is in the tier is in use, or retained while this block is not; or the block is larger than the tier."""


class BlockTraits(NamedTuple):
    """What is known of a block when it comes."""

    section: SectionType
    """The type of the part of the prompt that it belongs to: a hint, never identity."""

    depth: int
    """How many blocks lie before it in its prefix; 0 also where the engine does not say."""

    tokens: int
    size_bytes: int
    """What it takes in the tier."""

    tenant: bytes | None = None
    """A digest of the request's ``cache_salt``; None without one. All requests without one are one tenant."""

    retain_s: float = 0.0
    """For how long from now the request wants it kept, as far as its tenant's quota goes."""

    age_s: float = 0.0
    """How long ago it was made: not 0 where a tier finds blocks of an earlier life."""

    prompt_blocks: int | None = None
    """How many blocks the prompt has that it came with; None if not known."""

    tools: bytes | None = None
    """What names the tools of that prompt; None without tools, and if not known."""

    needed: bool = False
    """Whether the fleet has too few copies without this one, as far as is known."""


class Evicted(NamedTuple):
    """A block that is no longer in the tier: the caller frees its slot. Children come before their parents."""

    key: BlockKey
    section: SectionType
    size_bytes: int
    reason: EvictionReason


class Insertion(NamedTuple):
    """What came of an insertion. A block that was refused is not in the tier."""

    refusal: Refusal | None
    evicted: tuple[Evicted, ...]

    @property
    def admitted(self) -> bool:
        return self.refusal is None


class TierBlock:
    """One block in a tier. Policies read it, and write `queue` and `rank` alone."""

    __slots__ = (
        "aged",
        "came_at",
        "children",
        "deadline",
        "depth",
        "hits",
        "key",
        "parent",
        "parent_key",
        "pins",
        "prompt_blocks",
        "queue",
        "rank",
        "retained_until",
        "section",
        "size_bytes",
        "tenant",
        "ticket",
        "tokens",
        "tools",
        "used_at",
    )

    def __init__(self, key: BlockKey, parent_key: BlockKey | None, traits: BlockTraits, now: float) -> None:
        self.key = key
        self.parent_key = parent_key
        self.parent: TierBlock | None = None
        """None for the first block of a prefix, and while the block before it is not in the tier."""
        self.children: set[TierBlock] = set()
        self.section = traits.section
        self.depth = traits.depth
        self.tokens = traits.tokens
        self.prompt_blocks = traits.prompt_blocks
        """How many blocks the prompt has that used it last, as far as known."""
        self.tools = traits.tools
        """What names the tools of that prompt; None without tools, and if not known."""
        self.size_bytes = traits.size_bytes
        self.tenant = traits.tenant
        self.came_at = now
        self.used_at = now
        """When it came or was last used, whichever is later."""
        self.hits = 0
        """How often it was used since it came."""
        self.retained_until = float("-inf")
        self.deadline = float("inf")
        """When its type's time is over, whatever is retained."""
        self.pins = 0
        self.aged = False
        """Whether it is to go before all others."""
        self.queue: Hashable = None
        self.rank = now
        """Its place in its queue: the least goes first."""
        self.ticket = 0
        """Tells its valid place in the queues from earlier ones; 0: it has none."""

    def __repr__(self) -> str:
        return f"TierBlock({self.key.hex()[:12]}, {self.section.name}, depth={self.depth}, hits={self.hits})"


class EvictionPolicy(Protocol):
    """The order in which leaves go. One for each tier; not thread-safe.

    Events may change the `queue` and `rank` of the block that they are about, and of no other: what a policy learns
    shows in `worth`. Times are the tier's clock's, in seconds, and never go back. All calls take O(log n) or less,
    counted over many.
    """

    def asked(self, key: BlockKey, traits: BlockTraits | None, now: float) -> None:
        """A prompt has a block that is not in the tier. Comes before the block is offered, if it ever is."""

    def offered(self, block: TierBlock, now: float) -> float:
        """Return what a block that is not in the tier would be worth in it, to be compared with `worth`."""

    def came(self, block: TierBlock, now: float) -> None:
        """A block that was offered is in the tier from now on."""

    def used(self, block: TierBlock, now: float) -> None:
        """A prompt uses a block of the tier; its `hits` and `used_at` are still as before."""

    def left(self, block: TierBlock, now: float) -> None:
        """A block is no longer in the tier."""

    def worth(self, block: TierBlock, now: float) -> float:
        """Return what a block that is first in its queue is worth: the least of all firsts goes."""
