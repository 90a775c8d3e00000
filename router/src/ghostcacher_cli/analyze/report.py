"""What `ghostcacher analyze` finds, as it prints it in JSON. Tokens are of prompts, bytes of KV, times in s."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True):
    """All of it."""

    file: str
    """The file as it was named."""
    kind: str
    """What its lines are."""
    counts: Counts
    """What it holds."""
    saveable_ratio: float
    """The part of all prompt tokens that a cache without bounds need not compute again."""
    dedup_ratio: float
    """How often each distinct token is sent."""
    shared_prefixes: list[Prefix]
    """What is shared and saves most, in the order of the tree: each before what goes on from it."""
    sizes: list[SizeHits]
    """Hit ratios by size of the cache."""
    best_order: BestOrder
    """What the best order is worth."""
    tiers: list[Tier]
    """What tiers are worth."""
    assumptions: Assumed
    """What bytes and seconds are made of."""
    took_s: float
    """How long the analysis took."""


class Counts(msgspec.Struct, frozen=True):
    """What the file holds."""

    requests: int
    """Requests, one a line."""
    prompt_tokens: int
    """Tokens of all prompts."""
    distinct_tokens: int
    """Tokens that are left when what several prompts begin with is counted once."""
    saveable_tokens: int
    """Tokens that a cache without bounds need not compute again: the rest."""
    block_tokens: int
    """Tokens of a block."""
    blocks: int
    """Blocks of all prompts."""
    distinct_blocks: int
    """Different ones."""
    distinct_bytes: int
    """KV of all different blocks."""
    longest_prompt_tokens: int
    """The longest prompt."""

    @property
    def saveable_ratio(self) -> float:
        """Return the saveable part of all prompt tokens."""
        return self.saveable_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def dedup_ratio(self) -> float:
        """Return how often each distinct token is sent."""
        return self.prompt_tokens / self.distinct_tokens if self.distinct_tokens else 1.0


class Prefix(msgspec.Struct, frozen=True):
    """Something that several requests have in common, behind a prefix that they share as well."""

    start_tokens: int
    """Tokens that stand before it."""
    tokens: int
    """Its own."""
    requests: int
    """How many have it."""
    saves_tokens: int
    """What need not be computed when each but the first of them finds it in a cache."""
    level: int
    """How many of the listed prefixes lie before it."""
    begins: str
    """How its text, its token ids or its block hashes begin."""


class SizeHits(msgspec.Struct, frozen=True):
    """What caches of one size serve."""

    size_bytes: int
    """The size."""
    blocks: int
    """The blocks that fit."""
    hit_ratio: dict[str, float]
    """Policy -> the part of all prompt tokens that need not be computed, when requests come as in the file."""
    best_order_hit_ratio: float
    """The same of LRU, when they come in the best order."""


class BestOrder(msgspec.Struct, frozen=True):
    """What sending the requests depth first, those that begin alike one after the other, is worth."""

    enough_bytes: int
    """The size of an LRU cache that then saves all that any cache could."""
    file_order_enough_bytes: int
    """The same when requests come as in the file."""
    engine_hit_ratio: float
    """What the engine's own cache hits in the best order."""
    file_order_engine_hit_ratio: float
    """What it hits in the file's order."""
    saved_tokens: int
    """The difference."""
    saved_s: float
    """How long an engine computes that."""


class Tier(msgspec.Struct, frozen=True):
    """What a tier adds to those above it."""

    name: str
    """engine: its own cache; host: host memory; objects: files or an object store."""
    size_bytes: int | None
    """How large it is; null for one without bounds."""
    filled_bytes: int
    """How much of it the file fills."""
    hit_ratio: float
    """The part of all prompt tokens that it serves, and no tier above it."""
    saved_tokens: int
    """These tokens."""
    loaded_bytes: int
    """What is loaded from it for them."""
    compute_s: float
    """How long an engine computes them."""
    load_s: float
    """How long loading them takes."""
    worth_s: float
    """The difference; 0 where loading takes longer."""


class Assumed(msgspec.Struct, frozen=True):
    """What bytes and seconds are made of."""

    bytes_per_token: int
    """KV of one token in all layers."""
    kv_of: str
    """Where that comes from."""
    prefill_tokens_per_second: float
    """What an engine computes."""
    load_gib_per_second: float
    """From host memory into an engine."""
    object_gib_per_second: float
    """From files or objects into an engine."""
    engine_gib: float
    """An engine's own KV cache."""
    host_gib: float
    """A host tier under it."""
    text_bytes_per_token: float | None
    """Bytes of text a token; null where token counts are known."""
    arrival_spacing_s: float | None
    """Time between requests where the file does not say it, for policies that look at times; null where it does."""
    sampled_one_in: int
    """For other policies than LRU one of so many blocks was looked at; 1: all of them."""
