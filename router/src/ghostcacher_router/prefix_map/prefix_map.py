"""Maps a boundary of a text to the number of KV blocks before it and the hash of the last one, per namespace.

All routers share one map, through a log of updates that all of them read. Only such updates change the map, and each of
their entries takes the place of an earlier one, whatever that was. A router applies an update that it makes at once,
and again when it reads it back in the order of the log. So all routers that have read the same log have the same map,
and reading an update twice changes nothing. Which of an old and a new entry is right is decided before, by
`map_update.py`, at the one router that makes the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import le

import msgspec

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, Flush, PrefixMapUpdate, PromptChain
from ghostcacher_router.prefix_map.map_update import COUNT_BYTES, changed_claims
from ghostcacher_router.prefix_map.two_generation_cache import TwoGenerationCache
from ghostcacher_router.types import DIGEST_BYTES, Prompt

ENTRIES_MAX = 200_000
"""The most boundaries in the map: some 50 MB, for 200 MB of text that is in use."""

TTL_S = 4 * 3600.0
"""How long an unused boundary is remembered: about as long as a document stays in some cache of the fleet."""

BYTES_PER_TOKEN = 4.0
"""The average of English prose in today's vocabularies, which is used until a namespace has its own."""

BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX = 0.1, 1000.0
"""No text is beyond these: a byte is at most a few tokens, and a token is at most a few hundred bytes."""

BYTES_PER_TOKEN_WEIGHT = 0.1
"""How much the newest text counts in the average: one odd prompt moves it little, twenty of them nearly wholly."""

NAMESPACES_MAX = 256
"""The most namespaces that have an average of their own."""

BLOCKS_MAX = (1 << 8 * COUNT_BYTES) - 1
"""The largest block count that an entry can hold."""


class KnownBoundary(msgspec.Struct, frozen=True, gc=False):
    """A boundary of a prompt whose blocks are known."""

    index: int
    """Which of the prompt's boundaries it is."""
    block_count: int
    """How many blocks the text before it fills."""
    block_hash: bytes
    """The chain hash of the last of these blocks."""


class PrefixMap:
    """The map of one router, which its updates name. On the event loop only."""

    malformed: int
    """How many chains and updates were dropped because they were malformed."""

    def __init__(
        self,
        router: str,
        *,
        entries_max: int = ENTRIES_MAX,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._entries = TwoGenerationCache(entries_max=entries_max, ttl_s=ttl_s, clock=clock)
        self._bytes_per_token: dict[str, float] = {}
        self.malformed = 0

    def __repr__(self) -> str:
        return f"PrefixMap(boundaries={len(self)}, namespaces={len(self._bytes_per_token)})"

    def __len__(self) -> int:
        """Return how many boundaries are known, over all namespaces."""
        return len(self._entries)

    def known(self, namespace: str, prompt: Prompt) -> list[KnownBoundary]:
        """Return the boundaries of a prompt whose blocks are known, with ascending block counts.

        Of several boundaries with one count the first is returned, since most prompts have it. A boundary that claims
        more blocks than a later one is left out, since the text of the later one contains its own.
        """
        found = self._from_deepest(namespace, prompt, len(prompt.digests))
        found.reverse()
        return found

    def deepest(self, namespace: str, prompt: Prompt) -> KnownBoundary | None:
        """Return the last of the `known` boundaries, without a search for the others."""
        found = self._from_deepest(namespace, prompt, 1)
        return found[0] if found else None

    def _from_deepest(self, namespace: str, prompt: Prompt, most: int) -> list[KnownBoundary]:
        """Return the last `most` of the `known` boundaries, the last one first."""
        found: list[KnownBoundary] = []
        index, value, least = -1, b"", BLOCKS_MAX + 1
        for at, claimed in self._entries.from_last(namespace, prompt.digests):
            count = int.from_bytes(claimed[:COUNT_BYTES], "little")
            if count > least:
                continue
            if count < least and value:
                found.append(KnownBoundary(index, least, value[COUNT_BYTES:]))
                if len(found) == most:
                    return found
            if not count:
                return found
            index, value, least = at, claimed, count
        if value:
            found.append(KnownBoundary(index, least, value[COUNT_BYTES:]))
        return found

    def tokens_of(self, namespace: str, prompt: Prompt) -> int:
        """Return how many tokens a prompt has: exactly, if it came as token ids, else by the namespace's average."""
        if prompt.tokens is not None:
            return prompt.tokens
        return max(1, round(prompt.size / self._bytes_per_token.get(namespace, BYTES_PER_TOKEN)))

    def learn(self, prompt: Prompt, chain: PromptChain, namespace: str) -> PrefixMapUpdate | None:
        """Learn from the chain that an engine made of a prompt; return the update for other routers, None for nothing.

        A prompt whose text is well known costs nothing more.
        """
        if not chain.block_counts or not prompt.size:
            return None
        if chain.block_counts[-1] > min(chain.tokens, BLOCKS_MAX):
            self.malformed += 1
            return None
        changes = changed_claims(prompt, self._entries.find(namespace, prompt.digests), chain)
        if not changes:
            return None
        shared = list(changes.items())[:BOUNDARIES_MAX]
        update = PrefixMapUpdate(
            namespace=namespace,
            digests=tuple(prompt.digests[index] for index, _ in shared),
            block_counts=tuple(claim.blocks for _, claim in shared),
            hashes=tuple(claim.block_hash for _, claim in shared),
            bytes_per_token=self._observed(namespace, prompt, chain.tokens),
            router=self._router,
        )
        self.put(namespace, _packed(update), update.bytes_per_token)
        return update

    def apply(self, update: PrefixMapUpdate) -> None:
        """Take over what a router has learned. A malformed update is dropped as a whole, and counted."""
        entries = entries_of(update)
        if entries is None:
            self.malformed += 1
        else:
            self.put(update.namespace, entries, update.bytes_per_token)

    def put(self, namespace: str, entries: Mapping[bytes, bytes], bytes_per_token: float) -> None:
        """Take over the entries of updates, as `entries_of` returns them."""
        self._entries.put(namespace, entries)
        averages = self._bytes_per_token
        if namespace not in averages and len(averages) >= NAMESPACES_MAX:
            del averages[next(iter(averages))]
        averages[namespace] = bytes_per_token

    def flush(self, flush: Flush) -> None:
        """Forget everything, or the one boundary that the flush names. Boundaries after it have names of their own."""
        if flush.scope == "all":
            self._entries.clear()
        else:
            self._entries.drop(flush.key)

    def _observed(self, namespace: str, prompt: Prompt, tokens: int) -> float:
        """Return the namespace's average with one more prompt in it. Token ids have no text, and change nothing."""
        average = self._bytes_per_token.get(namespace)
        if prompt.tokens is not None:
            return BYTES_PER_TOKEN if average is None else average
        ratio = min(max(prompt.size / tokens, BYTES_PER_TOKEN_MIN), BYTES_PER_TOKEN_MAX)
        return ratio if average is None else average + BYTES_PER_TOKEN_WEIGHT * (ratio - average)


def entries_of(update: PrefixMapUpdate) -> dict[bytes, bytes] | None:
    """Return what an update from the network puts into the map: packed claims by digest; None when it is malformed."""
    return _packed(update) if _well_formed(update) else None


def _packed(update: PrefixMapUpdate) -> dict[bytes, bytes]:
    """Return the claims of an update as `Claim.pack` does, by digest."""
    claims = zip(update.digests, update.block_counts, update.hashes, strict=True)
    return {digest: blocks.to_bytes(COUNT_BYTES, "little") + block_hash for digest, blocks, block_hash in claims}


def _well_formed(update: PrefixMapUpdate) -> bool:
    """Say whether an update from the network can be applied. Lengths are checked where it is decoded."""
    return (
        bool(update.namespace)
        and {DIGEST_BYTES}.issuperset(map(len, update.digests))
        and _ascending(update.block_counts)
        and BYTES_PER_TOKEN_MIN <= update.bytes_per_token <= BYTES_PER_TOKEN_MAX
    )


def _ascending(counts: Sequence[int]) -> bool:
    return all(map(le, counts, counts[1:])) and (not counts or 0 <= counts[0] <= counts[-1] <= BLOCKS_MAX)
